"""Where the videos of one side of a comparison come from.

    data      a data set, see `vidtwin.data`
    videos    a folder of video files, such as sample.py writes
    latents   a folder of latents, such as sample.py writes, decoded by an autoencoder
    pipeline  samples of a pipeline, made on the fly

Video i is the same for any number of processes: which clip, prompt, class and noise it has follows
from the config and i alone, and whole batches of consecutive indices are shared out.

Axes: B batch, T frames, H W pixels.
"""

from __future__ import annotations

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from diffusion import VidTwinPipeline
from diffusion.pipeline import GUIDANCE_SCALE, NUM_INFERENCE_STEPS
from diffusion.schedulers import SCHEDULERS, build_scheduler
from evaluation.report import Processes, batches_of, data_protocol, model_protocol
from vidtwin import decode_windows, load_autoencoder
from vidtwin.data import DataConfig, FileDataset, SkippedFile, UnusableVideo, build_dataset
from vidtwin.data.bad_files import BadFileLog
from vidtwin.data.datasets import VideoDataset
from vidtwin.data.readers import read_video_info
from vidtwin.reconstruction import weights_digest
from vidtwin.reconstruction.latent_files import load_windows

__all__ = [
    "Video",
    "VideoSource",
    "VideosConfig",
    "build_generated",
    "build_real",
    "check_number",
    "iterate_videos",
    "model_sizes",
]

logger = logging.getLogger(__name__)

KINDS = ("pipeline", "videos", "latents", "data")
CONDITIONS = ("auto", "prompts", "classes", "both", "none")
DISTRIBUTIONS = ("balanced", "data")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LATENTS_SUFFIX = ".latents.safetensors"
Sizes = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class VideosConfig:
    """The videos that are measured.

    Args:
        kind: "pipeline" samples on the fly; "videos" and "latents" are folders; "data" is another
            data set, such as the validation part, which tells what distance to expect of real
            videos.
        path: the pipeline (folder or hub id), or the folder.
        autoencoder: decodes "latents": a model folder, or a pipeline's; None for `path` itself.
        data: the data set of the kind "data".
        conditions: what a pipeline is asked for: "prompts", the captions of the real data; their
            "classes"; "both"; "none"; "auto" for all that it was trained with.
        class_distribution: "balanced" takes the classes in turn, "data" those of the real clips.
        num_inference_steps, guidance_scale, class_guidance_scale: see `VidTwinPipeline`.
        scheduler: by name; None for the pipeline's own.
        seed: video i has the noise of seed + i.
        dtype: of the pipeline.
    Raises:
        ValueError: for a value that is out of range.
    """

    kind: str = "pipeline"
    path: str | None = None
    autoencoder: str | None = None
    data: DataConfig | None = None
    conditions: str = "auto"
    class_distribution: str = "balanced"
    num_inference_steps: int = NUM_INFERENCE_STEPS
    guidance_scale: float = GUIDANCE_SCALE
    class_guidance_scale: float | None = None
    scheduler: str | None = None
    seed: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        choices: dict[str, Sequence[str]] = {
            "kind": KINDS,
            "conditions": CONDITIONS,
            "class_distribution": DISTRIBUTIONS,
            "dtype": tuple(DTYPES),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"generated.{name} must be one of {', '.join(allowed)}; "
                    f"got {getattr(self, name)!r}"
                )
        if self.scheduler is not None and self.scheduler not in SCHEDULERS:
            raise ValueError(
                f"generated.scheduler must be one of {', '.join(SCHEDULERS)} or null, "
                f"got {self.scheduler!r}"
            )
        if (self.kind == "data") != (self.data is not None):
            raise ValueError(
                "generated.data is the data set of generated.kind=data, got "
                f"kind={self.kind!r} and data={self.data and self.data.source!r}"
            )
        if self.kind != "data" and not self.path:
            wanted = "a pipeline" if self.kind == "pipeline" else f"a folder of {self.kind}"
            raise ValueError(f"generated.path must name {wanted}, got {self.path!r}")
        if self.num_inference_steps < 1 or self.seed < 0:
            raise ValueError(
                "generated.num_inference_steps must be at least 1 and generated.seed not "
                f"negative, got {self.num_inference_steps} and {self.seed}"
            )


@dataclass(frozen=True, kw_only=True)
class Video:
    """One video of a source.

    Args:
        index: in the source's order.
        name: of its file, or what it was asked for.
        frames: (3, T, H, W) float32 on the CPU, in about [-1, 1].
        fps: frames per second.
        label: index into the source's label names, -1 for none.
        asked: prompt and class of a sample, in words.
    """

    index: int
    name: str
    frames: Tensor
    fps: float
    label: int = -1
    asked: str = ""


