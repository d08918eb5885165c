"""Attention that is bidirectional in the front part of a text and causal after it.

Axes: B batch, L tokens.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

__all__ = ["MARK", "prefix_attention"]

# Key of a model's config: its prompts are read with bidirectional attention. It is not `is_causal`,
# which transformers reads itself, and of which GPT-2 hears in padded batches alone.
MARK = "bidirectional_prompt"


def prefix_attention(mask: Tensor, prefix: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(B, 1, L, L) what transformers adds to attention scores: 0 where a token reads another one.

    Args:
        mask: (B, L) bool, True for tokens, padding on the right; padding is never read.
        prefix: (B,) how many tokens in front are read by all tokens; one after them is read by
            itself and those behind it.
        dtype: of the model.
    Source: prefix LM of T5 (arXiv 1910.10683), Sec. 3.2.1.
    """
    places = torch.arange(mask.shape[1], device=mask.device)
    in_front = places < rearrange(prefix, "b -> b 1 1")
    reads = ((places <= rearrange(places, "l -> l 1")) | in_front) & rearrange(mask, "b l -> b 1 l")
    added = torch.zeros(reads.shape, dtype=dtype, device=mask.device)
    added = added.masked_fill(~reads, torch.finfo(dtype).min)
    return rearrange(added, "b query key -> b 1 query key")
