"""How much of what was asked for a pipeline shows, on the moving shapes, by two judges: that of
pixels, whose templates allow for soft outlines, and that of outlines, which doesn't.

Modes, each judged on the attributes that were asked for or that were to be kept:
    prompt          videos of captions: colour, shape, motion, background
    structure-from  a rendered clip's structure, sampled dynamics: colour, shape, background
    dynamics-from   a rendered clip's dynamics, sampled structure: motion
    reconstruction  clips through the autoencoder alone: what the other modes can reach

Axes: B batch, T frames, H W pixels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from diffusion import VidTwinPipeline
from diffusion.guiders import build_guider
from diffusion.inputs import lead_steps
from diffusion.pipeline_files import pipeline_folder
from vidtwin import VidTwinAutoencoder
from vidtwin.data.synthetic.shapes import MovingShapes, ShapesAttributes, ShapesClip, ShapesConfig
from vidtwin.media import contact_sheet, from_uint8, to_uint8
from vidtwin.reconstruction import load_autoencoder
from vidtwin_lab.evaluation.config import autoencoder_path
from vidtwin_lab.evaluation.intervals import interval_text, mean_interval, share_interval
from vidtwin_lab.evaluation.judges.outline_judge import judge_outlines
from vidtwin_lab.evaluation.judges.shapes_judge import Judgement, judge_video
from vidtwin_lab.evaluation.measurement_configs import OBJECT, AdherenceConfig
from vidtwin_lab.evaluation.pipelines import load_pipeline, own_unless, parts_digests
from vidtwin_lab.evaluation.report import (
    COLORS,
    Processes,
    Report,
    batches_of,
    fields_of,
    new_figure,
    rounded,
    save_figure,
    software_protocol,
)

__all__ = ["describe", "measure"]

FAILURES_SHOWN = 16
EXTENT = ("size", "speed")  # judged by outlines alone, where they are asked for
MEASURES = ("overlap", "distance", "farthest", "roundness", "flicker")


def shapes_of(config: AdherenceConfig, model: VidTwinAutoencoder) -> MovingShapes:
    """The clips that are asked for, in the model's sizes."""
    sizes = model.sizes
    return MovingShapes(
        ShapesConfig(
            num_frames=sizes.num_frames,
            height=sizes.height,
            width=sizes.width,
            size=config.samples,
            seed=config.seed,
            max_objects=config.max_objects,
            without_background_fraction=float(config.without_background),
            split=config.split,
            wordings=config.wordings,
            sized_fraction=config.sized_fraction,
            paced_fraction=config.paced_fraction,
        )
    )


class Loaded(NamedTuple):
    """What makes the videos; `pipe` is None where the autoencoder alone does."""

    pipe: VidTwinPipeline | None
    model: VidTwinAutoencoder


def load(config: AdherenceConfig, device: torch.device | str = "cpu") -> Loaded:
    """The pipeline, unless the mode needs none, and the autoencoder; in float32.

    Raises:
        ValueError: if they aren't there, or the pipeline reads no prompts and shall.
    """
    if config.mode == "reconstruction":
        model, _ = load_autoencoder(autoencoder_path(config.pipeline))
        torch.nn.Module.to(model, device)
        return Loaded(None, model.float().eval())
    if not (pipeline_folder(config.pipeline) / "model_index.json").is_file():
        raise ValueError(
            f"{config.pipeline} is no pipeline: expected a run folder of train_diffusion.py, or a "
            "folder with model_index.json"
        )
    pipe = load_pipeline(config.pipeline, device)
    if config.mode == "prompt" and pipe.text_encoder is None:
        raise ValueError(
            f"{config.pipeline} has no text encoder and reads no prompts; choose another mode, "
            "or a pipeline that does"
        )
    return Loaded(pipe, pipe.autoencoder)


def describe(config: AdherenceConfig) -> dict[str, Any]:
    """What would be measured, and the first things that would be asked for."""
    loaded = load(config)
    data = shapes_of(config, loaded.model)
    return {
        "mode": config.mode,
        "judged": config.judged,
        "samples": len(data),
        "weights_digest": digests(loaded),
        "examples": [data.captions(index, 1)[0] for index in range(min(3, len(data)))],
    }


