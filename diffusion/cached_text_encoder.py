"""What a text encoder has read, remembered.

Axes: B batch, L text tokens, D width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion.text_encoder import TextEncoder, TextEncoding, checked_prompts

__all__ = ["CachedTextEncoder"]


class CachedTextEncoder:
    """A text encoder that remembers what it has read, for training, which sees captions again.

    On a CPU, embeddings do not depend on what was asked before, bit for bit: one that is not
    remembered is made alone. On other devices, where a batch costs little more than one prompt, all
    that are not remembered are made at once, and depend on each other by rounding.

    Args:
        encoder: reads what is not yet known.
        dtype: of the memory; torch.float16 halves it and rounds.
        max_bytes: of the memory; the embeddings that were not asked for longest are forgotten.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        dtype: torch.dtype = torch.float32,
        max_bytes: int = 4 * 2**30,
    ) -> None:
        if not dtype.is_floating_point:
            raise ValueError(f"`dtype` must be a floating-point type, got {dtype}")
        if max_bytes < 1:
            raise ValueError(f"`max_bytes` must be at least 1, got {max_bytes}")
        self.encoder = encoder
        self.dtype = dtype
        self.max_bytes = max_bytes
        self._known: OrderedDict[str, tuple[Tensor, str | None]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        """How many prompts are remembered."""
        return len(self._known)

    def __call__(self, prompts: str | Sequence[str]) -> TextEncoding:
        """The same as `encode`."""
        return self.encode(prompts)

    def encode(self, prompts: str | Sequence[str]) -> TextEncoding:
        """As `TextEncoder.encode`, on the encoder's device."""
        texts = checked_prompts(prompts)
        known = {prompt: self._recall(prompt) for prompt in texts if prompt in self._known}
        unread = [prompt for prompt in dict.fromkeys(texts) if prompt not in known]
        size = 1 if self.encoder.device.type == "cpu" else max(1, len(unread))
        for start in range(0, len(unread), size):
            known |= self._read_together(unread[start : start + size])
        rows = [known[prompt] for prompt in texts]
        lengths = torch.tensor([len(states) for states, _ in rows])
        hidden = torch.zeros(len(rows), int(lengths.max()), self.encoder.hidden_size)
        for place, (states, _) in enumerate(rows):
            hidden[place, : len(states)] = states
        mask = torch.arange(hidden.shape[1]) < lengths[:, None]
        device = self.encoder.device
        return TextEncoding(hidden.to(device), mask.to(device), [cut for _, cut in rows])

    def embed_all(self, captions: Sequence[str], batch_size: int = 64) -> None:
        """Reads captions ahead, in batches of about one length.

        The last bits of an embedding may depend on its batch; the batches follow from the set of
        captions alone, so the same captions give the same embeddings.

        Raises:
            ValueError: if they do not fit into the memory.
        """
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}")
        unread = sorted(set(checked_prompts(captions)), key=lambda text: (len(text), text))
        for start in range(0, len(unread), batch_size):
            self._read_together(unread[start : start + batch_size])
            if len(self._known) < min(start + batch_size, len(unread)):
                raise ValueError(
                    f"{len(unread)} captions do not fit into max_bytes={self.max_bytes}; raise "
                    "it, or store float16"
                )

    def _recall(self, prompt: str) -> tuple[Tensor, str | None]:
        self._known.move_to_end(prompt)
        return self._known[prompt]

    def _read_together(self, prompts: Sequence[str]) -> dict[str, tuple[Tensor, str | None]]:
        """Reads different prompts in one batch, keeps them and gives them as they are kept."""
        encoding = self.encoder.encode(prompts)
        # All states and the mask in one copy: each copy waits for the device.
        mask = encoding.attention_mask[..., None].to(encoding.hidden_states.dtype)
        both = torch.cat([encoding.hidden_states, mask], dim=-1).to(device="cpu", dtype=self.dtype)
        hidden, lengths = both[..., :-1], both[..., -1].bool().sum(1).tolist()
        rows = {}
        for place, (prompt, cut) in enumerate(zip(prompts, encoding.truncated, strict=True)):
            # A copy, which does not keep the batch.
            rows[prompt] = (hidden[place, : lengths[place]].clone(), cut)
            self._remember(prompt, rows[prompt])
        return rows

    def _remember(self, prompt: str, row: tuple[Tensor, str | None]) -> None:
        if prompt in self._known:
            self._bytes -= self._known.pop(prompt)[0].nbytes
        self._known[prompt] = row
        self._bytes += row[0].nbytes
        while self._bytes > self.max_bytes and self._known:
            _, (forgotten, _) = self._known.popitem(last=False)
            self._bytes -= forgotten.nbytes
