"""Files through the autoencoder and back: the model, the streams, the results, the numbers.

Axes: B batch (1 here), C channels, T frames, H W pixels.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from itertools import tee
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from einops import rearrange
from numpy.typing import NDArray
from tqdm import tqdm

from vidtwin.autoencoder import VidTwinAutoencoder
from vidtwin.config import AutoencoderConfig
from vidtwin.files import shipped_path, weights_digest
from vidtwin.latents import Part, VidTwinLatents
from vidtwin.media import (
    FrameSampler,
    VideoWriter,
    contact_sheet,
    from_uint8,
    thumbnail,
    to_uint8,
)
from vidtwin.metrics import Lpips, psnr, ssim
from vidtwin.reconstruction.jobs import Job, OpenVideo, fit_uint8, open_video
from vidtwin.reconstruction.latent_files import save_windows
from vidtwin.tiling import LatentWindow, Layout, iter_decode_windows, iter_encode_windows

Frame = NDArray[np.uint8]
# What a run of train_ae.py leaves, best first.
MODEL_FOLDERS = ("autoencoder_ema", "autoencoder")
OFFICIAL_SUFFIXES = (".ckpt", ".safetensors", ".pt", ".pth")
METRICS = ("psnr", "ssim", "lpips")
# The results' names and what of the latents is decoded for each.
PARTS: dict[str, Part] = {
    "reconstruction": "both",
    "structure": "structure",
    "dynamics": "dynamics",
}
SHEET_COLUMNS = 8


def load_autoencoder(
    path: str | Path, *, untrained: bool = False
) -> tuple[VidTwinAutoencoder, Path]:
    """An autoencoder from whatever holds one, ready for evaluation.

    Args:
        path: a `save_pretrained` folder, the run folder of a training (its averaged weights
            before its last ones), or a released checkpoint file.
        untrained: take also a config of train_ae.py, for a model with new weights: to see sizes.
    Returns:
        The model, in evaluation mode, and the folder or file it came from.
    Raises:
        ValueError: saying what is missing; no weight is ever left at random.
    """
    path = shipped_path(path)
    if path.suffix in (".yaml", ".yml"):
        if not untrained:
            raise ValueError(
                f"{path} is the config of an autoencoder, which only --dry-run takes: train it "
                f"with train_ae.py --config {path}, and name its run folder"
            )
        return VidTwinAutoencoder(**_model_section(path)).eval(), path
    if path.is_file():
        if path.suffix.lower() not in OFFICIAL_SUFFIXES:
            raise ValueError(
                f"a model file must be a released checkpoint ({', '.join(OFFICIAL_SUFFIXES)}), "
                f"got {path}"
            )
        return VidTwinAutoencoder.from_official(path), path
    if not path.is_dir():
        raise ValueError(
            f"the model {path} does not exist; --model takes a folder written by save_pretrained, "
            "the run folder of train_ae.py, or a released .ckpt or .safetensors file"
        )
    candidates = (path, *(path / name for name in MODEL_FOLDERS))
    folder = next((one for one in candidates if (one / "config.json").is_file()), None)
    if folder is None:
        raise ValueError(
            f"the folder {path} holds no autoencoder: expected config.json in it (save_pretrained) "
            f"or in {' or '.join(MODEL_FOLDERS)} below it (a finished run of train_ae.py)"
        )
    try:
        return VidTwinAutoencoder.from_pretrained(folder, local_files_only=True), folder
    except (OSError, TypeError) as error:
        raise ValueError(f"the autoencoder in {folder} can't be loaded: {error}") from error


def _model_section(path: Path) -> dict[str, Any]:
    """The section `model` of a YAML config, on top of that of its `base`."""
    if not path.is_file():
        raise ValueError(f"the config {path} does not exist")
    values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    base = values.get("base")
    section: dict[str, Any] = {} if base is None else _model_section(path.parent / base)
    section |= values.get("model") or {}
    unknown = section.keys() - {field.name for field in dataclasses.fields(AutoencoderConfig)}
    if unknown:
        raise ValueError(f"{path}: unknown keys of `model`: {', '.join(sorted(unknown))}")
    return section


def software_versions() -> dict[str, str]:
    """The versions that a reported number depends on."""
    versions = {"python": platform.python_version()}
    for name in ("torch", "diffusers", "transformers", "torchmetrics", "lpips", "decord", "av"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


class Measures:
    """Means over the frames of a video; a metric that can't be had is null, with its reason.

    Args:
        lpips: the perceptual distance, or None.
        reason: why there is no `lpips`.
        device: where `lpips` is.
    """

    def __init__(
        self, lpips: Lpips | None, reason: str = "", device: torch.device | str = "cpu"
    ) -> None:
        self.num_frames = 0
        self.sums = dict.fromkeys(METRICS, 0.0)
        self.reasons = {} if lpips is not None else {"lpips": reason}
        self._lpips, self._device = lpips, device

    def add(self, video: torch.Tensor, reconstruction: torch.Tensor) -> None:
        """Adds frames, each measured as an image.

        Args:
            video: (1, 3, T, H, W) in [-1, 1].
            reconstruction: the same shape.
        """
        frames = video.shape[2]
        for name in METRICS:
            if name in self.reasons:
                continue
            try:
                value = self._measure(name, video, reconstruction)
            except ValueError as error:  # frames too small for the metric's window
                self.reasons[name] = str(error)
            else:
                self.sums[name] += float(value) * frames
        self.num_frames += frames

    def result(self) -> dict[str, Any]:
        """psnr, ssim and lpips, and `reasons` for those that are None."""
        values: dict[str, Any] = {
            name: None if name in self.reasons else self.sums[name] / max(1, self.num_frames)
            for name in METRICS
        }
        return values | {"reasons": dict(self.reasons)}

    def _measure(self, name: str, video: torch.Tensor, reconstruction: torch.Tensor) -> Any:
        if name == "lpips":
            assert self._lpips is not None
            return self._lpips(video.to(self._device), reconstruction.to(self._device))
        return {"psnr": psnr, "ssim": ssim}[name](video, reconstruction)


@dataclass(kw_only=True)
class Reconstructor:
    """Takes videos through a model; what stays the same from one to the next.

    Args:
        model: in evaluation mode, on its device.
        layout: how videos are cut into the model's windows.
        tile_batch_size: windows per forward pass.
        size: (H, W) to fit videos to; None keeps their own.
        fps: take frames at this lower rate; None takes all.
        max_frames: take the first frames only.
        save_latents: whether `run` also writes the latents.
        lpips: the perceptual distance, or None.
        lpips_reason: why there is none.
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

    def open(self, path: Path) -> OpenVideo:
        """The video's frames, chosen and fitted."""
        return open_video(path, self.fps, self.max_frames, self.size)

    def run(self, job: Job, names: tuple[str, ...] = tuple(PARTS)) -> dict[str, Any]:
        """Reconstructs one video: writes its results, returns what the report says of it.

        Args:
            job: the video and where its results go.
            names: which of PARTS to write; the first is measured.
        Raises:
            ValueError: if the video can't be used (UnusableVideo) or the result isn't finite.
            OSError: if a result can't be written.
        """
        video = self.open(job.source)
        shown, encoded = tee(video.frames)
        saved: list[LatentWindow] | None = [] if self.save_latents else None
        counter = LatentCounter(saved)
        # One encoding, as many decodings as there are names; all advance window by window.
        streams = tee(counter.watch(self._encode(encoded)), len(names))
        made = {
            name: self._decode(stream, PARTS[name])
            for name, stream in zip(names, streams, strict=True)
        }
        device = self.model.device
        measures = Measures(self.lpips, self.lpips_reason, device)
        files = {name: job.result(f"{name}.mp4") for name in names}
        sheet = job.result("sheet.png")
        count = write_results(video, {"input": shown}, made, files, sheet, measures)
        results = [*files.values(), sheet]
        if saved is not None:
            header = {"fps": repr(video.fps), "model_sha256": weights_digest(self.model)}
            results.append(save_windows(job.result("latents.safetensors"), saved, header))
        rate = counter.num_values / (3 * count * video.size[0] * video.size[1])
        numbers = {"measured": names[0], **measures.result()}
        return _record(video, count, results) | numbers | {"rate_with_overlaps": rate}

    def swap(self, job: Job, other_path: Path) -> dict[str, Any]:
        """Exchanges the structures of two videos, frame by frame to the end of the shorter one.

        Args:
            job: one video and where the results go.
            other_path: the other video, fitted to the size of the first.
        Returns:
            What the report says of it; a swap has no original, so no metrics.
        Source: VidTwin (arXiv 2412.17726), cross-reenactment.
        """
        video, other = self.open(job.source), self.open(other_path)
        fitted = (fit_uint8(frame, *video.size) for frame in other.frames)
        pairs = tee(zip(video.frames, fitted, strict=False), 4)
        here, there = job.source.stem, other_path.stem
        originals = {
            f"one: {here}": (pair[0] for pair in pairs[0]),
            f"other: {there}": (pair[1] for pair in pairs[1]),
        }
        ours = self._encode(pair[0] for pair in pairs[2])
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
        files = {name: job.result(ending) for name, ending in zip(made, endings, strict=True)}
        sheet = job.result(f"swap_with_{there}.sheet.png")
        count = write_results(video, originals, made, files, sheet, None)
        reasons = dict.fromkeys(METRICS, "a swap has no original to compare with")
        numbers = {"swapped_with": str(other_path), "reasons": reasons} | dict.fromkeys(METRICS)
        return _record(video, count, [*files.values(), sheet]) | numbers

    def _encode(self, frames: Iterable[Frame]) -> Iterator[LatentWindow]:
        chunks = (as_video(frame) for frame in frames)
        return iter_encode_windows(self.model, chunks, self.layout.overlap, self.tile_batch_size)

    def _decode(
        self, windows: Iterable[LatentWindow], part: Part = "both"
    ) -> Iterator[torch.Tensor]:
        """The frames, (1, C, 1, H, W) each, float32 on the CPU."""
        for chunk in iter_decode_windows(
            self.model, windows, part, self.tile_batch_size, "cpu", torch.float32
        ):
            yield from chunk.split(1, dim=2)


class LatentCounter:
    """Counts the values of the latents that pass, and keeps them if asked.

    Args:
        saved: where to keep the windows, on the CPU; None to let them go.
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
    measures: Measures | None,
) -> int:
    """Writes a video for each of `made` and the contact sheet of all rows.

    Args:
        video: where fps and length come from.
        originals: label -> frames that are shown and, the first, compared with.
        made: label -> frames (1, C, 1, H, W) that are shown and written; the first is measured.
        files: label -> the file of each of `made`.
        sheet: the contact sheet's file.
        measures: gets every frame of the first original and the first of `made`.
    Returns:
        int: how many frames there were.
    """
    sampler, count = FrameSampler(SHEET_COLUMNS), 0
    bar = tqdm(total=video.total, desc=video.path.name, unit="frame", disable=None, leave=False)
    with ExitStack() as stack, bar:
        writers = [stack.enter_context(VideoWriter(files[name], video.fps)) for name in made]
        for row in zip(*originals.values(), *made.values(), strict=True):
            given, decoded = row[: len(originals)], row[len(originals) :]
            if measures is not None:
                measures.add(as_video(given[0]), decoded[0])
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
    """What the report says of every video."""
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
