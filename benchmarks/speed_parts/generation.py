"""Prompt to video by the shipped pipeline: a batch of videos against one after the other."""

from __future__ import annotations

from diffusion import VidTwinPipeline
from speed_parts.measuring import Found, Setting, mebibytes, ratio, seconds, side_by_side
from vidtwin.files import shipped_path

PROMPT = "a red circle moving left on a navy background"
SHIPPED = "checkpoints/shapes"


def measure(setting: Setting) -> Found:
    """Seconds for all videos, both ways."""
    pipeline = VidTwinPipeline.from_pretrained(shipped_path(SHIPPED))
    pipeline.set_progress_bar_config(disable=True)
    count, steps = (2, 2) if setting.small else (8, None)

    def one_by_one() -> None:
        for seed in range(count):
            pipeline(PROMPT, seed=seed, num_inference_steps=steps)

    def at_once() -> None:
        pipeline([PROMPT] * count, seed=0, num_inference_steps=steps)

    turns = side_by_side({"one by one": one_by_one, "at once": at_once}, setting.rounds)
    rows = [
        {
            "videos": name,
            "count": count,
            "all, s": seconds(found),
            "each, s": seconds(found) / count,
            "× one by one": ratio(found, turns["one by one"]),
            "peak, MiB": mebibytes(found),
        }
        for name, found in turns.items()
    ]
    return Found(rows=rows, protocol={"pipeline": SHIPPED, "prompt": PROMPT, "steps": steps})
