"""Tokenizers trained on a corpus, as transformers' own classes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, BertTokenizer, RobertaTokenizer

from diffusion.packaged_encoders import packaged_encoder
from diffusion.text_loading import one_line, quiet

__all__ = [
    "TokenizerConfig",
    "load_tokenizer",
    "train_tokenizer",
]

WORDPIECE_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BYTE_BPE_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
KINDS = ("wordpiece", "byte_bpe")
# What is added to the number of a letter inside of a word while wordpieces are learned: half of
# Unicode, whose upper half has no letter.
_INSIDE = 0x88000


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """The tokenizer of a run.

    Args:
        path: a folder or hub id to load one from; then the other keys are not used.
        kind: "wordpiece" (BERT's) or "byte_bpe" (RoBERTa's and GPT's, which has a token for every
            byte, 256 in all); None takes that of the model's family.
        vocabulary_size: tokens at most, special ones included.
        lowercase: read "Red" as "red"; wordpiece alone.
        min_frequency: how often a pair must occur to become a token.
        train_texts: how many texts of the corpus it is trained on.
    """

    path: str | None = None
    kind: str | None = None
    vocabulary_size: int = 30_000
    lowercase: bool = True
    min_frequency: int = 2
    train_texts: int = 1_000_000

    def __post_init__(self) -> None:
        if self.kind not in (None, *KINDS):
            raise ValueError(f"`kind` must be one of {', '.join(KINDS)} or null; got {self.kind!r}")
        for name in ("vocabulary_size", "min_frequency", "train_texts"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")


def train_tokenizer(
    texts: Iterable[str], kind: str, config: TokenizerConfig, max_length: int
) -> Any:
    """A tokenizer for these texts; the same ones give the same tokenizer.

    Args:
        kind: "wordpiece" or "byte_bpe".
        max_length: what the tokenizer then says a model can read.
    Returns:
        A BertTokenizer ("[CLS] text [SEP]") or RobertaTokenizer ("<s>text</s>").
    Raises:
        ValueError: if the vocabulary is too small for the letters of the texts.
    """
    if kind not in KINDS:
        raise ValueError(f"`kind` must be one of {', '.join(KINDS)}; got {kind!r}")
    if kind == "wordpiece":
        vocabulary = _learn_wordpieces(texts, config)
        return BertTokenizer(
            vocab=vocabulary, do_lower_case=config.lowercase, model_max_length=max_length
        )
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary, merges = _learn_merges(texts, split, BYTE_BPE_SPECIAL, alphabet, config)
    return RobertaTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length)


def _learn_wordpieces(texts: Iterable[str], config: TokenizerConfig) -> dict[str, int]:
    """Token -> number, the letters and pieces inside of words as "##...".

    The library's own trainer numbers those in the order of a hash table and so breaks ties by
    chance. Here a letter inside of a word is another letter, and there is nothing to number.
    """
    normalizer = normalizers.BertNormalizer(lowercase=config.lowercase)
    split = pre_tokenizers.BertPreTokenizer()

    def marked(text: str) -> str:
        words = (word for word, _ in split.pre_tokenize_str(normalizer.normalize_str(text)))
        return " ".join(
            word[0] + "".join(chr(ord(letter) + _INSIDE) for letter in word[1:])
            for word in words
            # The last planes hold no letters, and there is no room to move them to.
            if all(ord(letter) < _INSIDE for letter in word)
        )

    def plain(token: str) -> str:
        inside = "##" if ord(token[0]) >= _INSIDE else ""
        return inside + "".join(chr(ord(letter) % _INSIDE) for letter in token)

    spaces = pre_tokenizers.WhitespaceSplit()
    learned, _ = _learn_merges(map(marked, texts), spaces, WORDPIECE_SPECIAL, [], config)
    special = set(WORDPIECE_SPECIAL)
    return {
        token if token in special else plain(token): number for token, number in learned.items()
    }


def _learn_merges(
    texts: Iterable[str],
    split: Any,
    special: Sequence[str],
    alphabet: list[str],
    config: TokenizerConfig,
) -> tuple[dict[str, int], Any]:
    """(token -> number, merges) of byte-pair encoding, special tokens first."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = split
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary_size,
        min_frequency=config.min_frequency,
        special_tokens=list(special),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    learned = json.loads(raw.to_str())["model"]
    size = len(learned["vocab"])
    if size > config.vocabulary_size:
        raise ValueError(
            f"the letters of the corpus and the special tokens alone are {size} tokens; set "
            f"tokenizer.vocabulary_size={size} or more, got {config.vocabulary_size}"
        )
    if size == len(special):
        raise ValueError("no text to train a tokenizer on")
    return learned["vocab"], [tuple(merge) for merge in learned["merges"]]


def load_tokenizer(name_or_folder: str, local_files_only: bool = False) -> Any:
    """A saved tokenizer.

    Raises:
        ValueError: if there is none.
    """
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(
                packaged_encoder(name_or_folder), local_files_only=local_files_only
            )
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"no tokenizer in {name_or_folder}: {one_line(error)}") from error
