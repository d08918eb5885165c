"""From windows to videos, and from videos to the numbers of a report.

Axes: N windows, D features, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vidtwin.data import DataConfig
from vidtwin.reconstruction import METRICS
from vidtwin_lab.evaluation.codec import CodecConfig, curve_at, formats_for
from vidtwin_lab.evaluation.features import FeatureExtractor
from vidtwin_lab.evaluation.intervals import mean_interval
from vidtwin_lab.evaluation.reconstruction.config import ReconstructionConfig
from vidtwin_lab.evaluation.reconstruction.meter import column_of
from vidtwin_lab.evaluation.statistics import (
    GaussianStatistics,
    bootstrap_estimate,
    frechet_distance,
    metric_name,
    resampling_counts,
    weighted_frechet_distances,
)

# Columns that identify a row; all others are measured.
IDENTITY = ("index", "path", "windows", "reader")


def rows_of_videos(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each video: the means over its windows, in "values"."""
    by_video: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_video.setdefault(row["video"], []).append(row)
    return [
        {
            "index": video,
            "path": group[0]["path"],
            "windows": len(group),
            "reader": group[0]["reader"],
            "values": {
                name: math.fsum(row["values"][name] for row in group) / len(group)
                for name in group[0]["values"]
            },
        }
        for video, group in by_video.items()
    ]


def plain_row(video: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the CSV."""
    return {name: video[name] for name in IDENTITY} | video["values"]


def rates_of(config: ReconstructionConfig) -> list[str]:
    """Columns with the tokenizer's sizes, without "bpp_"."""
    return [f"{bits}bit{ending}" for bits in config.bits for ending in ("", "_lzma")]


def codec_curve(
    values: Mapping[str, float], codec: CodecConfig, pixel_format: str
) -> list[dict[str, float]]:
    """H.264's points of a video, or of means over videos: crf, bpp and the metrics."""
    points = []
    for crf in codec.crfs:
        name = column_of(pixel_format, crf)
        point = {metric: values.get(f"{metric}_{name}") for metric in ("bpp", "psnr", "ssim")}
        points.append({"crf": crf} | {key: each for key, each in point.items() if each is not None})
    return points


def add_codec_at_rates(
    videos: Sequence[dict[str, Any]], config: ReconstructionConfig, data: DataConfig
) -> None:
    """Adds to each video what H.264 reaches at the sizes of its quantised latents.

    A size that the curve doesn't reach gives None; "where" says on which side it lies.
    """
    if config.codec is None:
        return
    for video in videos:
        values = video["values"]
        video["where"], video["ahead"] = {}, {}
        for pixel_format in formats_for(config.codec, data.height, data.width):
            curve = codec_curve(values, config.codec, pixel_format)
            for rate in rates_of(config):
                at = f"h264_{pixel_format}_at_{rate}"
                for metric in ("psnr", "ssim"):
                    if metric not in curve[0]:
                        continue
                    quality, where = curve_at(curve, values[f"bpp_{rate}"], metric)
                    values[f"{metric}_{at}"] = quality
                    video["where"][at] = where
                    ours = values[f"{metric}_{rate.removesuffix('_lzma')}"]
                    video["ahead"][f"{metric}_{at}"] = None if quality is None else ours - quality


def summarize(
    videos: Sequence[Mapping[str, Any]], config: ReconstructionConfig, data: DataConfig
) -> dict[str, Any]:
    """The means over videos with their intervals, by what was decoded."""

    def mean(column: str, group: str = "values") -> dict[str, Any] | None:
        if column not in videos[0][group]:
            return None
        known = [video[group][column] for video in videos if video[group][column] is not None]
        return mean_interval(known, resamples=config.resamples, seed=config.seed)

    def means(names: Sequence[str], ending: str, group: str = "values") -> dict[str, Any]:
        return {name: mean(f"{name}{ending}", group) for name in names}

    found: dict[str, Any] = {
        "both": means(METRICS, ""),
        "structure_only": means(METRICS, "_structure"),
        "dynamics_only": means(METRICS, "_dynamics"),
        "quantized": {
            f"{bits}_bit": {
                **means(("psnr", "ssim"), f"_{bits}bit"),
                "bits_per_pixel": mean(f"bpp_{bits}bit"),
                "bits_per_pixel_lzma": mean(f"bpp_{bits}bit_lzma"),
            }
            for bits in config.bits
        },
    }
    if config.reencode is not None:
        found["reencoded"] = {"by": config.reencode, **means(METRICS, "_reencoded")}
    if config.codec is None:
        return found
    found["h264"] = {}
    for pixel_format in formats_for(config.codec, data.height, data.width):
        at = {}
        for rate in rates_of(config):
            name = f"h264_{pixel_format}_at_{rate}"
            where = [video["where"].get(name) for video in videos]
            at[rate] = {
                **means(("psnr", "ssim"), f"_{name}"),
                "latents_ahead_by": means(("psnr", "ssim"), f"_{name}", "ahead"),
                "videos_below_the_curve": where.count("below"),
                "videos_above_the_curve": where.count("above"),
            }
        averages = mean_values(videos)
        found["h264"][pixel_format] = {
            "curve": codec_curve(averages, config.codec, pixel_format),
            "at_the_size_of": at,
        }
    return found


def mean_values(videos: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Column -> mean over the videos, of columns that all of them have."""
    averages = {}
    for name in videos[0]["values"]:
        values = [video["values"][name] for video in videos]
        if all(value is not None for value in values):
            averages[name] = math.fsum(values) / len(values)
    return averages


def measure_distance(
    rows: Sequence[Mapping[str, Any]], extractor: FeatureExtractor, config: ReconstructionConfig
) -> dict[str, Any]:
    """The Fréchet distance between the features of the windows and of their reconstructions.

    Videos are resampled with all their windows, originals and reconstructions together.
    """
    features = np.stack([row["features"] for row in rows])  # (N, 2, D)
    if len(features) < 2:
        raise ValueError("rFVD needs at least 2 windows, got 1; more videos, or features=null")
    real, made = features[:, 0], features[:, 1]
    value = frechet_distance(GaussianStatistics.of(real), GaussianStatistics.of(made))
    videos = {video: place for place, video in enumerate(dict.fromkeys(r["video"] for r in rows))}
    counts = resampling_counts(len(videos), config.distance_resamples, config.seed, 1)
    counts = counts[:, [videos[row["video"]] for row in rows]]  # (R, N)
    counts = counts[(counts > 0).sum(1) >= 2]  # one window alone has no covariance
    replicates = weighted_frechet_distances(real, made, counts, counts)
    estimate = bootstrap_estimate(value, replicates, len(features), 0.0)
    return {"name": metric_name("rFVD", len(features), extractor.name), **estimate.found()}
