"""Tokenizers trained on a corpus, as transformers' own classes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer, RobertaTokenizer

from vidtwin_lab.language.config import TokenizerConfig

WORDPIECE_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BYTE_BPE_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
# What is added to the number of a letter inside of a word while wordpieces are learned: half of
# Unicode, whose upper half has no letter.
_INSIDE = 0x88000
MOST_WORDS = 5000


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
        ValueError: if the vocabulary is too small for the letters of the texts, or `keep_words` is
            not for them.
    """
    if config.keep_words and kind != "wordpiece":
        raise ValueError(f"tokenizer.keep_words=true is for kind=wordpiece, got {kind}")
    if kind == "wordpiece":
        kept: dict[str, Any] = {}
        if config.keep_words:
            texts = list(texts)
            kept["known_words"] = _words_of(texts, config)
        vocabulary = _learn_wordpieces(texts, config)
        return BertTokenizer(
            vocab=vocabulary, do_lower_case=config.lowercase, model_max_length=max_length, **kept
        )
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary, merges = _learn_merges(texts, split, BYTE_BPE_SPECIAL, alphabet, config)
    return RobertaTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length)


def _words_of(texts: Iterable[str], config: TokenizerConfig) -> list[str]:
    """The different words of the texts as the tokenizer splits them, in order of the alphabet."""
    normalizer = normalizers.BertNormalizer(lowercase=config.lowercase)
    split = pre_tokenizers.BertPreTokenizer()
    words = {
        word
        for text in texts
        for word, _ in split.pre_tokenize_str(normalizer.normalize_str(text))
        if word.isalnum()
    }
    if len(words) > MOST_WORDS:
        raise ValueError(
            f"the corpus has {len(words)} different words, tokenizer.keep_words=true keeps at most "
            f"{MOST_WORDS}: it is for the captions of a small grammar; set it to false"
        )
    return sorted(words)


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
    return {t if t in WORDPIECE_SPECIAL else plain(t): number for t, number in learned.items()}


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
