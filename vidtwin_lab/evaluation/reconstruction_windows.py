"""The measures of each window, and their means over videos.

Axes: B batch, C channels, T frames, H W pixels, N windows, D features, R resamples.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidtwin import VidTwinAutoencoder, VidTwinLatents
from vidtwin.data import DataConfig
from vidtwin.media import from_uint8, to_uint8
from vidtwin.metrics import Lpips, blockiness, psnr, ssim
from vidtwin.reconstruction import DECODED_PARTS, METRICS
from vidtwin_lab.evaluation.codec import (
    curve_at,
    decode_h264,
    encode_h264,
    formats_for,
    quantize,
    reencoded,
)
from vidtwin_lab.evaluation.config import CodecConfig, crf_of
from vidtwin_lab.evaluation.cosines import lowest_frequencies
from vidtwin_lab.evaluation.features import FeatureExtractor, check_finite
from vidtwin_lab.evaluation.intervals import mean_interval
from vidtwin_lab.evaluation.measurement_configs import ReconstructionConfig
from vidtwin_lab.evaluation.statistics import (
    GaussianStatistics,
    bootstrap_estimate,
    frechet_distance,
    metric_name,
    resampling_counts,
    weighted_frechet_distances,
)
from vidtwin_lab.evaluation.windows import Window

logger = logging.getLogger(__name__)
# What is decoded, and the ending of its columns.
ENDINGS = {"reconstruction": "", "structure": "_structure", "dynamics": "_dynamics"}


class Metrics:
    """PSNR, SSIM and LPIPS of pairs; one that can't be had has a reason instead.

    Args:
        config: names the LPIPS net.
        model: gives the size of a frame.
        device: where LPIPS works.
    """

    def __init__(
        self, config: ReconstructionConfig, model: VidTwinAutoencoder, device: torch.device
    ) -> None:
        self.reasons: dict[str, str] = {}
        self.lpips: Lpips | None = None
        frame = torch.zeros(1, 3, 1, model.sizes.height, model.sizes.width)
        try:
            ssim(frame, frame)
        except ValueError as error:
            self.reasons["ssim"] = str(error)
        self.patch = model.sizes.patch_size[1:]
        try:
            blockiness(frame, self.patch)
        except ValueError as error:
            self.reasons["blockiness"] = str(error)
        if config.lpips is None:
            self.reasons["lpips"] = "off"
            return
        try:
            self.lpips = Lpips(config.lpips).to(device)
        except ValueError as error:
            # The message names folders of this machine; the report must not.
            logger.warning("no LPIPS: %s", error)
            self.reasons["lpips"] = f"the weights of the net {config.lpips} could not be loaded"
            return
        try:
            self.lpips(frame.to(device), frame.to(device))
        except ValueError as error:
            self.reasons["lpips"] = str(error)

    def of(
        self, video: Tensor, other: Tensor, names: Sequence[str] = ("psnr", "ssim")
    ) -> dict[str, list[float]]:
        """The values of each window, (B, 3, T, H, W) in [-1, 1], by the metrics that can be had."""
        values: dict[str, list[float]] = {}
        for name in names:
            if name in self.reasons:
                continue
            if name == "lpips":
                assert self.lpips is not None
                value = self.lpips(video, other)
            else:
                value = {"psnr": psnr, "ssim": ssim}[name](video, other)
            values[name] = value.tolist()
        return values


@dataclass(frozen=True, eq=False)
class WindowMeter:
    """Measures batches of windows.

    Args:
        config: what to measure.
        model: in evaluation mode, on its device.
        metrics: on the same.
        extractor: of rFVD's features; None for none.
        shown: places of windows that are kept to be looked at.
    """

    config: ReconstructionConfig
    model: VidTwinAutoencoder
    metrics: Metrics
    extractor: FeatureExtractor | None
    shown: Collection[int] = ()

    @property
    def pixels(self) -> int:
        """Pixels of a window."""
        return pixels_of(self.model)

    @torch.no_grad()
    def rows(self, batch: dict[str, Any], windows: Sequence[Window]) -> list[dict[str, Any]]:
        """One row for each window: identity, "values" (column -> number), "features",
        and "frames" (name -> uint8 video) where it is shown.

        Args:
            batch: of `iterate_windows`.
            windows: all of them.
        Raises:
            ValueError: if a reconstruction is not finite, naming the video.
        """
        video = batch["video"].to(self.model.device)
        columns: dict[str, list[float]] = {}
        latents = self.model.encode(video).mode()
        made: dict[str, Tensor] = {}
        for name, ending in ENDINGS.items():
            made[ending] = self.model.decode(latents, DECODED_PARTS[name]).float()
            check_finite(made[ending], batch["path"], "reconstructions")
            for metric, values in self.metrics.of(video, made[ending], METRICS).items():
                columns[metric + ending] = values
        if "blockiness" not in self.metrics.reasons:
            for ending, frames in (("", made[""]), ("_original", video)):
                ratios = blockiness(frames, self.metrics.patch)
                columns[f"blockiness{ending}"] = ratios.tolist()
        if self.config.dct:
            plain = lowest_frequencies(video, self.model.sizes.numel_per_clip)
            for metric, values in self.metrics.of(video, plain, METRICS).items():
                columns[f"{metric}_dct"] = values
        for bits in self.config.bits:
            self._add_quantized(columns, video, latents, bits)
        crf = crf_of(self.config.reencode)
        if crf is not None:
            self._add_reencoded(columns, video, made[""], batch["fps"].tolist(), crf)
        if self.config.codec is not None:
            self._add_codec(columns, video, batch["fps"].tolist(), self.config.codec)
        features: list[Any] = [None] * len(video)
        if self.extractor is not None:
            pairs = [self.extractor(video), self.extractor(made[""])]
            for each in pairs:
                check_finite(each, batch["path"])
            features = list(torch.stack(pairs, 1).cpu().numpy())  # B of (2, D)
        return [
            {
                "index": index,
                "video": windows[index].video,
                "path": batch["path"][place],
                "reader": batch["backend"][place],
                "values": {name: values[place] for name, values in columns.items()},
                "features": features[place],
                "frames": self._frames(video[place], made, place) if index in self.shown else {},
            }
            for place, index in enumerate(batch["index"].tolist())
        ]

    def _frames(self, video: Tensor, made: dict[str, Tensor], place: int) -> dict[str, Any]:
        """The window and what was made of it, to be looked at."""
        rows = {name: to_uint8(made[ending][place]) for name, ending in ENDINGS.items()}
        return {"input": to_uint8(video), **rows}

    def _add_quantized(
        self, columns: dict[str, list[float]], video: Tensor, latents: VidTwinLatents, bits: int
    ) -> None:
        """Quality and size of the latents at this many bits."""
        quantized = quantize(latents, bits)
        decoded = self.model.decode(quantized.latents).float()
        for name, values in self.metrics.of(video, decoded).items():
            columns[f"{name}_{bits}bit"] = values
        columns[f"bpp_{bits}bit"] = [size / self.pixels for size in quantized.bits]
        columns[f"bpp_{bits}bit_lzma"] = [size / self.pixels for size in quantized.lzma_bits]

    def _add_reencoded(
        self,
        columns: dict[str, list[float]],
        video: Tensor,
        made: Tensor,
        fps: Sequence[float],
        crf: int,
    ) -> None:
        """What is left of a reconstruction that was written as a file and read again."""
        read = [reencoded(one, rate, crf) for one, rate in zip(made, fps, strict=True)]
        again = torch.stack(read).to(video.device)
        for name, values in self.metrics.of(video, again, METRICS).items():
            columns[f"{name}_reencoded"] = values

    def _add_codec(
        self,
        columns: dict[str, list[float]],
        video: Tensor,
        fps: Sequence[float],
        codec: CodecConfig,
    ) -> None:
        """Quality and size of H.264 at each CRF in each pixel format."""
        frames = [to_uint8(one) for one in video]
        for pixel_format in formats_for(codec, *video.shape[-2:]):
            for crf in codec.crfs:
                streams = [
                    encode_h264(one, rate, crf, pixel_format, preset=codec.preset, tune=codec.tune)
                    for one, rate in zip(frames, fps, strict=True)
                ]
                decoded = torch.stack([from_uint8(decode_h264(stream)) for stream in streams])
                name = column_of(pixel_format, crf)
                columns[f"bpp_{name}"] = [8 * len(stream) / self.pixels for stream in streams]
                for metric, values in self.metrics.of(video, decoded.to(video.device)).items():
                    columns[f"{metric}_{name}"] = values


def column_of(pixel_format: str, crf: int) -> str:
    """How columns call a point of H.264's curve."""
    return f"h264_{pixel_format}_crf{crf}"


def pixels_of(model: VidTwinAutoencoder) -> int:
    """Pixels of a window."""
    return math.prod(model.sizes.video_shape[1:])


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
    found["blockiness"] = mean("blockiness")
    found["blockiness_original"] = mean("blockiness_original")
    if config.dct:
        found["dct"] = means(METRICS, "_dct")
        for name in ("psnr", "ssim"):
            ahead = [video["values"].get(name) for video in videos]
            others = [video["values"].get(f"{name}_dct") for video in videos]
            if None not in ahead:
                gaps = [one - other for one, other in zip(ahead, others, strict=True)]
                interval = mean_interval(gaps, resamples=config.resamples, seed=config.seed)
                found["dct"][f"{name}_latents_ahead_by"] = interval
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
    name = metric_name("rFVD", len(features), extractor.name)
    return {"name": name, **bootstrap_estimate(value, replicates, len(features), 0.0)}