class VideoSource(ABC):
    """Videos by index; see `load`.

    Args:
        number: how many there may be.
        sizes: (T, H, W) of each.
        label_names: the name of each label; empty without classes.
        bad_files: counts those that can't be used, and stops at too many.
    """

    def __init__(
        self,
        number: int,
        sizes: Sizes,
        label_names: Sequence[str] = (),
        bad_files: BadFileLog | None = None,
    ) -> None:
        self.number, self.sizes, self.label_names = number, sizes, list(label_names)
        self.bad_files = bad_files or BadFileLog(number, 1.0)

    def __len__(self) -> int:
        return self.number

    @abstractmethod
    def load(self, indices: Sequence[int]) -> list[Video | SkippedFile]:
        """The videos of one batch, in order; what can't be used is named instead."""

    @abstractmethod
    def protocol(self, n: int) -> dict[str, Any]:
        """How the videos came about, for the report; n of them were used."""

    def known_labels(self, number: int) -> list[int] | None:
        """The classes of the first videos, where they are known without making or reading them."""
        return None


class DataVideos(VideoSource):
    """Clips of a data set, in a random order: any first n of them are a fair choice.

    Args:
        config: of the data set, sizes included.
        seed: of the order.
        shuffled: False keeps the order of the paths.
        threads: that read.
        exact_size: whether files must have the size already.
    """

    def __init__(
        self,
        config: DataConfig,
        seed: int = 0,
        *,
        shuffled: bool = True,
        threads: int = 1,
        exact_size: bool = False,
    ) -> None:
        self.dataset: VideoDataset = build_dataset(config)
        size = len(self.dataset)
        sizes = (config.num_frames, config.height, config.width)
        super().__init__(size, sizes, self.dataset.label_names, self.dataset.bad_file_log)
        rng = np.random.default_rng([seed, 1])
        self.order = rng.permutation(size) if shuffled else np.arange(size)
        self.config, self.seed, self.shuffled = config, seed, shuffled
        self.threads, self.exact_size = threads, exact_size

    def load(self, indices: Sequence[int]) -> list[Video | SkippedFile]:
        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(self._load, indices))

    def _load(self, index: int) -> Video | SkippedFile:
        try:
            clip = int(self.order[index])
            if self.exact_size and isinstance(self.dataset, FileDataset):
                self._check_size(self.dataset.clips[clip].path)
            sample = self.dataset.get(clip)
        except UnusableVideo as error:
            return SkippedFile(error.path, error.reason)
        return Video(
            index=index,
            name=str(sample["path"]),
            frames=sample["video"],
            fps=float(sample["fps"]),
            label=int(sample["label"]),
            asked=str(sample["caption"]),
        )

    def _check_size(self, path: str) -> None:
        info = read_video_info(path, timeout=self.config.timeout)
        if (info.height, info.width) != self.sizes[1:]:
            raise ValueError(
                f"{path} has {info.height}x{info.width} pixels, the real videos are measured at "
                f"{self.sizes[1]}x{self.sizes[2]}; set data.height and data.width to the size of "
                "the samples, or name the folder as generated.kind=data to have it resized"
            )

    def known_labels(self, number: int) -> list[int] | None:
        if not isinstance(self.dataset, FileDataset):
            return None
        return [self.dataset.clips[clip].label for clip in self.order[:number]]

    def labels(self, number: int) -> list[int]:
        """The classes of the first videos; files are not read for it."""
        known = self.known_labels(number)
        if known is not None:
            return known
        return [int(self.dataset.get(int(clip))["label"]) for clip in self.order[:number]]

    def caption(self, index: int) -> str:
        """The caption of a video, without reading it."""
        return self.dataset.captions(int(self.order[index]), 1)[0]

    def protocol(self, n: int) -> dict[str, Any]:
        chosen = f"random order of seed {self.seed}" if self.shuffled else "order of the paths"
        return {
            "kind": "data",
            **data_protocol(self.config, n),
            "clips": self.number,
            "chosen": f"the first {n} that can be used, in {chosen}",
        }

    def identity(self) -> dict[str, Any]:
        """What the videos depend on, for the cache."""
        digest = hashlib.sha256()
        if isinstance(self.dataset, FileDataset):
            for clip in self.dataset.clips:
                path = Path(clip.path)
                # A file that was exchanged under the same name makes other statistics.
                state = path.stat() if path.exists() else None
                version = (state.st_size, state.st_mtime_ns) if state else None
                digest.update(repr((clip.path, clip.label, version)).encode())
        return {"data": repr(self.config), "seed": self.seed, "files": digest.hexdigest()}


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
        self.folder, self.label_names = Path(folder), list(label_names)
        self.known = read_sample_labels(self.folder, label_names)
        assert isinstance(self.dataset, FileDataset)
        paths = [Path(clip.path) for clip in self.dataset.clips]
        # sample.py writes each sample twice: a .gif beside a video of its name is no other sample.
        others = {path.with_suffix("") for path in paths if path.suffix.lower() != ".gif"}
        kept = [
            index
            for index, path in enumerate(paths)
            if path.suffix.lower() != ".gif" or path.with_suffix("") not in others
        ]
        self.order, self.number = np.array(kept), len(kept)

    def known_labels(self, number: int) -> list[int] | None:
        assert isinstance(self.dataset, FileDataset)
        names = [Path(self.dataset.clips[clip].path).name for clip in self.order[:number]]
        return [self.known.get(name, (-1, ""))[0] for name in names]

    def _load(self, index: int) -> Video | SkippedFile:
        video = super()._load(index)
        if isinstance(video, SkippedFile):
            return video
        label, asked = self.known.get(Path(video.name).name, (-1, video.asked))
        return replace(video, label=label, asked=asked)

    def protocol(self, n: int) -> dict[str, Any]:
        made_by = sample_protocol(self.folder)
        return super().protocol(n) | {"kind": "videos"} | ({"made_by": made_by} if made_by else {})


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
        self.files = sorted(self.folder.rglob(f"*{LATENTS_SUFFIX}"))
        if not self.files:
            raise ValueError(f"no latents found in {folder}; looked for *{LATENTS_SUFFIX}")
        model: Any = load_autoencoder(autoencoder_path(autoencoder))[0]
        self.model = model.to(device)
        self.autoencoder = autoencoder
        self.known = read_sample_labels(self.folder, label_names)
        sizes, number = model.sizes, len(self.files)
        super().__init__(
            number,
            (sizes.num_frames, sizes.height, sizes.width),
            label_names,
            BadFileLog(number, max_bad_fraction),
        )

    @torch.no_grad()
    def load(self, indices: Sequence[int]) -> list[Video | SkippedFile]:
        return [self._load(index) for index in indices]

    def known_labels(self, number: int) -> list[int] | None:
        return [self._asked(file)[0] for file in self.files[:number]]

    def _asked(self, file: Path) -> tuple[int, str]:
        """The class of a sample, and what it was asked for."""
        return self.known.get(f"{file.name.removesuffix(LATENTS_SUFFIX)}.mp4", (-1, ""))

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
        made_by = sample_protocol(self.folder)
        return {
            "kind": "latents",
            "path": str(self.folder),
            "n": n,
            "files": self.number,
            "autoencoder": model_protocol(self.autoencoder, self.model),
        } | ({"made_by": made_by} if made_by else {})


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
        self.pipeline = VidTwinPipeline.from_pretrained(
            config.path, torch_dtype=DTYPES[config.dtype]
        )
        if config.scheduler:
            self.pipeline.scheduler = build_scheduler(config.scheduler, self.pipeline.scheduler)
        self.pipeline.to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.config = config
        sizes, trained = self.pipeline.autoencoder.sizes, self.pipeline.transformer.sizes
        super().__init__(number, (sizes.num_frames, sizes.height, sizes.width))
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
        return [self.label(index) for index in range(number)]

    def load(self, indices: Sequence[int]) -> list[Video | SkippedFile]:
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
        config, scheduler = self.config, self.pipeline.scheduler
        digests = {
            name: weights_digest(part)
            for name, part in self.pipeline.components.items()
            if isinstance(part, torch.nn.Module)
        }
        return {
            "kind": "pipeline",
            "checkpoint": config.path,
            "weights_digests": digests,
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


def autoencoder_path(path: str | Path) -> Path:
    """The folder of the autoencoder itself, also where a pipeline's is named."""
    inside = Path(path).expanduser() / "autoencoder"
    whole = Path(path).expanduser() / "model_index.json"
    return inside if whole.is_file() else Path(path).expanduser()


def model_sizes(config: VideosConfig) -> Sizes | None:
    """(T, H, W) that a pipeline or decoder makes, from its config file; None where not known."""
    named = config.path if config.kind == "pipeline" else config.autoencoder or config.path
    if config.kind not in ("pipeline", "latents") or named is None:
        return None
    file = autoencoder_path(named) / "config.json"
    if not file.is_file():
        return None
    found = json.loads(file.read_text(encoding="utf-8"))
    if not {"num_frames", "height", "width"} <= set(found):
        return None
    return found["num_frames"], found["height"], found["width"]


def build_real(config: DataConfig, seed: int, threads: int = 1) -> DataVideos:
    """The real videos, in a random order."""
    return DataVideos(config, seed, threads=threads)


def build_generated(
    config: VideosConfig,
    real: DataVideos,
    number: int,
    device: torch.device,
    threads: int = 1,
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


def iterate_videos(
    source: VideoSource,
    number: int | None,
    batch_size: int,
    processes: Processes,
    work: Any,
    what: str,
) -> Iterator[tuple[list[Any], list[SkippedFile]]]:
    """What `work` makes of each batch, in the order of the videos, on every process.

    Batches are of fixed consecutive indices; those of a round are shared out, one for each
    process, gathered and given in order, so that sums over them are the same for any number of
    processes.

    Args:
        number: how many usable videos to take; None for all.
        work: takes a list of `Video`, returns a picklable row for each.
        what: names the videos in errors.
    Yields:
        The rows of a batch, and the files of it that could not be used.
    Raises:
        ValueError: if there are fewer usable videos than asked for.
        TooManyBadFiles: if more files are bad than `max_bad_fraction` allows.
    """
    wanted = check_number(source, number, what)
    # Every file that is beyond the wanted ones is a reserve for those that can't be used.
    batches = batches_of(len(source), batch_size)
    done, skipped = 0, 0
    # None: a bar on a terminal, none in a file.
    silent = None if processes.main else True
    bar = tqdm(total=wanted, desc=what, unit="video", disable=silent, leave=False)
    for first in range(0, len(batches), processes.count):
        mine = batches[first + processes.rank : first + processes.rank + 1]
        results = []
        for batch in mine:
            loaded = source.load(batch)
            usable = [video for video in loaded if isinstance(video, Video)]
            bad = [file for file in loaded if isinstance(file, SkippedFile)]
            results.append((batch.start, work(usable) if usable else [], bad))
        for _, rows, bad in sorted(processes.gather(results), key=lambda result: result[0]):
            if done == wanted:
                continue
            source.bad_files.add(bad)
            skipped += len(bad)
            rows = rows[: wanted - done]
            done += len(rows)
            bar.update(len(rows))
            yield rows, bad
        if done == wanted:
            break
    bar.close()
    if done == wanted:
        return
    if number is not None:
        raise _too_few(what, wanted, done, skipped)
    if done == 0:
        raise ValueError(f"none of the {len(source)} {what} videos can be used")


def check_number(source: VideoSource, number: int | None, what: str) -> int:
    """How many videos are wanted, None for all.

    Raises:
        ValueError: if a source can't have as many.
    """
    if number is not None and number > len(source):
        raise _too_few(what, number, len(source), 0)
    return len(source) if number is None else number


def _too_few(what: str, wanted: int, found: int, skipped: int) -> ValueError:
    lost = f" ({skipped} files can't be used)" if skipped else ""
    name = "num_real" if what == "real" else "num_videos"
    return ValueError(
        f"{name} asks for {wanted} {what} videos and there are {found}{lost}; lower it to "
        f"{found}, or name more videos"
    )


def sample_protocol(folder: Path) -> dict[str, Any] | None:
    """What the sample.json of a folder says of how its videos were made, without times."""
    file = folder / "sample.json"
    if not file.is_file():
        return None
    made_by = json.loads(file.read_text(encoding="utf-8")).get("made_by", {})
    return {k: v for k, v in made_by.items() if k not in ("seconds", "processes", "command")}


def read_sample_labels(folder: Path, label_names: Sequence[str] = ()) -> dict[str, tuple[int, str]]:
    """File name -> (class, what was asked for), from the sample.json of a folder if it has one.

    Classes are numbered as `label_names` are, if one of these was asked for by name; else as the
    pipeline that was asked numbered them.
    """
    file = folder / "sample.json"
    if not file.is_file():
        return {}
    found = {}
    for row in json.loads(file.read_text(encoding="utf-8")).get("samples", []):
        asked, label = str(row.get("asked", "")), row.get("class_label")
        name = asked.rpartition(", ")[2]
        if label is not None and name in label_names:
            label = list(label_names).index(name)
        for file_name in row.get("files", []):
            if file_name.endswith(".mp4"):
                found[Path(file_name).name] = (-1 if label is None else int(label), asked)
    return found
