"""Reconstructs video files of any length and size, frame by frame: results and metrics.

Axes: B batch (1 here), C channels, T frames, H W pixels.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import tee
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from tqdm import tqdm

from vidtwin.autoencoder import VidTwinAutoencoder
from vidtwin.files import weights_digest
from vidtwin.latents import Part, VidTwinLatents
from vidtwin.media import (
    FrameSampler,
    VideoWriter,
    contact_sheet,
    from_uint8,
    thumbnail,
    to_uint8,
)
from vidtwin.metrics import METRICS, FrameMeans, Lpips
from vidtwin.reconstruction.inputs import OpenVideo, fit_uint8, open_video
from vidtwin.reconstruction.latent_files import save_windows
from vidtwin.reconstruction.video_paths import DECODED_PARTS, InputVideo
from vidtwin.tiling import (
    LatentWindow,
    Layout,
    iter_decode_windows,
    iter_encode_windows,
    tile_starts,
)

logger = logging.getLogger(__name__)

Frame = NDArray[np.uint8]
SHEET_COLUMNS = 8
MANY_WINDOWS = 100  # of a video, for which a smaller size is worth a thought


@dataclass(kw_only=True)
class Reconstructor:
    """Reconstructs one video after the other with the same model and options.

    Args:
        model: in evaluation mode, on its device.
        layout: how videos are cut into the model's windows.
        tile_batch_size: windows per forward pass.
        size: (H, W) to fit videos to; None keeps their own.
        fps: take frames at this lower rate; None takes all.
        max_frames: take the first frames only.
        save_latents: whether `run` also writes the latents.
        lpips: the perceptual distance, or None.
        lpips_reason: why `lpips` is None.
        resize_hint: how the caller may set `size`, told where a video takes many windows.
    """

    model: VidTwinAutoencoder
    layout: Layout
    tile_batch_size: int = 1
    size: tuple[int, int] | None = None
    fps: float | None = None
    max_frames: int | None = None
    save_latents: bool = False
    lpips: Lpips | None = None
    lpips_reason: str = "off"
    resize_hint: str | None = None

    def open(self, path: Path) -> OpenVideo:
        """The video's frames, selected and resized."""
        return open_video(path, self.fps, self.max_frames, self.size)

    def windows(self, opened: OpenVideo) -> tuple[int, int, int]:
        """How many windows the video is cut into, over time, height and width."""
        shape = (opened.total, *opened.size)
        axes = zip(shape, self.layout.window, self.layout.overlap, strict=True)
        frames, rows, columns = (len(tile_starts(*axis)) for axis in axes)
        return frames, rows, columns

    def run(
        self, video: InputVideo, names: tuple[str, ...] = tuple(DECODED_PARTS)
    ) -> dict[str, Any]:
        """Reconstructs one video: writes its results and returns its entry of the report.

        Args:
            video: the video and where its results go.
            names: which of DECODED_PARTS to write; the first is measured.
        Raises:
            ValueError: if the video can't be read (UnusableVideo) or the result isn't finite.
            OSError: if a result can't be written.
        """
        opened = self.open(video.source)
        shown, encoded = tee(opened.frames)
        saved: list[LatentWindow] | None = [] if self.save_latents else None
        counter = LatentCounter(saved)
        # Encoded once, decoded once per name; all advance window by window.
        windows = self._timed(self._encode(encoded), opened, 1 + len(names))
        streams = tee(counter.watch(windows), len(names))
        made = {
            name: self._decode(stream, DECODED_PARTS[name])
            for name, stream in zip(names, streams, strict=True)
        }
        means = FrameMeans(self.lpips, self.lpips_reason, self.model.device)
        files = {name: video.result(f"{name}.mp4") for name in names}
        sheet = video.result("sheet.png")
        count = write_results(opened, {"input": shown}, made, files, sheet, means)
        results = [*files.values(), sheet]
        if saved is not None:
            header = {"fps": repr(opened.fps), "model_sha256": weights_digest(self.model)}
            results.append(save_windows(video.result("latents.safetensors"), saved, header))
        rate = counter.num_values / (3 * count * opened.size[0] * opened.size[1])
        numbers = {"measured": names[0], **means.result()}
        return _record(opened, count, results) | numbers | {"rate_with_overlaps": rate}

    def swap(self, video: InputVideo, other_path: Path) -> dict[str, Any]:
        """Swaps the structures of two videos, up to the end of the shorter one.

        Args:
            video: one video and where the results go.
            other_path: the other video, resized to the size of the first.
        Returns:
            Its entry of the report, without metrics: a swap has no original.
        Source: VidTwin (arXiv 2412.17726), cross-reenactment.
        """
        opened, other = self.open(video.source), self.open(other_path)
        fitted = (fit_uint8(frame, *opened.size) for frame in other.frames)
        pairs = tee(zip(opened.frames, fitted, strict=False), 4)
        here, there = video.source.stem, other_path.stem
        originals = {
            f"one: {here}": (pair[0] for pair in pairs[0]),
            f"other: {there}": (pair[1] for pair in pairs[1]),
        }
        # Two videos through the encoder, two through the decoder.
        ours = self._timed(self._encode(pair[0] for pair in pairs[2]), opened, 4)
        theirs = self._encode(pair[1] for pair in pairs[3])
        first, second = tee(zip(ours, theirs, strict=True))
        made = {
            "structure: one, dynamics: other": self._decode(
                _relatent(one, two.latents.with_structure(one.latents)) for one, two in first
            ),
            "structure: other, dynamics: one": self._decode(
                _relatent(one, one.latents.with_structure(two.latents)) for one, two in second
            ),
        }
        endings = (f"dynamics_of_{there}.mp4", f"structure_of_{there}.mp4")
        files = {name: video.result(ending) for name, ending in zip(made, endings, strict=True)}
        sheet = video.result(f"swap_with_{there}.sheet.png")
        count = write_results(opened, originals, made, files, sheet, None)
        reasons = dict.fromkeys(METRICS, "a swap has no original to compare with")
        numbers = {"swapped_with": str(other_path), "reasons": reasons} | dict.fromkeys(METRICS)
        return _record(opened, count, [*files.values(), sheet]) | numbers

    def _encode(self, frames: Iterable[Frame]) -> Iterator[LatentWindow]:
        chunks = (as_video(frame) for frame in frames)
        return iter_encode_windows(self.model, chunks, self.layout.overlap, self.tile_batch_size)

    def _timed(
        self, windows: Iterable[LatentWindow], opened: OpenVideo, passes: int
    ) -> Iterator[LatentWindow]:
        """The windows; logs after the first how many there are, and how long all may take.

        Args:
            passes: through the encoder or the decoder, which take about as long, of each.
        """
        frames, rows, columns = self.windows(opened)
        total, began = frames * rows * columns, time.monotonic()
        for index, window in enumerate(windows):
            if index == 0:
                at_once = min(self.tile_batch_size, rows * columns)
                seconds = passes * total * (time.monotonic() - began) / at_once
                told = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
                told = f"{total:,} windows ({frames} x {rows} x {columns}), about {told}"
                if self.resize_hint and total >= MANY_WINDOWS and total > frames:
                    told += f"; with {self.resize_hint} {frames:,} windows"
                logger.info("%s: %s", opened.path, told)
            yield window

    def _decode(
        self, windows: Iterable[LatentWindow], part: Part = "both"
    ) -> Iterator[torch.Tensor]:
        """The frames, (1, C, 1, H, W) each, float32 on the CPU."""
        for chunk in iter_decode_windows(
            self.model, windows, part, self.tile_batch_size, "cpu", torch.float32
        ):
            yield from chunk.split(1, dim=2)


