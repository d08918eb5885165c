"""Generated videos: files or latents of a folder, or samples of a pipeline made on the fly.

Axes: T frames, H W pixels.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion.schedulers import build_scheduler
from vidtwin import decode_windows, load_autoencoder
from vidtwin.data import BadFileLog, DataConfig, FileDataset, SkippedFile
from vidtwin.reconstruction.latent_files import load_windows
from vidtwin_lab.evaluation.config import Sizes, VideosConfig, autoencoder_path
from vidtwin_lab.evaluation.pipelines import load_pipeline, parts_digests
from vidtwin_lab.evaluation.report import model_protocol
from vidtwin_lab.evaluation.videos import DataVideos, Video, VideoSource

__all__ = ["FolderVideos", "LatentVideos", "PipelineVideos", "build_generated", "build_real"]

logger = logging.getLogger(__name__)

LATENTS_SUFFIX = ".latents.safetensors"


class SampleFile:
    """What the sample.json of a folder, if it has one, tells of the videos there.

    Args:
        folder: of the videos.
        label_names: of the real data: a class that was asked for by one of these names is numbered
            as they are, others as the pipeline numbered them.
    """

    def __init__(self, folder: Path, label_names: Sequence[str] = ()) -> None:
        file = folder / "sample.json"
        if (folder / ".sampling").is_dir():
            raise ValueError(
                f"the sampling in {folder} was interrupted; run sample.py again with the same "
                "arguments"
            )
        self.folder, self.listed = folder.resolve(), file.is_file()
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        made_by = content.get("made_by", {}).items()
        # Without what differs from run to run.
        self.made_by = {k: v for k, v in made_by if k not in ("seconds", "processes", "command")}
        self.known: dict[str, tuple[int, str]] = {}
        for row in content.get("samples", []):
            asked, label = str(row.get("asked", "")), row.get("class_label")
            name = asked.rpartition(", ")[2]
            if label is not None and name in label_names:
                label = list(label_names).index(name)
            for path in filter(lambda path: path.endswith(".mp4"), row.get("files", [])):
                self.known[Path(path).name] = (-1 if label is None else int(label), asked)

    def asked(self, name: str, otherwise: str = "") -> tuple[int, str]:
        """The class of a video by its file's name, -1 for none, and what it was asked for."""
        return self.known.get(name, (-1, otherwise))

    def measured(self, path: Path, name: str) -> bool:
        """Whether a file belongs to the samples, by the name of its video; all do without a list.

        Videos of its subfolders are not the list's.
        """
        return not self.listed or path.parent.resolve() != self.folder or name in self.known

    def protocol(self) -> dict[str, Any]:
        """How the videos were made, for a report."""
        return {"made_by": self.made_by} if self.made_by else {}


class FolderVideos(DataVideos):
    """Video files of a folder, each from its first frame on, every frame.

    Classes are those of a sample.json beside them, where there is one.

    Args:
        folder: searched through.
        sizes: (T, H, W) that all must have.
        label_names: of the real data.
        threads: that read.
        max_bad_fraction: share of the files that may be unusable.
    """

    def __init__(
        self,
        folder: str,
        sizes: Sizes,
        label_names: Sequence[str] = (),
        threads: int = 1,
        max_bad_fraction: float = 0.05,
    ) -> None:
        config = DataConfig(
            source="folder",
            path=folder,
            part="all",
            num_frames=sizes[0],
            height=sizes[1],
            width=sizes[2],
            fps=None,
            stride=1,
            start="first",
            crop="center",
            max_bad_fraction=max_bad_fraction,
        )
        super().__init__(config, shuffled=False, threads=threads, exact_size=True)
        self.label_names = list(label_names)
        self.samples = SampleFile(Path(folder), label_names)
        assert isinstance(self.dataset, FileDataset)
        paths = [Path(clip.path) for clip in self.dataset.clips]
        # sample.py writes each sample twice: a .gif beside a video of its name is no other sample.
        others = {path.with_suffix("") for path in paths if path.suffix.lower() != ".gif"}
        kept = [
            index
            for index, path in enumerate(paths)
            if (path.suffix.lower() != ".gif" or path.with_suffix("") not in others)
            and self.samples.measured(path, path.name)
        ]
        self.order, self.number = np.array(kept), len(kept)

    def known_labels(self, number: int) -> list[int] | None:
        """Those that sample.json tells, -1 for the others."""
        assert isinstance(self.dataset, FileDataset)
        names = [Path(self.dataset.clips[clip].path).name for clip in self.order[:number]]
        return [self.samples.asked(name)[0] for name in names]

    def _load(self, index: int) -> Video | SkippedFile:
        video = super()._load(index)
        if isinstance(video, SkippedFile):
            return video
        label, asked = self.samples.asked(Path(video.name).name, video.asked)
        return replace(video, label=label, asked=asked)

    def protocol(self, n: int) -> dict[str, Any]:
        """How the files are read, and how they were made where sample.json tells it."""
        return super().protocol(n) | {"kind": "videos"} | self.samples.protocol()