def measure(config: AdherenceConfig, processes: Processes) -> Report:
    """Makes the videos and judges them; every process takes part, each gets the whole report."""
    loaded = load(config, processes.device)
    loaded.model.requires_grad_(False)
    data = shapes_of(config, loaded.model)
    mine: list[dict[str, Any]] = []
    batches = processes.share(batches_of(len(data), config.batch_size))
    for indices in tqdm(batches, unit="batch", disable=not processes.main):
        mine += judge_batch(config, loaded, data, indices)
    keep_failures(mine)
    records = processes.gather_sorted(mine)
    keep_failures(records)
    rows = [record["row"] for record in records]
    found: dict[str, Any] = {"all_videos": summarize(rows, config.judged)}
    for number in (1, 2):
        chosen = [record["row"] for record in records if record["objects"] == number]
        if chosen and config.max_objects > 1:
            found[f"of_{number}_objects"] = summarize(chosen, config.judged)
    found["outlines"] = summarize_outlines(records, config)
    found["confusions_one_object"] = confusions(records, config.judged)
    failures = {record["title"]: record["video"] for record in records if "video" in record}
    return Report(
        name="adherence",
        protocol=protocol_of(config, data, loaded, processes),
        found=found,
        rows=rows,
        markdown=markdown_row(config, found),
        draw=partial(draw, config, found["all_videos"]),
        pictures={"failures": partial(contact_sheet, failures)} if failures else {},
    )


def judge_batch(
    config: AdherenceConfig, loaded: Loaded, data: MovingShapes, indices: Sequence[int]
) -> list[dict[str, Any]]:
    """A record for each video: "index", "row" for the CSV, what is needed to sum up, the video."""
    clips = [data.clip(index) for index in indices]
    seeds = [config.seed + index for index in indices]
    videos = make_videos(config, loaded, clips, seeds)
    match_by = [name for name in config.judged if name in OBJECT]
    records = []
    for index, seed, clip, video in zip(indices, seeds, clips, videos, strict=True):
        attributes = clip.attributes
        seen = judge_video(video, len(attributes.objects))
        verdict = seen.against(attributes, match_by)
        right = {name: int(verdict[name]) for name in config.judged}
        asked = in_words(attributes.objects, attributes.background)
        row = {
            "index": index,
            "seed": seed,
            "caption": clip.caption,
            "asked": asked,
            "texture": attributes.texture,
            "seen": in_words(seen.objects, seen.background),
            **right,
            "all": int(all(right.values())),
            "number": int(len(judge_video(video).objects) == len(attributes.objects)),
        }
        outlined = judge_outlines(video, len(attributes.objects))
        row |= outline_columns(outlined, attributes, config.judged)
        records.append(
            {
                "index": index,
                "row": row,
                "objects": len(attributes.objects),
                "each": [
                    {name: getattr(asked, name) == getattr(found, name) for name in match_by}
                    for asked, found in outlined.paired(attributes, match_by)
                ],
                "confused": confused(attributes, seen, config.judged),
                "title": f"{index} {asked}",
                "video": video,
            }
        )
    return records


def outline_columns(
    seen: Judgement, attributes: ShapesAttributes, names: Sequence[str]
) -> dict[str, Any]:
    """What the judge of outlines says of a video: columns of the CSV."""
    match_by = [name for name in names if name in OBJECT]
    verdict: dict[str, Any] = seen.against(attributes, match_by)
    right: dict[str, Any] = {name: int(verdict[name]) for name in names}
    pairs = seen.paired(attributes, match_by)
    for name in EXTENT:
        asked = [(one, other) for one, other in pairs if getattr(one, name) is not None]
        # The latent that is given decides what is kept: of the dynamics, the speed.
        if asked and ("color" if name == "size" else "motion") in names:
            right[name] = int(
                all(getattr(one, name) == getattr(other, name, None) for one, other in asked)
            )
    right = {**right, "all": int(all(right.values()))}
    measured = {}
    for name in MEASURES:
        values = [getattr(other, name, math.nan) for _, other in pairs]
        measured[name] = float(np.mean(values)) if np.isfinite(values).all() else None
    columns = (*names, *EXTENT, "all")
    return {f"outline_{name}": right.get(name) for name in columns} | {
        f"outline_{name}": value for name, value in measured.items()
    }


