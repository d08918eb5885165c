"""How a pipeline reads what a call asks for: prompts by its text encoder, classes by name.

Axes: B batch, L text tokens, D width of the text encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from torch import Tensor

from diffusion.conditions import TextCondition, TextEmbedder
from diffusion.inputs import check_count, class_indices, negative_list, prompt_list
from diffusion.pipeline_files import check_trained_with
from diffusion.pipeline_values import Text
from diffusion.text_encoder import TextEncoder

__all__ = ["PromptReading"]


class PromptReading:
    """A base class of the pipeline: reads what a call asks for."""

    if TYPE_CHECKING:
        config: Any
        transformer: Any
        text_encoder: Any
        tokenizer: Any
        _bring: Any
        _execution_device: torch.device

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        num_videos_per_prompt: int = 1,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """What a call takes instead of its prompts, to read them once or to change what was read.

        Args:
            prompt, negative_prompt, num_videos_per_prompt: as in a call.
        Returns:
            tuple: prompt_embeds (B, L, D), prompt_attention_mask (B, L) bool, and both of the
            negative prompt, None without one.
        """
        count = check_count("num_videos_per_prompt", num_videos_per_prompt)
        found: list[Tensor | None] = []
        for text in (prompt_list(prompt), negative_list(negative_prompt)):
            if text is None:
                found += [None, None]
            else:
                read = self._read(text).map(lambda tensor: tensor.repeat_interleave(count, dim=0))
                found += [read.encoder_hidden_states, read.encoder_attention_mask]
        return tuple(found)  # type: ignore[return-value]

    def _read(self, text: Text) -> TextCondition:
        """The condition of texts, or what was read of them before."""
        sizes = self.transformer.sizes
        check_trained_with("text", sizes.text_hidden_size, sizes.num_classes)
        return text if isinstance(text, TextCondition) else self._text_embedder().embed(text)

    def _read_for_attention(self, text: Text) -> TextCondition:
        """The same without a mask where nothing is padded, for kernels that take none.

        Torch's own kernel on a CPU keeps it: without one, several threads make its last bits differ
        from call to call.
        """
        read = self._read(text)
        backend, _ = _AttentionBackendRegistry.get_active_backend()
        own = backend == AttentionBackendName.NATIVE and self._execution_device.type == "cpu"
        return read if own else read.without_padding()

    def _text_embedder(self) -> TextEmbedder:
        if self.text_encoder is None or self.tokenizer is None:
            raise ValueError(
                "this pipeline has no text encoder and tokenizer to read a prompt with"
            )
        self._bring(self.text_encoder)
        layer, length = self.config["text_layer"], self.config["max_text_length"]
        return TextEmbedder(TextEncoder(self.text_encoder, self.tokenizer, layer, length))

    def class_indices(self, labels: int | str | Sequence[int | str] | None) -> list[int] | None:
        """Classes by number or name as numbers.

        Raises:
            ValueError: for a class that is not there, with the nearest names.
        """
        if labels is None:
            return None
        sizes = self.transformer.sizes
        check_trained_with("classes", sizes.num_classes, sizes.text_hidden_size)
        return class_indices(labels, sizes.num_classes, self.config["class_names"])
