"""The scorecard of a split into structure and dynamics: five measurements, a table, a figure."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vidtwin import VidTwinAutoencoder, load_autoencoder, weights_digest
from vidtwin.data import DataConfig, Factors, VideoDataset, build_dataset
from vidtwin_lab.evaluation.disentanglement.clips import (
    LATENTS,
    RULE,
    Clips,
    choose_clips,
    choose_factors,
    draw_pairs,
    encode_clips,
    groups_of,
)
from vidtwin_lab.evaluation.disentanglement.config import DisentanglementConfig
from vidtwin_lab.evaluation.disentanglement.figure import Line, draw_scorecard
from vidtwin_lab.evaluation.disentanglement.probes import (
    ProbeResult,
    Retrieval,
    mean_probe,
    mean_retrieval,
    prepare,
    retrieve,
    run_probe,
    similarities,
)
from vidtwin_lab.evaluation.disentanglement.sampling import (
    pipeline_of,
    sample_videos,
    sampling_found,
    sampling_rows,
)
from vidtwin_lab.evaluation.disentanglement.swaps import (
    HOLDER,
    Swap,
    consistency,
    swap_accuracy,
    swap_pairs,
    swap_rows,
)
from vidtwin_lab.evaluation.judges.choice import Judge, build_judge
from vidtwin_lab.evaluation.report import (
    Processes,
    Report,
    data_protocol,
    fields_of,
    merge_skipped,
    model_protocol,
    software_protocol,
)

__all__ = ["describe", "measure"]

Found = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Subject:
    """What is measured: an autoencoder, on clips of a data set, by a judge."""

    config: DisentanglementConfig
    model: VidTwinAutoencoder
    data: DataConfig
    dataset: VideoDataset
    factors: Factors
    judge: Judge


def describe(config: DisentanglementConfig) -> Found:
    """What would be measured; reads no video."""
    subject = _subject(config, Processes())
    chosen, unlabelled = choose_clips(subject.dataset, subject.factors, config)
    sizes = subject.model.sizes
    videos = 2 * config.sampling.clips * config.sampling.videos_per_clip
    return {
        "autoencoder": {
            "path": config.autoencoder,
            "structure": sizes.structure_shape,
            "dynamics_x": sizes.dynamics_x_shape,
            "dynamics_y": sizes.dynamics_y_shape,
            "compression_rate": sizes.compression_rate,
        },
        "clips": len(chosen),
        "clips_without_labels": len(unlabelled),
        "pairs": f"up to {config.pairs}",
        "content": {name: len(names) for name, names in subject.factors.content.items()},
        "motion": {name: len(names) for name, names in subject.factors.motion.items()},
        "judge": config.judge,
        "sampled_videos": videos if config.pipeline is not None else 0,
    }


def measure(config: DisentanglementConfig, processes: Processes) -> Report:
    """The scorecard of an autoencoder.

    Args:
        config: what to measure.
        processes: that share the work.
    Returns:
        Report: with a line of the CSV for each pair and each sampled video.
    Raises:
        ValueError: for parts that don't fit each other, or data that are too few.
    """
    subject = _subject(config, processes)
    pipe = None
    if config.pipeline is not None:
        pipe = pipeline_of(subject.model, config.pipeline)
    chosen, unlabelled = choose_clips(subject.dataset, subject.factors, config)
    clips, skipped = encode_clips(
        subject.model,
        subject.dataset,
        chosen,
        subject.judge,
        processes,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
    )
    swaps, alone = _swap(subject, clips, processes)
    found, rows = _find(subject, clips, swaps, pipe, processes)
    lines = scorecard(found)
    counts = {"clips": len(clips), "pairs": len(swaps), "clips_without_partner": alone}
    return Report(
        name="disentanglement",
        protocol=_protocol(subject, pipe, counts, processes),
        found={"scorecard": {line.name: line.as_dict() for line in lines}, **found},
        rows=rows,
        skipped=merge_skipped([*skipped, *unlabelled]),
        markdown=_markdown(subject, counts, lines),
        draw=_drawing(subject, clips, swaps, lines),
    )


def _swap(subject: Subject, clips: Clips, processes: Processes) -> tuple[list[Swap], int]:
    """The swapped pairs, and how many clips have no partner."""
    config = subject.config
    codes = np.stack([clips.labels[name] for name in subject.factors.all], axis=1)
    pairs = draw_pairs(codes, config.pairs, config.seed)
    swaps = swap_pairs(
        subject.model,
        clips,
        pairs.places,
        subject.judge,
        processes,
        batch_size=config.batch_size,
        examples=config.examples,
    )
    return swaps, len(pairs.without_partner)


def _find(
    subject: Subject, clips: Clips, swaps: Sequence[Swap], pipe: Any, processes: Processes
) -> tuple[Found, list[dict[str, Any]]]:
    """The five measurements, and the lines of the CSV."""
    config, factors = subject.config, subject.factors
    found: Found = {
        "swap": swap_accuracy(clips, swaps, factors),
        "consistency": consistency(clips, swaps),
        "probes": _probes(clips, factors, config, processes),
        "retrieval": _retrieval(clips, factors),
        "generation": {"reason": "no pipeline was given"},
    }
    rows = swap_rows(clips, swaps, factors.all)
    if pipe is not None:
        sampled = sample_videos(pipe, clips, subject.judge, processes, config.sampling, config.seed)
        found["generation"] = sampling_found(clips, sampled, factors, config.seed)
        rows += sampling_rows(clips, sampled, factors.all)
    return found, rows


def scorecard(found: Mapping[str, Any]) -> list[Line]:
    """The numbers of the table and the figure, each with its chance level and its ceiling."""
    return [
        *_swap_lines(found["swap"]),
        *_consistency_lines(found["consistency"]),
        *_probe_lines(found["probes"]),
        *_retrieval_lines(found["retrieval"]),
        *_sampling_lines(found["generation"]),
    ]


def _subject(config: DisentanglementConfig, processes: Processes) -> Subject:
    model, _ = load_autoencoder(config.autoencoder)
    model = model.float().eval().to(processes.device)
    data = config.data_for(model.sizes)
    dataset = build_dataset(data)
    factors = choose_factors(dataset, config.factors)
    judge = build_judge(config.judge, factors, data.source, processes.device)
    return Subject(config, model, data, dataset, factors, judge)


def _probes(
    clips: Clips, factors: Factors, config: DisentanglementConfig, processes: Processes
) -> Found:
    """Every factor from every latent."""
    groups = _groups(factors)
    tasks = [
        (latent, group, name)
        for latent, (group, names) in itertools.product(LATENTS, groups.items())
        for name in names
    ]
    mine = processes.share(list(enumerate(tasks)))
    prepared = {
        latent: prepare(clips.latents[latent], config.probes, config.seed)
        for latent in {latent for _, (latent, _, _) in mine}
    }
    rows = [
        {
            "index": number,
            "result": run_probe(prepared[latent], clips.labels[name], config.probes, config.seed),
        }
        for number, (latent, _, name) in mine
    ]
    results: list[ProbeResult] = [row["result"] for row in processes.gather_sorted(rows)]
    by_task = dict(zip(tasks, results, strict=True))
    found: Found = {}
    for latent, (group, names) in itertools.product(LATENTS, groups.items()):
        own = {name: by_task[latent, group, name] for name in names}
        found[f"{group}_from_{latent}"] = {
            **{name: result.found for name, result in own.items()},
            "mean": mean_probe(list(own.values())),
        }
    found["gap"] = {
        name: _gap(
            by_task[HOLDER[group], group, name].found,
            by_task[_other(HOLDER[group]), group, name].found,
        )
        for group, names in groups.items()
        for name in names
    }
    return found


def _gap(wanted: Found, leaked: Found) -> float:
    """Bits that a probe gets of a factor from the latent that should hold it, less those from the
    other, as a share of the labels' bits: 1 if only the right latent holds it, 0 if both do.

    Source: after the mutual information gap (Chen et al., arXiv 1802.04942), which compares the
    two best entries of a latent and trains no probe.
    """
    return float((max(0.0, wanted["bits"]) - max(0.0, leaked["bits"])) / wanted["bits_of_labels"])


def _retrieval(clips: Clips, factors: Factors) -> Found:
    found: Found = {}
    for latent in LATENTS:
        similarity = similarities(clips.latents[latent])
        for group, names in _groups(factors).items():
            own: dict[str, Retrieval] = {
                name: retrieve(similarity, clips.labels[name]) for name in names
            }
            found[f"{group}_by_{latent}"] = {
                **{name: result.found() for name, result in own.items()},
                "mean": mean_retrieval(list(own.values())),
            }
    return found


def _groups(factors: Factors) -> dict[str, tuple[str, ...]]:
    """Content and motion, where the data have labels of them."""
    return {group: names for group, names in groups_of(factors).items() if names}


def _other(latent: str) -> str:
    return next(name for name in LATENTS if name != latent)


def _swap_lines(found: Mapping[str, Any]) -> list[Line]:
    lines = []
    for group, own, other in (("content", "A", "B"), ("motion", "B", "A")):
        if "all" not in found[group]:
            continue
        every = found[group]["all"]
        ceiling = every["reconstruction"]["value"]
        lines.append(Line(f"swap: {group} of {own}", every["swap"], every["chance"], ceiling, True))
        lines.append(
            Line(f"swap: {group} of {other} instead", every["other"], every["chance"], None, False)
        )
    return lines


def _consistency_lines(found: Mapping[str, Any]) -> list[Line]:
    return [
        Line(
            f"encoded again: {latent} (cosine)",
            found[latent]["kept"],
            found[latent]["unrelated"]["kept"]["value"],
            found[latent]["reconstruction"]["kept"]["value"],
            True,
        )
        for latent in LATENTS
    ]


def _probe_lines(found: Mapping[str, Any]) -> list[Line]:
    return [
        Line(
            f"probe: {group} from {latent}",
            mean["accuracy"],
            # The better of the two ways of knowing nothing.
            float(max(mean["majority"], mean.get("permuted", 0.0))),
            None,
            HOLDER[group] == latent,
        )
        for group, latent, mean in _means(found, "_from_")
    ]


def _retrieval_lines(found: Mapping[str, Any]) -> list[Line]:
    return [
        Line(
            f"nearest by {latent}: same {group}",
            mean["precision_at_1"],
            mean["precision_by_chance"],
            None,
            HOLDER[group] == latent,
        )
        for group, latent, mean in _means(found, "_by_")
        if "precision_at_1" in mean
    ]


def _means(found: Mapping[str, Any], word: str) -> list[tuple[str, str, Mapping[str, Any]]]:
    """(group, latent, mean over the factors): first what is wanted, then what leaks."""
    pairs = [(group, latent) for group in HOLDER for latent in LATENTS]
    pairs.sort(key=lambda pair: HOLDER[pair[0]] != pair[1])
    keys = {(group, latent): f"{group}{word}{latent}" for group, latent in pairs}
    return [(*pair, found[key]["mean"]) for pair, key in keys.items() if key in found]


def _sampling_lines(found: Mapping[str, Any]) -> list[Line]:
    lines = []
    for group, latent in HOLDER.items():
        kept = found.get(latent, {}).get("kept", {})
        if "all" in kept:
            name, ceiling = f"sampled to held {latent}: {group} kept", kept["all"]["reconstruction"]
            lines.append(Line(name, kept["all"]["kept"], None, ceiling["value"], True))
    return lines


def _protocol(
    subject: Subject, pipe: Any, counts: dict[str, int], processes: Processes
) -> dict[str, Any]:
    config = subject.config
    sampling = None
    if pipe is not None:
        sampling = {
            "pipeline": config.pipeline,
            "transformer_digest": weights_digest(pipe.transformer),
            "scheduler": type(pipe.scheduler).__name__,
            **fields_of(config.sampling, "steps", "given_guidance_scale"),
            "clips": min(config.sampling.clips, counts["clips"]),
            "videos_per_clip": config.sampling.videos_per_clip,
            "seeds": "seed + place of the clip * videos_per_clip + number of the video",
        }
    return {
        **model_protocol(config.autoencoder, subject.model),
        "posterior": "mode",
        "data": data_protocol(subject.data, counts["clips"]),
        "samples": f"{counts['clips']} clips drawn by the seed from {len(subject.dataset)}",
        "content": dict(subject.factors.content),
        "motion": dict(subject.factors.motion),
        **subject.judge.protocol(),
        "pairs": {"rule": RULE, **counts},
        "latents": {
            "structure": "the structure's values",
            "dynamics": "the values of dynamics_x and dynamics_y together",
            "compared_as": "deviations from the mean over all clips, not divided by their spread",
        },
        "probes": config.probes,
        "sampling": sampling,
        **fields_of(config, "batch_size", "seed"),
        **software_protocol(processes),
    }


def _markdown(
    subject: Subject, counts: dict[str, int], lines: Sequence[Line]
) -> list[tuple[str, str]]:
    """Autoencoder, data and every line of the scorecard, (chance) where there is one."""
    head = [
        ("autoencoder", subject.config.autoencoder),
        ("data", f"{subject.data.source}, {subject.data.part}"),
        ("clips", str(counts["clips"])),
        ("pairs", str(counts["pairs"])),
    ]
    return [*head, *((line.name, line.as_text()) for line in lines)]


def _drawing(subject: Subject, clips: Clips, swaps: Sequence[Swap], lines: Sequence[Line]) -> Any:
    shown = [swap for swap in swaps if swap["video"] is not None]

    def draw(path: Path) -> None:
        originals = [
            tuple(subject.dataset.get(clips.index[place])["video"] for place in swap["pair"])
            for swap in shown
        ]
        draw_scorecard(lines, originals, [swap["video"] for swap in shown], path)

    return draw
