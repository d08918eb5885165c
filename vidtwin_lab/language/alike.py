"""Whether text encoders that are compared were treated alike, but for what is compared."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

from vidtwin_lab.runtime import flatten

__all__ = ["check_alike", "told_once"]

# What may differ, in each stage: what is compared, and where files lie.
FREE = {
    "pretrain": (
        *("output", "model.family", "objective.*", "corpus.path", "corpus.files*", "accumulation"),
        *("*_every", "num_workers", "validation_batch_size", "keep_checkpoints"),
    ),
    "glue": ("text_encoder.*", "made_by.*", "*.path", "task.texts.*"),
    "squad": (
        *("text_encoder.*", "made_by.*", "*.path", "task.texts.*", "task.no_answer_token"),
        *("settings.data.train*", "settings.data.dev", "settings.data.article_split"),
    ),
    "probe": ("text_encoder.*", "seeds*", "software.*", "device"),
    "diffusion": (
        *("output", "text_encoder", "init_from", "seed", "cache", "autoencoder", "accumulation"),
        *("*_every", "num_workers", "validation_batch_size", "keep_checkpoints"),
    ),
    "adherence": (
        *("checkpoint", "weights_digest.transformer", "weights_digest.text_encoder"),
        *("software.*", "device"),
    ),
}


def check_alike(stage: str, given: Mapping[str, Any]) -> None:
    """Raises ValueError unless what was done to the first was done to all.

    Args:
        stage: a key of `FREE`.
        given: name -> everything that its figures follow from, nested.
    """
    flat = {name: flatten(value) for name, value in given.items()}
    start = next(iter(flat), "")
    for name, other in flat.items():
        first = flat[start]
        differing = [
            key
            for key in dict.fromkeys((*first, *other))
            if first.get(key) != other.get(key)
            and not any(fnmatch.fnmatch(key, pattern) for pattern in FREE[stage])
        ]
        if differing:
            raise ValueError(
                f"{stage} of {start} and of {name} differ in {', '.join(differing[:5])}; "
                "treat text encoders alike that are compared"
            )


def told_once(protocols: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Task -> the protocol of the first run, and what differs from it in each other one.

    Args:
        protocols: run -> task -> protocol.
    """
    found: dict[str, Any] = {}
    for run, tasks in protocols.items():
        for task, protocol in tasks.items():
            own = found.setdefault(task, {"first": protocol, "others": {}})
            first, other = flatten(own["first"]), flatten(protocol)
            own["others"][run] = {k: v for k, v in other.items() if first.get(k) != v}
    return found