def summarize_outlines(
    records: Sequence[Mapping[str, Any]], config: AdherenceConfig
) -> dict[str, Any]:
    """The shares by the judge of outlines, those of every object by itself, and the means of what
    it measures over the videos in which it could."""
    rows = [record["row"] for record in records]
    found: dict[str, Any] = {}
    for name in (*config.judged, *EXTENT, "all"):
        told = [row[f"outline_{name}"] for row in rows if row[f"outline_{name}"] is not None]
        if told:
            found[name] = share_interval(sum(told), len(told))
    of_two = [each for record in records if record["objects"] == 2 for each in record["each"]]
    if of_two:
        found["each_object_of_two"] = {
            name: share_interval(sum(each[name] for each in of_two), len(of_two))
            for name in of_two[0]
        } | {"all": share_interval(sum(all(each.values()) for each in of_two), len(of_two))}
    for name in MEASURES:
        values = [row[f"outline_{name}"] for row in rows]
        found[name] = mean_interval([value for value in values if value is not None])
    return found


@torch.no_grad()
def make_videos(
    config: AdherenceConfig, loaded: Loaded, clips: Sequence[ShapesClip], seeds: list[int]
) -> list[NDArray[np.uint8]]:
    """One (T, H, W, 3) video for each clip, from the noise of its own seed."""
    model = loaded.model
    originals = torch.stack([from_uint8(clip.video) for clip in clips]).to(model.device)
    if loaded.pipe is None:
        return [to_uint8(video) for video in model.decode(model.encode(originals).mode())]
    sampling: dict[str, Any] = {"num_inference_steps": config.steps, "seed": seeds}
    if config.mode == "prompt":
        sampling["prompt"] = [clip.caption for clip in clips]
        if config.guider is None:
            sampling["guidance_scale"] = config.guidance_scale
        else:
            sampling["guider"] = build_guider(config.guider, config.guidance_scale)
        sampling["structure_lead"] = config.structure_lead
    else:
        sampling[config.mode.removesuffix("-from")] = originals
        sampling["given_guidance_scale"] = config.given_guidance_scale
    output: Any = loaded.pipe(**sampling, output_type="pt")
    return [to_uint8(2 * video - 1) for video in output.videos]


def keep_failures(records: Sequence[dict[str, Any]]) -> None:
    """Drops the videos but for the first that either judge found wrong."""
    shown = 0
    for record in records:
        right = record["row"]["all"] and record["row"]["outline_all"]
        if right or shown >= FAILURES_SHOWN:
            record.pop("video", None)
        else:
            shown += 1


def in_words(objects: Sequence[Any], background: str | None) -> str:
    """Objects and background in one cell."""
    each = [f"{item.color}/{item.shape}/{item.motion}" for item in objects]
    return "; ".join([*each, f"on {background}"])


def confused(
    attributes: ShapesAttributes, seen: Judgement, names: Sequence[str]
) -> list[tuple[str, str]]:
    """(attribute, "asked -> seen") where they differ, for a clip of one object."""
    if len(attributes.objects) > 1:
        return []
    pairs = []
    for name in names:
        holders: tuple[Any, Any] = (attributes, seen)
        if name in OBJECT:
            holders = (attributes.objects[0], seen.objects[0])
        asked, came = (getattr(holder, name) for holder in holders)
        if asked != came:
            pairs.append((name, f"{asked} -> {came}"))
    return pairs


