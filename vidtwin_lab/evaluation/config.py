"""What the configs of several measurements share; imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from diffusion.config import GUIDANCE_SCALE, NUM_INFERENCE_STEPS
from diffusion.pipeline_files import check_asked, find_pipeline, pipeline_folder
from diffusion.scheduler_names import SCHEDULER_NAMES
from vidtwin.config import WEIGHT_DTYPES
from vidtwin.data import DataConfig

__all__ = [
    "CodecConfig",
    "FeaturesConfig",
    "Sizes",
    "VideosConfig",
    "autoencoder_path",
    "check_choice",
    "check_least",
    "crf_of",
    "model_sizes",
]

PRESETS = (
    *("ultrafast", "superfast", "veryfast", "faster", "fast", "medium"),
    *("slow", "slower", "veryslow"),
)
FORMATS = ("yuv420p", "yuv444p")
TUNES = ("psnr", "ssim")
MAX_CRF = 51
REENCODE = re.compile(r"h264@(\d+)")


def check_choice(
    key: str, value: str | None, allowed: Collection[str], *, or_null: bool = False
) -> None:
    """Raises ValueError unless `value` is one of the allowed values."""
    if value not in allowed and not (or_null and value is None):
        null = ", or null" if or_null else ""
        raise ValueError(f"{key} must be one of {', '.join(allowed)}{null}, got {value!r}")


def check_least(config: Any, prefix: str = "", **least: int) -> None:
    """Raises ValueError for a field of `config` below its least value; None passes.

    Args:
        config: a dataclass.
        prefix: of the key in the message, such as "sampling.".
        least: field -> least value.
    """
    for name, bound in least.items():
        value = getattr(config, name)
        if value is not None and value < bound:
            raise ValueError(f"`{prefix}{name}` must be at least {bound}, got {value}")


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """How H.264 is measured.

    Args:
        crfs: qualities, each from 0 (best) to 51 (worst); a clip is encoded at every one of them.
        pixel_formats: "yuv420p", the usual one, with colour at half the resolution, which bounds
            the PSNR of bright colours whatever the rate; "yuv444p", with all of it; or both, each
            a curve of its own. Frames of an odd size have the second alone.
        preset: x264's, how much work it spends.
        tune: "psnr" or "ssim" has x264 optimise that instead of what looks best; null leaves it.
    Raises:
        ValueError: for a value that is out of range.
    """

    crfs: tuple[int, ...] = (6, 10, 14, 18, 22, 26, 30, 34, 38, 42, 46, 51)
    pixel_formats: tuple[str, ...] = ("yuv420p", "yuv444p")
    preset: str = "medium"
    tune: str | None = "psnr"

    def __post_init__(self) -> None:
        sound = all(0 <= crf <= MAX_CRF for crf in self.crfs)
        if len(self.crfs) < 2 or not sound or sorted(set(self.crfs)) != list(self.crfs):
            raise ValueError(
                f"codec.crfs must be at least two rising qualities from 0 to {MAX_CRF}, got "
                f"{list(self.crfs)}"
            )
        formats = self.pixel_formats
        if not formats or len(set(formats)) < len(formats) or not set(formats) <= set(FORMATS):
            raise ValueError(
                f"codec.pixel_formats must name some of {', '.join(FORMATS)}, each once, got "
                f"{list(formats)}"
            )
        check_choice("codec.preset", self.preset, PRESETS)
        if self.tune is not None and self.tune not in TUNES:
            raise ValueError(f"codec.tune must be {' or '.join(TUNES)}, or null, got {self.tune!r}")


def crf_of(reencode: str | None) -> int | None:
    """The CRF of "h264@23"; None for None.

    Raises:
        ValueError: for something else.
    """
    if reencode is None:
        return None
    match = REENCODE.fullmatch(reencode)
    if match is None or int(match[1]) > MAX_CRF:
        raise ValueError(
            f"reencode must be h264@CRF with a CRF from 0 to {MAX_CRF}, such as h264@23, or null, "
            f"got {reencode!r}"
        )
    return int(match[1])


@dataclass(frozen=True, kw_only=True)
class TorchScriptFile:
    """A network that is passed around as a TorchScript file."""

    file_name: str
    url: str
    about: str


TORCHSCRIPT = {
    "i3d": TorchScriptFile(
        file_name="i3d_torchscript.pt",
        url="https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1",
        about="I3D of FVD",
    ),
    "c3d": TorchScriptFile(
        file_name="c3d_ucf101.pt",
        url="https://www.dropbox.com/s/jxpu7avzdc9n97q/c3d_ucf101.pt?dl=1",
        about="C3D of UCF-101's inception score",
    ),
}


# Of our own functions, those that a config file may name too.
OWN_FEATURES = "vidtwin_lab.evaluation.features:random_convolutions"
CLASSIFIER_FEATURES = "vidtwin_lab.evaluation.features:trained_classifier"


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """Which network makes the features.

    Args:
        name: "i3d", "c3d", "videomae" or "MODULE:FUNCTION". The function gets `path`, if there is
            one, and returns a module or another callable that takes (B, 3, T, H, W) videos in
            [-1, 1] and returns (B, D) features, or a pair of features and class probabilities.
            As it may be any program, a config file can't name one.
        path: the TorchScript file, VideoMAE's folder or hub id, or what the function gets.
        run_program: run the TorchScript file, which is a program as well as weights; not to be set
            by a config file.
        download: fetch the TorchScript file if it isn't there.
        digest: first digits of the expected digest; None takes what comes, and reports it.
    Raises:
        ValueError: for another name.
    """

    FILE_VALUES: ClassVar[dict[str, tuple[Any, ...]]] = {
        "name": (*TORCHSCRIPT, "videomae", OWN_FEATURES, CLASSIFIER_FEATURES),
        "run_program": (False,),
    }

    name: str = "i3d"
    path: str | None = None
    run_program: bool = False
    download: bool = False
    digest: str | None = None

    def __post_init__(self) -> None:
        if self.name not in (*TORCHSCRIPT, "videomae") and self.name.count(":") != 1:
            raise ValueError(
                "features.name must be i3d, c3d, videomae or MODULE:FUNCTION, such as "
                f"{OWN_FEATURES}; got {self.name!r}"
            )
        if self.name == "videomae" and not self.path:
            raise ValueError(
                "features.name=videomae needs features.path: a folder, or a hub id such as "
                "MCG-NJU/videomae-base-finetuned-kinetics"
            )
        if self.name == CLASSIFIER_FEATURES and not self.path:
            raise ValueError(
                f"features.name={self.name} needs features.path: the output folder of "
                "evaluate.py classifier"
            )


KINDS = ("pipeline", "videos", "latents", "data")
CONDITIONS = ("auto", "prompts", "classes", "both", "none")
DISTRIBUTIONS = ("balanced", "data")
Sizes = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class VideosConfig:
    """The videos that are measured.

    Args:
        kind: "pipeline" samples on the fly; "videos" and "latents" are folders; "data" is another
            data set, such as the validation part, which tells what distance to expect of real
            videos.
        path: the pipeline (its folder, its run folder or a hub id), or the folder.
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
        choices = {
            "kind": KINDS,
            "conditions": CONDITIONS,
            "class_distribution": DISTRIBUTIONS,
            "dtype": WEIGHT_DTYPES,
        }
        for name, allowed in choices.items():
            check_choice(f"generated.{name}", getattr(self, name), allowed)
        check_choice("generated.scheduler", self.scheduler, SCHEDULER_NAMES, or_null=True)
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

    def check_files(self) -> None:
        """Raises ValueError for what is not there, or can't be asked of it; loads nothing."""
        if self.data is not None:
            self.data.check_files()
        elif self.kind == "pipeline":
            found = find_pipeline(str(self.path))
            if found is not None:
                check_asked(found, scheduler=self.scheduler)
        elif not Path(str(self.path)).expanduser().is_dir():
            raise ValueError(
                f"generated.path={self.path} is no folder; expected one of {self.kind}"
            )


def autoencoder_path(path: str | Path) -> Path:
    """The folder of the autoencoder itself, also where a pipeline's is named."""
    folder = pipeline_folder(path)
    return folder / "autoencoder" if (folder / "model_index.json").is_file() else folder


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
