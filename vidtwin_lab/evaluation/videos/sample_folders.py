"""Folders of samples, as sample.py writes them: video files, or latents to decode.

Axes: T frames, H W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vidtwin import decode_windows, load_autoencoder
from vidtwin.data import BadFileLog, DataConfig, FileDataset, SkippedFile
from vidtwin.reconstruction.latent_files import load_windows
from vidtwin_lab.evaluation.report import model_protocol
from vidtwin_lab.evaluation.videos.config import Sizes, autoencoder_path
from vidtwin_lab.evaluation.videos.data_set import DataVideos
from vidtwin_lab.evaluation.videos.sources import Video, VideoSource

__all__ = ["FolderVideos", "LatentVideos"]

LATENTS_SUFFIX = ".latents.safetensors"


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
        """Those that sample.json tells, -1 for the others."""
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
        """How the files are read, and how they were made where sample.json tells it."""
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
        """The decoded videos of one batch; a file that holds no latents is named instead."""
        return [self._load(index) for index in indices]

    def known_labels(self, number: int) -> list[int] | None:
        """Those that sample.json tells, -1 for the others."""
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
        """Which files, what decoded them, and how they were made where sample.json tells."""
        made_by = sample_protocol(self.folder)
        return {
            "kind": "latents",
            "path": str(self.folder),
            "n": n,
            "files": self.number,
            "autoencoder": model_protocol(self.autoencoder, self.model),
        } | ({"made_by": made_by} if made_by else {})


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