def confusions(
    records: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[str, dict[str, int]]:
    """How often each attribute was taken for which other one, most frequent first."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    for record in records:
        for name, what in record["confused"]:
            counts[name][what] += 1
    return {name: dict(count.most_common()) for name, count in counts.items()}


def summarize(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The share of each attribute, of all of them together, and of the videos in which the judge,
    if it isn't told, counts as many objects as were asked for."""
    return {
        name: share_interval(sum(row[name] for row in rows), len(rows))
        for name in (*names, "all", "number")
    }


def digests(loaded: Loaded) -> dict[str, str]:
    """Part -> digest of its weights."""
    if loaded.pipe is None:
        return parts_digests({"autoencoder": loaded.model})
    return parts_digests(loaded.pipe.components)


def protocol_of(
    config: AdherenceConfig, data: MovingShapes, loaded: Loaded, processes: Processes
) -> dict[str, Any]:
    """Everything that the figures depend on."""
    sampling: dict[str, Any] = {}
    if loaded.pipe is not None:
        used = "guidance_scale" if config.mode == "prompt" else "given_guidance_scale"
        sampling = {
            "steps": config.steps,
            "guidance_scale": None,
            "given_guidance_scale": None,
            used: own_unless(getattr(config, used), loaded.pipe, used),
            **lead_and_guider(config, loaded.pipe),
            "scheduler": type(loaded.pipe.scheduler).__name__,
        }
    sizes = loaded.model.sizes
    return {
        "metric": "share of videos in which vidtwin_lab.evaluation.judges.shapes_judge sees what "
        "was asked for, on uint8 frames; it is told how many objects there are, but for `number`",
        "outlines": "the same by vidtwin_lab.evaluation.judges.outline_judge; means over frames "
        "and videos of the overlap (IoU) with the ideal shape, the mean and the farthest distance "
        "of the outlines (pixels), roundness, and flicker (1 - IoU of aligned neighbours in time)",
        "checkpoint": config.pipeline,
        "weights_digest": digests(loaded),
        "mode": config.mode,
        "source": "shapes",
        **fields_of(config, "split", "wordings"),
        "n": len(data),
        "resolution": [sizes.height, sizes.width],
        "frames": sizes.num_frames,
        "config": rounded(data.config),
        **sampling,
        "posterior": "mode",
        "seed": config.seed,
        "seeds": [config.seed, config.seed + len(data) - 1],
        "batch_size": config.batch_size,
        "intervals": "95 %, Wilson",
        **software_protocol(processes),
    }


def lead_and_guider(config: AdherenceConfig, pipe: VidTwinPipeline) -> dict[str, Any]:
    """What else there is of the sampling, where there is anything else."""
    if config.mode != "prompt":
        return {}
    lead = own_unless(config.structure_lead, pipe, "structure_lead")
    own, delay = lead_steps(lead, config.steps)
    shown = {"structure_lead": lead, "structure_lead_of_steps": [delay, own]} if lead else {}
    return shown | ({"guider": config.guider} if config.guider else {})


def markdown_row(
    config: AdherenceConfig, found: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """The row of a table, shares in percent."""
    cells = [("mode", config.mode), ("split", config.split), ("n", str(config.samples))]
    for name, share in found["all_videos"].items():
        cells.append((name, interval_text(share, scale=100)))
    outlines = found["outlines"]
    shares = [name for name in (*config.judged, *EXTENT, "all") if name in outlines]
    cells += [(f"{name} by outlines", interval_text(outlines[name], scale=100)) for name in shares]
    return cells + [(name, interval_text(outlines[name], ".3f")) for name in ("overlap", "flicker")]


def draw(config: AdherenceConfig, found: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """The shares as bars with their intervals."""
    figure, (panel,) = new_figure()
    names = list(found)
    values = [100 * found[name]["value"] for name in names]
    errors = [
        [value - 100 * found[name]["low"] for name, value in zip(names, values, strict=True)],
        [100 * found[name]["high"] - value for name, value in zip(names, values, strict=True)],
    ]
    # A share of 1 has its interval's end at 1 less a rounding error.
    panel.bar(names, values, color=COLORS[0], yerr=np.maximum(errors, 0), capsize=3)
    panel.set(ylim=(0, 105), ylabel="right (%)", title=f"{config.mode}, n = {config.samples}")
    panel.tick_params(axis="x", rotation=30)
    save_figure(figure, path)
