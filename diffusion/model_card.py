"""The model card of a pipeline (README.md), from its own sizes and from the run that it lies in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusers.utils.hub_utils import populate_model_card
from huggingface_hub import ModelCard, ModelCardData

from vidtwin.yaml_files import read_yaml_file

__all__ = ["build_model_card", "find_run", "write_model_card"]

CARD = "README.md"
MARK = "<!-- Written with the pipeline; remove this line from a card that you have changed. -->"
# What a card may say that is written anew: ours, and diffusers' own for anything that it uploads.
REPLACED = (MARK, "This model card has been automatically generated")
TAGS = ["text-to-video", "video-generation", "vidtwin"]
# Of a run's config; names of data without the folders around them.
SETTINGS = ("steps", "batch_size", "accumulation", "mixed_precision", "seed")
TRAINED_ON = ("cache", "data.source", "data.path", "data.root", "init_from")


def write_model_card(pipeline: Any, folder: Path) -> None:
    """Writes the card into a saved pipeline's folder, unless somebody's own lies there.

    Args:
        pipeline: a VidTwinPipeline.
        folder: of `save_pretrained`.
    """
    card = folder / CARD
    if card.is_file():
        written = card.read_text(encoding="utf-8")
        if not any(mark in written for mark in REPLACED):
            return
    loaded = pipeline.config.get("_name_or_path")
    run = find_run(folder) or (find_run(Path(loaded)) if loaded else None)
    build_model_card(pipeline, run).save(card)


def find_run(folder: Path) -> Path | None:
    """The run folder of train_diffusion.py that a pipeline's folder lies in; None without one."""
    run = folder.expanduser().parent
    return run if (run / "config.yaml").is_file() and (run / "metrics.jsonl").is_file() else None


def build_model_card(pipeline: Any, run: Path | None = None) -> ModelCard:
    """The card: what the pipeline is and makes, how to load it, what it learned from and how well.

    Args:
        pipeline: a VidTwinPipeline.
        run: folder of the run that trained it; without it the card says that it is not known.
    """
    data = ModelCardData(license="mit", pipeline_tag="text-to-video")
    takes = " and ".join(_conditions(pipeline)) or "nothing"
    sections = [
        f"# VidTwin pipeline\n\n{MARK}\n\nA diffusion transformer over the structure and dynamics "
        f"latents of a VidTwin autoencoder. It makes short videos from {takes}.",
        f"## Sizes\n\n{_table(_sizes(pipeline))}",
        f"## How to load it\n\n```python\nfrom diffusion import VidTwinPipeline\n\n"
        f"pipe = VidTwinPipeline.from_pretrained(FOLDER_OR_HUB_ID)\nvideos = {_call(pipeline)}"
        ".videos  # (B, 3, T, H, W) in [0, 1]\n```",
        f"## Training\n\n{_table(_training(run)) if run else 'The run is not known here.'}",
    ]
    if run and (measured := _last_validation(run)):
        sections.append(
            f"## Validation\n\nOf the averaged weights on held-out clips, after step "
            f"{measured.pop('step'):,}, as the run logged it.\n\n{_table(measured)}"
        )
    sections.append(
        "## Licence\n\nThe code is MIT, and so are these weights unless who publishes them says "
        "otherwise; the data that they were trained on has terms of its own."
    )
    text = "\n\n".join(sections)
    return populate_model_card(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n"), TAGS)


def _conditions(pipeline: Any) -> list[str]:
    sizes = pipeline.transformer.sizes
    found = {
        "prompts": sizes.text_hidden_size,
        f"{sizes.num_classes} classes": sizes.num_classes,
        "given frames": sizes.given_frames,
        "actions": sizes.action_size,
    }
    return [name for name, has in found.items() if has]


def _sizes(pipeline: Any) -> dict[str, Any]:
    video, config = pipeline.autoencoder.sizes, pipeline.config
    parts = {name: getattr(pipeline, name) for name in ("transformer", "autoencoder")}
    parts |= {"text encoder": pipeline.text_encoder}
    counts = {
        f"{name} parameters": f"{sum(p.numel() for p in part.parameters()):,}"
        for name, part in parts.items()
        if part is not None
    }
    return counts | {
        "video": f"{video.num_frames} frames of {video.height} x {video.width} pixels",
        "frames per second": config["fps"] or "not recorded",
        "latent tokens": f"{sum(pipeline.transformer.sizes.token_counts):,}",
        "prediction": config["prediction"],
        "scheduler": type(pipeline.scheduler).__name__,
        "steps of a call": config["num_inference_steps"],
        "guidance scale": config["guidance_scale"],
    }


def _call(pipeline: Any) -> str:
    sizes = pipeline.transformer.sizes
    if sizes.text_hidden_size:
        return 'pipe("what to show", seed=0)'
    return "pipe(class_labels=0, seed=0)" if sizes.num_classes else "pipe(seed=0)"


def _training(run: Path) -> dict[str, Any]:
    """What a run's config says that may be published: settings, and the last part of paths."""
    config = read_yaml_file(run / "config.yaml")
    found = {name.replace("_", " "): config[name] for name in SETTINGS if name in config}
    for key in TRAINED_ON:
        first, _, second = key.partition(".")
        if second and config.get("cache"):
            continue  # the clips are those of the cache
        value = config.get(first)
        value = value.get(second) if second and isinstance(value, dict) else value
        if isinstance(value, str):
            found[key] = Path(value).name
    for part in ("optimizer", "lora"):
        values = config.get(part)
        if isinstance(values, dict):
            of_part = ("learning_rate", "rank")
            found |= {f"{part} {key}": values[key] for key in of_part if values.get(key)}
    return found


def _last_validation(run: Path) -> dict[str, Any]:
    """The measures of the last validation in a run's log, and its step; empty without one."""
    found: dict[str, Any] = {}
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n"):
            break  # a run that was killed while it wrote
        record = json.loads(line)
        measures = {
            name.removeprefix("validation/"): f"{value:.4g}"
            for name, value in record.items()
            if name.startswith("validation/") and isinstance(value, int | float)
        }
        if measures:
            found = {"step": record["step"], **measures}
    return found


def _table(rows: dict[str, Any]) -> str:
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|-|-|", *lines])
