"""What the studio's page does with pipelines and uploads; knows nothing of the page.

Axes: C channels, T frames, H W pixels.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion import VidTwinPipeline
from diffusion.given_clips import FOREIGN_PSNR, given_clips
from diffusion.long_video import latent_windows, window_starts
from vidtwin import VidTwinLatents
from vidtwin.data.file_dataset import read_first_window
from vidtwin.data.readers import read_video_info
from vidtwin.files import write_json
from vidtwin.media import contact_sheet, to_uint8, write_clip, write_video
from vidtwin.metrics import psnr, ssim
from vidtwin.reconstruction import save_windows
from vidtwin_lab.evaluation.cosines import lowest_frequencies
from vidtwin_lab.studio.heat_maps import draw_heat_maps

__all__ = ["CancelledError", "Inside", "Limits", "Made", "Preview", "Request", "Workbench"]

DEFAULT_FPS = 8.0
PREVIEWS = 8  # pictures shown while a video is denoised


class CancelledError(Exception):
    """A job was stopped by whoever asked for it."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an upload may be.

    Args:
        megabytes: of a file.
        seconds: of a video.
        suffixes: of its name.
    """

    megabytes: float = 64
    seconds: float = 300
    suffixes: tuple[str, ...] = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".m4v")

    def check(self, path: Path) -> None:
        """Raises ValueError for what is not to be read, before it is decoded."""
        if path.suffix.lower() not in self.suffixes:
            known = ", ".join(suffix[1:] for suffix in self.suffixes)
            raise ValueError(f"{path.name} is no video that the studio reads; it reads {known}")
        size = path.stat().st_size / 1e6
        if size > self.megabytes:
            raise ValueError(f"{path.name} has {size:.0f} MB; at most {self.megabytes:g} are read")
        duration = read_video_info(path).duration
        if duration > self.seconds:
            raise ValueError(
                f"{path.name} lasts {duration:.0f} s; at most {self.seconds:g} s are read"
            )


@dataclass(frozen=True, kw_only=True)
class Request:
    """A video that is asked for; the fields are keywords of the pipeline.

    Args:
        prompt, class_label: what to show, where the pipeline was trained with it.
        negative_prompt: what not to show.
        seed: of the noise.
        num_inference_steps, guidance_scale, num_frames: None for the pipeline's own.
        motion_scale: of the dynamics' changes.
        structure_from, dynamics_from: a video file whose half is kept.
    """

    prompt: str | None = None
    class_label: str | None = None
    negative_prompt: str | None = None
    seed: int = 0
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    num_frames: int | None = None
    motion_scale: float = 1.0
    structure_from: str | None = None
    dynamics_from: str | None = None


@dataclass(frozen=True)
class Preview:
    """How far a video is: the step of how many, and its middle frame now and then."""

    step: int
    total: int
    picture: NDArray[np.uint8] | None


@dataclass(frozen=True)
class Made:
    """A finished video: its files, and what is to be said of it."""

    video: Path
    sheet: Path
    files: list[Path]
    told: str


@dataclass(frozen=True)
class Inside:
    """What an autoencoder does with a clip: a video of each part, heat maps, and numbers."""

    videos: dict[str, Path]
    heat_maps: Path
    numbers: list[tuple[str, str]]


class Workbench:
    """Pipelines that are loaded when first needed, and the folder of what they make.

    Args:
        pipelines: label -> folder or hub id.
        folder: for results; each gets a folder of its own in it.
        device: of the models.
        limits: of uploads.
    """

    def __init__(
        self,
        pipelines: Mapping[str, str],
        folder: Path,
        device: torch.device | str = "cpu",
        limits: Limits | None = None,
    ) -> None:
        self.pipelines, self.folder, self.device = dict(pipelines), folder, device
        self.limits = limits or Limits()
        self._loaded: dict[str, VidTwinPipeline] = {}
        self._stopped = threading.Event()

    def cancel(self) -> None:
        """Stops the job that is running, at the sampler's next step."""
        self._stopped.set()

    def pipeline(self, label: str) -> VidTwinPipeline:
        """The pipeline; two are kept in memory."""
        if label not in self.pipelines:
            raise ValueError(
                f"no pipeline is called {label!r}; there are {', '.join(self.pipelines)}"
            )
        if label not in self._loaded:
            while len(self._loaded) > 1:
                del self._loaded[next(iter(self._loaded))]
            pipeline = VidTwinPipeline.from_pretrained(self.pipelines[label])
            pipeline.set_progress_bar_config(disable=True)
            self._loaded[label] = pipeline.to(self.device)
        return self._loaded[label]

    def sample(self, label: str, request: Request) -> Iterator[Preview | Made]:
        """Makes a video; tells how far it is, and at last what was made.

        `cancel`, or closing the iterator, stops the sampler at its next step; nothing is written.

        Raises:
            CancelledError: by `cancel`.
            ValueError: for what the pipeline can't do, or an upload that can't be used.
        """
        pipeline = self.pipeline(label)
        keywords: dict[str, Any] = {
            name: value for name, value in asdict(request).items() if value not in (None, "")
        }
        given = {
            name: self.read(pipeline, Path(path))
            for name in ("structure", "dynamics")
            if (path := keywords.pop(f"{name}_from", None))
        }
        told = " ".join(map(passes, given_clips(pipeline.autoencoder, given)[1].values()))
        if "class_label" in keywords:
            keywords["class_labels"] = keywords.pop("class_label")
        out = yield from self._watched(pipeline, keywords | given)
        yield self._write(pipeline, request, out, label, told)

    def read(self, pipeline: VidTwinPipeline, path: Path) -> torch.Tensor:
        """The first frames of an upload as the pipeline's autoencoder takes them; (3, T, H, W)."""
        self.limits.check(path)
        _, frames, height, width = pipeline.autoencoder.sizes.video_shape
        fps = pipeline.config["fps"]
        return read_first_window(path, frames, height, width, fps).to(self.device)

    @torch.no_grad()
    def swap(self, label: str, first: Path, second: Path) -> dict[str, Path]:
        """The structure of each of two clips with the dynamics of each; label -> video."""
        pipeline = self.pipeline(label)
        ae = pipeline.autoencoder
        latents = [ae.encode(self.read(pipeline, path)[None]).mode() for path in (first, second)]
        target, videos = self._new_folder("swap"), {}
        for s, structure in enumerate(latents):
            for d, dynamics in enumerate(latents):
                name = f"structure of {'AB'[s]}, dynamics of {'AB'[d]}"
                video = ae.decode(dynamics.with_structure(structure))
                path = target / f"structure_{'AB'[s]}_dynamics_{'AB'[d]}.mp4"
                videos[name] = write_video(path, to_uint8(video[0]), fps_of(pipeline))
        return videos

    @torch.no_grad()
    def inside(self, label: str, path: Path) -> Inside:
        """What the autoencoder of a pipeline keeps of a clip, and where."""
        pipeline = self.pipeline(label)
        ae = pipeline.autoencoder
        video = self.read(pipeline, path)[None]
        latents = ae.encode(video).mode()
        parts = {"reconstruction": "both", "structure alone": "structure"}
        decoded: dict[str, torch.Tensor] = {"the clip": video}
        for name, part in (parts | {"dynamics alone": "dynamics"}).items():
            decoded[name] = ae.decode(latents, part=part)  # type: ignore[arg-type]
        target, fps = self._new_folder("inside"), fps_of(pipeline)
        videos = {
            name: write_video(target / f"{name.replace(' ', '_')}.mp4", to_uint8(each[0]), fps)
            for name, each in decoded.items()
        }
        made = decoded["reconstruction"]
        cosines = lowest_frequencies(video, latents.numel_per_clip)
        numbers = [
            ("PSNR", f"{psnr(video, made).item():.2f} dB"),
            ("SSIM", f"{ssim(video, made).item():.3f}"),
            ("PSNR of as many cosines", f"{psnr(video, cosines).item():.2f} dB"),
            ("latent values", f"{latents.numel_per_clip:,} of {video[0].numel():,} pixel values"),
            ("rate", f"{100 * ae.compression_rate:.3g} %"),
        ]
        heat_maps = draw_heat_maps(latents, made[0], target / "heat_maps.png")
        return Inside(videos, heat_maps, numbers)

    def compare(
        self, labels: Sequence[str], prompts: Sequence[str], request: Request
    ) -> Iterator[Preview | Made]:
        """The same prompts and seeds through several pipelines, as one sheet of all videos."""
        rows: dict[str, NDArray[np.uint8]] = {}
        files: list[Path] = []
        target = self._new_folder("compare")
        jobs = [(prompt, label) for prompt in prompts for label in labels]
        for index, (prompt, label) in enumerate(jobs):
            pipeline = self.pipeline(label)
            keywords = {"prompt": prompt, "seed": request.seed}
            if request.num_inference_steps:
                keywords["num_inference_steps"] = request.num_inference_steps
            watched = self._watched(pipeline, keywords)
            try:
                while True:
                    each = next(watched)
                    done = index * each.total
                    yield Preview(done + each.step, len(jobs) * each.total, each.picture)
            except StopIteration as stop:
                frames = to_uint8(2 * stop.value.videos[0] - 1)
            rows[f"{prompt}  ({label})"] = frames
            path = target / f"{index:02d}.mp4"
            files.append(write_video(path, frames, fps_of(pipeline)))
        # Pipelines may make clips of other lengths; a sheet has one.
        length = min(map(len, rows.values()))
        sheet = contact_sheet(
            {name: each[:length] for name, each in rows.items()}, target / "sheet.png"
        )
        yield Made(files[0], sheet, [*files, sheet], f"seed {request.seed}")

    def _watched(self, pipeline: VidTwinPipeline, keywords: dict[str, Any]) -> Any:
        """Runs the pipeline in a thread; yields previews, returns its output."""
        updates: queue.Queue[Any] = queue.Queue()
        self._stopped = stopped = threading.Event()
        total = num_steps(pipeline, keywords)
        count = 0

        def after_step(pipe: Any, step: int, timestep: Any, latents: Any) -> dict[str, Any]:
            nonlocal count
            count += 1
            pipe._interrupt = stopped.is_set()
            shown = count % max(1, total // PREVIEWS) == 0
            updates.put(Preview(count, total, _picture(pipe, latents) if shown else None))
            return {}

        def run() -> None:
            try:
                updates.put(pipeline(**keywords, callback_on_step_end=after_step))
            except BaseException as error:  # raised again by the one who waits
                updates.put(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            while isinstance(update := updates.get(), Preview):
                yield update
            if stopped.is_set():
                raise CancelledError("cancelled; nothing was written")
        finally:
            stopped.set()
            thread.join()
        if isinstance(update, BaseException):
            raise update
        return update

    def _write(
        self, pipeline: VidTwinPipeline, request: Request, out: Any, label: str, told: str
    ) -> Made:
        frames = to_uint8(2 * out.videos[0] - 1)
        target, fps = self._new_folder("sample"), fps_of(pipeline)
        sizes = pipeline.autoencoder.sizes
        starts = window_starts(len(frames), sizes.num_frames)
        windows = latent_windows(out.latents, starts, sizes)
        latents = save_windows(target / "sample.latents.safetensors", windows, {"fps": repr(fps)})
        sheet = contact_sheet(
            {request.prompt or f"seed {request.seed}": frames}, target / "sheet.png"
        )
        files = [*write_clip(target / "sample", frames, fps), sheet, latents]
        made_by = {"pipeline": self.pipelines[label], **asdict(request), "fps": fps}
        files.append(write_json(target / "sample.json", made_by))
        return Made(files[0], sheet, files, told)

    def _new_folder(self, kind: str) -> Path:
        """A folder of its own for each result, by the time."""
        name = f"{time.strftime('%Y%m%d_%H%M%S')}_{kind}"
        for suffix in ("", *(f"_{n}" for n in range(2, 1000))):
            folder = self.folder / f"{name}{suffix}"
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                continue
            return folder
        raise OSError(f"{self.folder} holds too many results of this second")


def passes(measured: float) -> str:
    """How well a given clip passes through the autoencoder (dB), in words."""
    told = f"The given clip passes through the autoencoder at {measured:.1f} dB."
    if measured < FOREIGN_PSNR:
        told += " That is little: this pipeline was trained on other clips, and keeps little of it."
    return told


def num_steps(pipeline: VidTwinPipeline, keywords: Mapping[str, Any]) -> int:
    """Solver steps of a call, over all windows of a long video."""
    window = pipeline.autoencoder.sizes.num_frames
    steps: int = keywords.get("num_inference_steps") or pipeline.config["num_inference_steps"]
    return steps * len(window_starts(keywords.get("num_frames") or window, window))


def fps_of(pipeline: VidTwinPipeline) -> float:
    return float(pipeline.config["fps"] or DEFAULT_FPS)


def _picture(pipeline: VidTwinPipeline, latents: Mapping[str, torch.Tensor]) -> NDArray[np.uint8]:
    """The middle frame of what the latents are so far; (H, W, 3)."""
    scaled = VidTwinLatents(**{name: tensor[:1] for name, tensor in latents.items()})
    video = pipeline.autoencoder.decode(pipeline.latent_stats.unscale(scaled))
    frame: NDArray[np.uint8] = to_uint8(video[0, :, video.shape[2] // 2 : video.shape[2] // 2 + 1])[
        0
    ]
    return frame