class LatentVideos(VideoSource):
    """Latents of a folder, decoded one by one.

    Args:
        folder: with files named NAME.latents.safetensors.
        autoencoder: see `VideosConfig.autoencoder`.
        device: that decodes.
        label_names: of the real data.
        max_bad_fraction: share of the files that may be unusable.
    """

    def __init__(
        self,
        folder: str,
        autoencoder: str,
        device: torch.device,
        label_names: Sequence[str] = (),
        max_bad_fraction: float = 0.05,
    ) -> None:
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            raise ValueError(f"generated.path must be a folder of latents, {folder} is none")
        self.samples = SampleFile(self.folder, label_names)
        self.files = [
            path
            for path in sorted(self.folder.rglob(f"*{LATENTS_SUFFIX}"))
            if self.samples.measured(path, f"{path.name.removesuffix(LATENTS_SUFFIX)}.mp4")
        ]
        if not self.files:
            raise ValueError(f"no latents found in {folder}; looked for *{LATENTS_SUFFIX}")
        model: Any = load_autoencoder(autoencoder_path(autoencoder))[0]
        self.model = model.to(device)
        self.autoencoder, self.patch_size = autoencoder, model.sizes.patch_size[1:]
        number = len(self.files)
        bad_files = BadFileLog(number, max_bad_fraction)
        super().__init__(number, model.sizes.video_shape[1:], label_names, bad_files)

    @torch.no_grad()
    def load(self, indices: Sequence[int]) -> list[Video | SkippedFile]:
        """The decoded videos of one batch; a file that holds no latents is named instead."""
        return [self._load(index) for index in indices]

    def known_labels(self, number: int) -> list[int] | None:
        """Those that sample.json tells, -1 for the others."""
        return [self._asked(file)[0] for file in self.files[:number]]

    def _asked(self, file: Path) -> tuple[int, str]:
        """The class of a sample, and what it was asked for."""
        return self.samples.asked(f"{file.name.removesuffix(LATENTS_SUFFIX)}.mp4")

    def _load(self, index: int) -> Video | SkippedFile:
        file = self.files[index]
        try:
            windows, metadata = load_windows(file)
        except (ValueError, OSError) as error:
            return SkippedFile(str(file), " ".join(str(error).split()))
        own = self.model.sizes
        shapes = [tuple(tensor.shape[1:]) for tensor in windows[0].latents.tensors()]
        expected = [own.structure_shape, own.dynamics_x_shape, own.dynamics_y_shape]
        if shapes != expected:
            raise ValueError(
                f"{file} holds latents of shapes {shapes}, the autoencoder {self.autoencoder} "
                f"decodes {expected}; name the one that made them as generated.autoencoder"
            )
        frames = decode_windows(self.model, windows, dtype=torch.float32)[0].cpu()
        if tuple(frames.shape[1:]) != self.sizes:
            raise ValueError(
                f"{file} is a video of {tuple(frames.shape[1:])} frames and pixels, the others "
                f"have {self.sizes}; all must have the autoencoder's size"
            )
        label, asked = self._asked(file)
        fps = float(metadata.get("fps") or 0)
        return Video(index=index, name=str(file), frames=frames, fps=fps, label=label, asked=asked)

    def protocol(self, n: int) -> dict[str, Any]:
        """Which files, what decoded them, and how they were made where sample.json tells."""
        return {
            "kind": "latents",
            "path": str(self.folder),
            "n": n,
            "files": self.number,
            "autoencoder": model_protocol(self.autoencoder, self.model),
            **self.samples.protocol(),
        }


