"""The frozen text encoder of prompts: any text model of transformers behind one interface.

Axes: B batch, L text tokens, D width.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import logging
from collections.abc import Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from diffusion.prefix_attention import MARK, prefix_attention
from diffusion.text_loading import (
    POOLER,
    find_encoder,
    load_text_model,
    load_tokenizer,
    position_table,
    quiet,
)

__all__ = [
    "TextEncoder",
    "TextEncoding",
    "checked_prompts",
]

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)

# Of a model without a table of positions whose tokenizer gives no bound either (T5 was trained so).
DEFAULT_MAX_LENGTH = 512
# Models embed somewhat more tokens than they have, for a round number; not many more.
_FEWEST_TOKENS = 0.9


class TextEncoding(NamedTuple):
    """What a text encoder says about B prompts.

    hidden_states: (B, L, D) float32, 0 where the mask is False; attention_mask: (B, L) bool, True
    for tokens; truncated: for each prompt the end that was cut off, or None.
    """

    hidden_states: Tensor
    attention_mask: Tensor
    truncated: list[str | None]


class TextEncoder:
    """A transformers model and its tokenizer as a frozen text encoder of prompts.

    Prompts are padded on the right and positions count from the first token, so that padding
    changes nothing for the tokens; special tokens stay among them. An empty prompt is read as the
    special tokens alone, or, in a family that adds none, as its first or last token of a text.

    Args:
        model: the encoder, or a language model whose encoder is then taken; is set to evaluation
            and needs no gradient from here on.
        tokenizer: of the same vocabulary.
        layer: which hidden state to give: -1 the model's own output, -2 the one before, ...; 0 the
            embeddings.
        max_length: tokens of a prompt, special ones included; None for all that the model can read.
        bidirectional: let every token of a causal model read all tokens of its prompt; its config
            says so from here on (`bidirectional_prompt`), as that of a prefix-LM does.
    Raises:
        ValueError: if the layer or length is out of range, the tokenizer is another model's, or
            the model has a decoder, or can't be bidirectional.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        layer: int = -1,
        max_length: int | None = None,
        bidirectional: bool = False,
    ) -> None:
        accepted = inspect.signature(model.forward).parameters
        if "decoder_input_ids" in accepted:
            raise ValueError(
                f"`model` must be an encoder, got {type(model).__name__}, which also decodes; "
                "give its encoder alone, such as T5EncoderModel"
            )
        if "labels" in accepted:  # a language model: the head is of no use here
            model = model.base_model
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self._accepted = inspect.signature(model.forward).parameters
        self._check_vocabulary()
        depth = model.config.num_hidden_layers
        if not -depth - 1 <= layer <= depth:
            raise ValueError(
                f"`layer` must be in [{-depth - 1}, {depth}] for this model of {depth} layers, "
                f"got {layer}"
            )
        self.layer = layer
        self._from_below = layer % (depth + 1)
        self._first_position, limit = position_table(model)
        self.max_length = self._checked_length(max_length, limit)
        # Of a tokenizer that was trained on the captions of a small grammar (`keep_words`).
        words = tokenizer.init_kwargs.get("known_words") if tokenizer.is_fast else None
        self._known_words, self._told_words = frozenset(words or ()), False
        if bidirectional and self.causal:
            self._open()

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | PathLike[str],
        layer: int = -1,
        max_length: int | None = None,
        local_files_only: bool = False,
        bidirectional: bool = False,
    ) -> Self:
        """The encoder of a folder or hub id; of a language model's folder, the part that reads; of
        a pipeline's folder, its text encoder and tokenizer.

        The name "minilm" is that of an installed package; see `packaged_encoder`.

        Raises:
            ValueError: if there is none, or weights are missing.
        """
        name = find_encoder(str(name_or_folder))
        folder, words = Path(name) / "text_encoder", Path(name) / "tokenizer"
        parts = (str(folder), str(words)) if folder.is_dir() else (name, name)
        model = load_text_model(parts[0], local_files_only)
        tokenizer = load_tokenizer(parts[1], local_files_only)
        return cls(model, tokenizer, layer, max_length, bidirectional)

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Writes model and tokenizer for `from_pretrained`; layer and length are the caller's."""
        with quiet():
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)

    @property
    def hidden_size(self) -> int:
        """D, the width of a token."""
        return int(self.model.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.model.parameters()).device

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Moves the weights; arguments as of `torch.nn.Module.to`."""
        self.model.to(*args, **kwargs)
        return self

    @cached_property
    def causal(self) -> bool:
        """Whether the model is causal (left-to-right): a token does not depend on those after it.

        Found out by asking the model, so that it holds for any family.
        """
        special = set(self.tokenizer.all_special_ids)
        size = self.model.get_input_embeddings().num_embeddings
        plain = [token for token in range(size) if token not in special][:3]
        if len(plain) < 3:
            raise ValueError(f"a vocabulary of {size} tokens is too small to read with")
        a, b, c = plain
        texts = torch.tensor([[a, b, b], [a, c, c]], device=self.device)
        first, second = self._read(texts, torch.ones_like(texts, dtype=torch.bool))[:, 0]
        return bool(torch.allclose(first, second, rtol=1e-5, atol=1e-6))

    def digest(self) -> str:
        """Hex digest of weights and vocabulary: equal for text encoders that give the same states.

        One that is read bidirectionally has another than the same weights read causally.

        The pooler, which takes no part in reading, is left out.
        """
        total = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            if POOLER in name:
                continue
            plain = tensor.detach().cpu().contiguous()
            total.update(f"{name} {tuple(plain.shape)} {plain.dtype}\n".encode())
            total.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
        for token, number in sorted(self.tokenizer.get_vocab().items()):
            total.update(f"{number} {token}\n".encode())
        if self._opened:
            total.update(MARK.encode())
        return total.hexdigest()

    def __call__(self, prompts: str | Sequence[str], pad_to_max: bool = False) -> TextEncoding:
        """The same as `encode`."""
        return self.encode(prompts, pad_to_max)

    @torch.no_grad()
    def encode(self, prompts: str | Sequence[str], pad_to_max: bool = False) -> TextEncoding:
        """The hidden states of some prompts.

        Args:
            prompts: one or more; one that is too long loses its end, which is logged.
            pad_to_max: make L the maximal length instead of that of the longest prompt.
        Returns:
            TextEncoding: on the device of the model.
        Raises:
            ValueError: if a prompt is no text, or there is none.
        """
        texts = checked_prompts(prompts)
        tokens, truncated = self.tokenize(texts)
        length = self.max_length if pad_to_max else max(map(len, tokens))
        pad = self.tokenizer.pad_token_id or 0
        identifiers = torch.tensor([[*row, *[pad] * (length - len(row))] for row in tokens])
        lengths = torch.tensor([len(row) for row in tokens])
        mask = torch.arange(length) < lengths[:, None]
        identifiers, mask = identifiers.to(self.device), mask.to(self.device)
        hidden = self._read(identifiers, mask).float()
        return TextEncoding(hidden.masked_fill(~mask[..., None], 0.0), mask, truncated)

    def tokenize(self, prompts: Sequence[str]) -> tuple[list[list[int]], list[str | None]]:
        """The tokens that each prompt is read as, and the end of it that does not fit, or None."""
        fast = bool(self.tokenizer.is_fast)
        encoded = self.tokenizer(
            list(prompts),
            return_special_tokens_mask=True,
            return_attention_mask=False,
            return_offsets_mapping=fast,
            truncation=False,
            padding=False,
            verbose=False,
        )
        tokens, truncated = [], []
        for place, prompt in enumerate(prompts):
            row = list(encoded["input_ids"][place])
            special = encoded["special_tokens_mask"][place]
            if not row:
                row, special = [self._lone_token()], [1]
            self._warn_of_unknown(prompt, row, special)
            rest = None
            if len(row) > self.max_length:
                back = _special_tokens_behind(special)
                kept = self.max_length - back
                cut = row[kept : len(row) - back]
                if fast:
                    rest = prompt[encoded["offset_mapping"][place][kept][0] :]
                else:
                    rest = self.tokenizer.decode(cut)
                row = row[:kept] + row[len(row) - back :]
                logger.warning(
                    "a prompt of %d tokens was cut to %d; not read: %r",
                    len(row) + len(cut),
                    self.max_length,
                    rest,
                )
            tokens.append(row)
            truncated.append(rest)
        return tokens, truncated

    def model_inputs(
        self, identifiers: Tensor, mask: Tensor, types: Tensor | None = None
    ) -> dict[str, Any]:
        """What the model is called with to read (B, L) tokens that are padded on the right.

        Args:
            types: (B, L) token types, for a model that knows such.
        """
        inputs: dict[str, Any] = {"input_ids": identifiers, "attention_mask": mask.long()}
        if self._opened:
            inputs["attention_mask"] = prefix_attention(mask, mask.sum(1), self.model.dtype)
        if self._first_position:
            # RoBERTa numbers its tokens by counting what isn't padding; said outright, it holds
            # for any padding token.
            places = torch.arange(identifiers.shape[1], device=identifiers.device)
            inputs["position_ids"] = (places + self._first_position).expand_as(identifiers)
        if types is not None and "token_type_ids" in self._accepted:
            inputs["token_type_ids"] = types
        if "use_cache" in self._accepted:
            inputs["use_cache"] = False
        return inputs

    @property
    def _opened(self) -> bool:
        return bool(getattr(self.model.config, MARK, False))

    def _open(self) -> None:
        """Marks a causal model as one that is read bidirectionally."""
        setattr(self.model.config, MARK, True)
        del self.causal  # to be found out again
        if self.causal:
            raise ValueError(
                f"a model of the family {self.model.config.model_type!r} can't be read with "
                "bidirectional attention; leave bidirectional=True out"
            )

    def _read(self, identifiers: Tensor, mask: Tensor) -> Tensor:
        """(B, L, D) hidden states of the chosen layer; identifiers and mask are (B, L)."""
        inputs = self.model_inputs(identifiers, mask)
        with torch.no_grad():
            if self._from_below == self.model.config.num_hidden_layers:
                return self.model(**inputs, return_dict=True).last_hidden_state
            output = self.model(**inputs, return_dict=True, output_hidden_states=True)
        return output.hidden_states[self._from_below]

    def _lone_token(self) -> int:
        for name in ("bos_token_id", "eos_token_id", "cls_token_id", "pad_token_id"):
            token = getattr(self.tokenizer, name, None)
            if token is not None:
                return int(token)
        raise ValueError(
            "the tokenizer has no special token to stand for an empty prompt; give a prompt"
        )

    def _warn_of_unread(self, prompt: str) -> None:
        """Names the words that no caption of the training had, where the tokenizer knows them."""
        backend, known = self.tokenizer.backend_tokenizer, sorted(self._known_words)
        plain = prompt if backend.normalizer is None else backend.normalizer.normalize_str(prompt)
        words = dict.fromkeys(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(plain))
        unread = [word for word in words if word.isalnum() and word not in self._known_words]
        if not unread:
            return
        near = {word: difflib.get_close_matches(word, known, n=1, cutoff=0.7) for word in unread}
        told = [f"{word} ({near[word][0]}?)" if near[word] else word for word in unread]
        can = "" if self._told_words else f"; the words it can read: {', '.join(known)}"
        self._told_words = True
        logger.warning(
            "the prompt %r has words that no caption of the training had, read by guess: %s%s",
            prompt,
            ", ".join(told),
            can,
        )

    def _warn_of_unknown(self, prompt: str, row: list[int], special: Sequence[int]) -> None:
        if self._known_words:
            return self._warn_of_unread(prompt)
        unknown = self.tokenizer.unk_token_id
        plain = [token for token, added in zip(row, special, strict=True) if not added]
        count = plain.count(unknown) if unknown is not None else 0
        if count:
            logger.warning(
                "%d of %d tokens of the prompt %r are unknown to the text encoder",
                count,
                len(plain),
                prompt,
            )

    def _check_vocabulary(self) -> None:
        # What transformers makes of a folder that has a model and no tokenizer.
        if len(self.tokenizer) <= len(set(self.tokenizer.all_special_ids)):
            raise ValueError(
                "the tokenizer has special tokens alone and can read nothing; are its files "
                "missing beside the model's?"
            )
        rows = self.model.get_input_embeddings().num_embeddings
        if len(self.tokenizer) > rows:
            raise ValueError(
                f"the tokenizer has {len(self.tokenizer)} tokens and the model embeds {rows}: "
                "they do not belong together; load both from one folder"
            )
        if len(self.tokenizer) < _FEWEST_TOKENS * rows:
            logger.warning(
                "the tokenizer has %d tokens and the model embeds %d: do they belong together?",
                len(self.tokenizer),
                rows,
            )

    def _checked_length(self, length: int | None, limit: int | None) -> int:
        # Tokenizers say 1e30 where they know no bound.
        bounds = [bound for bound in (limit, self.tokenizer.model_max_length) if bound]
        known = min(bounds, default=10**9)
        added = self.tokenizer.num_special_tokens_to_add()
        if length is None:
            return int(known) if known < 10**9 else DEFAULT_MAX_LENGTH
        if length <= added or (limit is not None and length > limit):
            most = "" if limit is None else f" and at most the model's {limit} positions"
            raise ValueError(
                f"`max_length` must be more than the {added} special tokens{most}, got {length}"
            )
        return length


def _special_tokens_behind(special: Sequence[int]) -> int:
    """How many special tokens stand after a text of one plain token or more."""
    return list(reversed(special)).index(0)


def checked_prompts(prompts: str | Sequence[str]) -> list[str]:
    """One prompt or several as a list.

    Raises:
        ValueError: if there is none, or one is no text.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts:
        raise ValueError("`prompts` must hold at least one prompt, got none")
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"a prompt must be a text, got {type(text).__name__} {text!r}")
    return texts
