"""diffusers' caches in the transformer (`enable_cache`): what one step computed serves later ones.

FirstBlockCache, MagCache and TaylorSeer work on blocks or parts of them, whatever the model. The
others need what is not here: FasterCache one tensor of frames for both halves of guidance, Pyramid
Attention Broadcast and TextKVCache diffusers' own attention classes, SeaCache one noise level.

A cache is told which call it serves ("all" variants of guidance at once, or a guider's), and
forgets what it holds before each window of a video.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from diffusers.hooks import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig
from torch import nn

__all__ = ["cache_config", "caches_of_a_call", "empty_cache", "let_blocks_be_hooked"]

# What TaylorSeer predicts of our blocks; its own names are those of other models.
TAYLOR_PARTS = [r"blocks\.\d+\.(attention|cross_attention|mlp)"]
# With less memory: the outputs alone, and nothing is computed in the blocks.
LITE: dict[str, Any] = {
    "cache_identifiers": [r"outputs\.\d+"],
    "skip_predict_identifiers": [r"blocks\.\d+"],
}


def cache_config(config: Any, depth: int) -> Any:
    """A config of diffusers as it fits a transformer of `depth` blocks.

    Raises:
        ValueError: for a cache that can't work here.
    """
    kinds = (FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig)
    if not isinstance(config, kinds):
        raise ValueError(
            f"expected a cache that works on blocks, {', '.join(k.__name__ for k in kinds)}; got "
            f"{type(config).__name__}"
        )
    if isinstance(config, FirstBlockCacheConfig) and depth < 2:
        raise ValueError(
            "FirstBlockCacheConfig needs a transformer of at least 2 blocks, got one of "
            f"{depth}; take MagCacheConfig or TaylorSeerCacheConfig"
        )
    if not isinstance(config, TaylorSeerCacheConfig):
        return config
    if config.use_lite_mode:
        return replace(config, use_lite_mode=False, **LITE)
    if config.cache_identifiers or config.skip_predict_identifiers:
        return config
    return replace(config, cache_identifiers=TAYLOR_PARTS)


@contextmanager
def caches_of_a_call(transformer: Any, name: str) -> Iterator[None]:
    """Tells a transformer's cache, if it has one, which call of each step comes now."""
    if not getattr(transformer, "is_cache_enabled", False):
        yield
        return
    with transformer.cache_context(name):
        yield


def empty_cache(transformer: Any) -> None:
    """Lets a transformer's cache, if it has one, forget what it holds."""
    if getattr(transformer, "is_cache_enabled", False):
        transformer._reset_stateful_cache()


def let_blocks_be_hooked(block: type[nn.Module]) -> None:
    """Tells diffusers' hooks which argument of a block is what they pass on: the first."""
    from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry

    class FirstArgument(TransformerBlockMetadata):
        def _get_parameter_from_args_kwargs(
            self, identifier: str, args: Any = (), kwargs: Any = None
        ) -> Any:
            return args[0]

    TransformerBlockRegistry.register(block, FirstArgument(return_hidden_states_index=0))