class PipelineVideos(VideoSource):
    """Samples of a pipeline: sample i has the noise of seed + i.

    Args:
        config: which pipeline, and how it is asked.
        real: where captions and classes come from.
        number: how many samples.
        device: of the pipeline.
    """

    def __init__(
        self, config: VideosConfig, real: DataVideos, number: int, device: torch.device
    ) -> None:
        assert config.path is not None
        self.pipeline = load_pipeline(config.path, device, getattr(torch, config.dtype))
        if config.scheduler:
            self.pipeline.scheduler = build_scheduler(config.scheduler, self.pipeline.scheduler)
        self.config = config
        trained = self.pipeline.transformer.sizes
        self.patch_size = self.pipeline.autoencoder.sizes.patch_size[1:]
        super().__init__(number, self.pipeline.autoencoder.sizes.video_shape[1:])
        auto = config.conditions == "auto"
        self.prompts: list[str] = []
        self.classes: list[int] = []
        if config.conditions in ("prompts", "both") or (auto and trained.text_hidden_size):
            self.prompts = prompts_of(real, number)
        if config.conditions in ("classes", "both") or (auto and trained.num_classes):
            self.label_names = list(real.label_names)
            self.classes = self._classes(real)
        self.distribution = "data" if self.prompts else config.class_distribution
        self.fps = self._frame_rate(real)

    def _classes(self, real: DataVideos) -> list[int]:
        """The class of each sample, numbered as in the real data."""
        if not real.label_names:
            raise ValueError(
                "the pipeline is to be asked for classes, and the real data has none; take "
                "data.source=classes or ucf101, or generated.conditions=none"
            )
        # A caption belongs to the class of its own clip.
        if self.config.class_distribution == "balanced" and not self.prompts:
            return list(range(len(real.label_names)))
        labels = real.labels(self.number)
        if min(labels) < 0:
            raise ValueError(
                f"{sum(label < 0 for label in labels)} of the {len(labels)} real clips have no "
                "class to ask the pipeline for; see data.source, or set generated.conditions"
            )
        return labels

    def _frame_rate(self, real: DataVideos) -> float:
        own, theirs = self.pipeline.config["fps"], real.config.fps
        if own and theirs and abs(own - theirs) > 1e-6:
            logger.warning(
                "the pipeline was trained at %g frames per second, the real videos are read at "
                "%g: their motions differ by that much; set data.fps=%g",
                *(own, theirs, own),
            )
        return float(own or theirs or 8.0)

    def label(self, index: int) -> int:
        """The class of a sample, numbered as in the real data; -1 for none."""
        return self.classes[index % len(self.classes)] if self.classes else -1

    def known_labels(self, number: int) -> list[int] | None:
        """The classes that are asked for, -1 for none."""
        return [self.label(index) for index in range(number)]

    def load(self, indices: Sequence[int]) -> list[Video | SkippedFile]:
        """The samples of one batch; none is ever unusable."""
        given: dict[str, Any] = {}
        asked: list[list[str]] = [[] for _ in indices]
        if self.prompts:
            given["prompt"] = [self.prompts[index % len(self.prompts)] for index in indices]
            for words, prompt in zip(asked, given["prompt"], strict=True):
                words.append(prompt)
        if self.classes:
            names = [self.label_names[self.label(index)] for index in indices]
            by_name = self.pipeline.config["class_names"] is not None
            given["class_labels"] = names if by_name else [self.label(index) for index in indices]
            for words, name in zip(asked, names, strict=True):
                words.append(f"class {name}")
        if not given:
            given["num_videos_per_prompt"] = len(indices)
        seeds = [self.config.seed + index for index in indices]
        # Without anything to ask for there is nothing to guide.
        scale = self.config.guidance_scale if self.prompts or self.classes else 1.0
        made = self.pipeline(
            **given,
            num_inference_steps=self.config.num_inference_steps,
            guidance_scale=scale,
            class_guidance_scale=self.config.class_guidance_scale if self.classes else None,
            seed=seeds,
        ).videos
        return [
            Video(
                index=index,
                name=f"seed {seed}",
                frames=2 * video.float().cpu() - 1,
                fps=self.fps,
                label=self.label(index),
                asked=", ".join(words),
            )
            for index, seed, words, video in zip(indices, seeds, asked, made, strict=True)
        ]

    def protocol(self, n: int) -> dict[str, Any]:
        """Which pipeline, what it was asked for, and how it sampled."""
        config, scheduler = self.config, self.pipeline.scheduler
        return {
            "kind": "pipeline",
            "checkpoint": config.path,
            "weights_digests": parts_digests(self.pipeline.components),
            "n": n,
            "prompts": f"{len(self.prompts)} captions of the real data" if self.prompts else None,
            "classes": self.distribution if self.classes else None,
            "num_inference_steps": config.num_inference_steps,
            "guidance_scale": config.guidance_scale if self.prompts or self.classes else 1.0,
            "class_guidance_scale": config.class_guidance_scale,
            "scheduler": {"class": type(scheduler).__name__, **scheduler.config},
            "seeds": [config.seed, config.seed + n - 1],
            "fps": self.fps,
            "dtype": config.dtype,
        }