class LatentCounter:
    """Counts the values of a stream of latents, and optionally keeps them.

    Args:
        saved: list that gets the windows, on the CPU; None to keep none.
    """

    def __init__(self, saved: list[LatentWindow] | None) -> None:
        self.saved, self.num_values = saved, 0

    def watch(self, windows: Iterable[LatentWindow]) -> Iterator[LatentWindow]:
        """The windows, unchanged."""
        for window in windows:
            self.num_values += window.latents.numel_per_clip
            if self.saved is not None:
                self.saved.append(_relatent(window, window.latents.to("cpu")))
            yield window


def as_video(frame: Frame) -> torch.Tensor:
    """(H, W, 3) uint8 as a video of one frame, (1, 3, 1, H, W) in [-1, 1]."""
    return rearrange(from_uint8(frame), "c h w -> 1 c 1 h w")


def write_results(
    video: OpenVideo,
    originals: Mapping[str, Iterator[Frame]],
    made: Mapping[str, Iterator[torch.Tensor]],
    files: Mapping[str, Path],
    sheet: Path,
    means: FrameMeans | None,
) -> int:
    """Writes a video for each of `made` and the contact sheet of all rows.

    Args:
        video: gives fps and length.
        originals: label -> frames to show; the first one is the reference of the metrics.
        made: label -> frames (1, C, 1, H, W) to show and write; the first is measured.
        files: label -> the file of each of `made`.
        sheet: the contact sheet's file.
        means: gets every frame of the first original and the first of `made`.
    Returns:
        int: the number of frames.
    """
    sampler, count = FrameSampler(SHEET_COLUMNS), 0
    bar = tqdm(total=video.total, desc=video.path.name, unit="frame", disable=None, leave=False)
    with ExitStack() as stack, bar:
        writers = [stack.enter_context(VideoWriter(files[name], video.fps)) for name in made]
        for row in zip(*originals.values(), *made.values(), strict=True):
            given, decoded = row[: len(originals)], row[len(originals) :]
            if means is not None:
                means.add(as_video(given[0]), decoded[0])
            frames = [to_uint8(frame[0, :, 0]) for frame in decoded]
            for writer, frame in zip(writers, frames, strict=True):
                writer.write(frame)
            wanted = sampler.wants()
            sampler.add([thumbnail(frame) for frame in (*given, *frames)] if wanted else None)
            count += 1
            bar.update()
    rows = {
        label: np.stack([pictures[index] for pictures in sampler.entries()])
        for index, label in enumerate((*originals, *made))
    }
    contact_sheet(rows, sheet, SHEET_COLUMNS, sampler.numbers(), title=video.path.name)
    return count


def _relatent(window: LatentWindow, latents: VidTwinLatents) -> LatentWindow:
    return LatentWindow(window.start, window.size, latents)


def _record(video: OpenVideo, count: int, results: list[Path]) -> dict[str, Any]:
    """The part of a report's entry that all videos have."""
    return {
        "video": str(video.path),
        "frames": count,
        "resolution": list(video.size),
        "fps": video.fps,
        "source_fps": video.source_fps,
        "stride": video.source_fps / video.fps,
        "backend": video.backend,
        "results": [str(path) for path in results],
    }
