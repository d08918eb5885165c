"""The measures of one window after another.

Axes: B batch, C channels, T frames, H W pixels, D features.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from vidtwin import VidTwinAutoencoder, VidTwinLatents
from vidtwin.media import from_uint8, to_uint8
from vidtwin.metrics import Lpips, psnr, ssim
from vidtwin.reconstruction import DECODED_PARTS, METRICS
from vidtwin_lab.evaluation.codec import (
    CodecConfig,
    crf_of,
    decode_h264,
    encode_h264,
    formats_for,
    quantize,
    reencoded,
)
from vidtwin_lab.evaluation.features import FeatureExtractor, check_finite
from vidtwin_lab.evaluation.reconstruction.config import ReconstructionConfig
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


class WindowMeter:
    """Measures batches of windows.

    Args:
        config: what to measure.
        model: in evaluation mode, on its device.
        metrics: on the same.
        extractor: of rFVD's features; None for none.
        shown: places of windows that are kept to be looked at.
    """

    def __init__(
        self,
        config: ReconstructionConfig,
        model: VidTwinAutoencoder,
        metrics: Metrics,
        extractor: FeatureExtractor | None,
        shown: Collection[int] = (),
    ) -> None:
        self.config, self.model, self.metrics = config, model, metrics
        self.extractor, self.shown = extractor, frozenset(shown)
        self.pixels = pixels_of(model)

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