def prompts_of(real: DataVideos, number: int) -> list[str]:
    """The captions of the first clips of a data set.

    Raises:
        ValueError: if a clip has none.
    """
    captions = [real.caption(index) for index in range(min(number, len(real)))]
    without = sum(not caption.strip() for caption in captions)
    if without:
        raise ValueError(
            f"{without} of the {len(captions)} real clips have no caption to ask the pipeline for; "
            "see data.captions, or set generated.conditions=none"
        )
    return captions


def build_real(config: DataConfig, seed: int, threads: int = 1) -> DataVideos:
    """The real videos, in a random order."""
    return DataVideos(config, seed, threads=threads)


def build_generated(
    config: VideosConfig, real: DataVideos, number: int, device: torch.device, threads: int = 1
) -> VideoSource:
    """The videos that are measured.

    Args:
        real: gives captions and classes to ask for, and the size.
        number: how many samples a pipeline makes.
        device: of the model.
        threads: that read files.
    Raises:
        ValueError: if the source can't be used, or its videos have another size than the real.
    """
    source: VideoSource
    names, most_bad = real.label_names, real.config.max_bad_fraction
    if config.kind == "pipeline":
        source = PipelineVideos(config, real, number, device)
    elif config.kind == "latents":
        assert config.path is not None
        decoder = config.autoencoder or config.path
        source = LatentVideos(config.path, decoder, device, names, most_bad)
    elif config.kind == "videos":
        assert config.path is not None
        source = FolderVideos(config.path, real.sizes, names, threads, most_bad)
    else:
        assert config.data is not None
        source = DataVideos(config.data, real.seed, threads=threads)
        if source.label_names != names and set(source.label_names) & set(names):
            raise ValueError(
                "the two data sets number their classes differently: "
                f"{', '.join(names[:4])} ... and {', '.join(source.label_names[:4])} ...; "
                "give both the same class folders"
            )
    if source.sizes != real.sizes:
        raise ValueError(
            f"the generated videos have (frames, height, width) {source.sizes}, the real ones "
            f"{real.sizes}; set data.num_frames={source.sizes[0]} data.height={source.sizes[1]} "
            f"data.width={source.sizes[2]}"
        )
    return source
