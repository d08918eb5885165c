"""Networks that turn a video into the features that distances of sets are taken between.

    i3d       the Inception network of Unterthiner et al. (2018), Kinetics-400, as the TorchScript
              file of StyleGAN-V that common FVD codes use: 400 values before the softmax
    c3d       the C3D network of UCF-101's inception score, TorchScript: 101 probabilities
    videomae  a VideoMAE of transformers, a folder or hub id: the mean over its tokens
    MODULE:FUNCTION  anything importable; from the command line, never from a config file

A distance is named after its features unless they are I3D's; every report has their digest.

A TorchScript file is a program as well as weights. There is no other form of these two networks
that gives exactly the published numbers, so it is loaded by `torch.jit.load`, if the command line
says `features.run_program=true`, and `features.digest` pins it.

Axes: B videos of a batch, C colour channels, T frames, H W pixels, D features, K classes,
N tokens.
"""

from __future__ import annotations

import hashlib
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn.functional import interpolate

from vidtwin import file_digest, weights_digest
from vidtwin.hub_names import check_local_path
from vidtwin.media import to_levels
from vidtwin_lab.evaluation.config import TORCHSCRIPT, FeaturesConfig, TorchScriptFile

__all__ = [
    "FeatureExtractor",
    "check_finite",
    "features_name",
    "load_features",
    "random_convolutions",
    "trained_classifier",
]

Outputs = tuple[Tensor, Tensor | None]
I3D_SIZE = 224
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VIDEOMAE_CLASSIFIER = "VideoMAEForVideoClassification"


@dataclass(kw_only=True, eq=False)
class FeatureExtractor:
    """A frozen network, ready to be used.

    Args:
        name: as metrics are named after it, see `features_name`.
        digest: 16 hexadecimal digits of what it consists of.
        preprocessing: what is done to a video first, in words.
        probabilities: whether it also gives class probabilities.
        run: videos (B, 3, T, H, W) in [-1, 1] to features (B, D) and, if it has them,
            probabilities (B, K).
        device: where the network is.
        size: D, known after the first video.
        about: what its distances do not say, for the report.
    """

    name: str
    digest: str
    preprocessing: str
    probabilities: bool
    run: Callable[[Tensor], Outputs]
    device: torch.device
    size: int | None = None
    about: str | None = None

    def __call__(self, video: Tensor) -> Tensor:
        """(B, D) float32 features of (B, 3, T, H, W) videos in [-1, 1]; see `both`."""
        return self.both(video)[0]

    @torch.no_grad()
    def both(self, video: Tensor) -> Outputs:
        """Features (B, D) and class probabilities (B, K), or None for a network without classes.

        Args:
            video: (B, 3, T, H, W), float; values beyond [-1, 1] are clipped as a display would.
        Returns:
            Two float32 tensors on the network's device.
        Raises:
            ValueError: if the network can't take such a video, or gives something else.
        """
        if video.ndim != 5 or video.shape[1] != 3 or not video.is_floating_point():
            raise ValueError(
                "expected float videos (B, 3, T, H, W) in [-1, 1], got "
                f"{video.dtype} {tuple(video.shape)}"
            )
        # Not in bf16: differences between sets are far smaller than its steps.
        with torch.autocast(self.device.type, enabled=False):
            try:
                features, probabilities = self.run(video.float().clamp(-1, 1).to(self.device))
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[-1]
                raise ValueError(
                    f"the features {self.name} can't take videos of {video.shape[2]} frames, "
                    f"{video.shape[3]}x{video.shape[4]} pixels: {reason}"
                ) from error
        for what, values in (("features", features), ("probabilities", probabilities)):
            if values is not None and (values.ndim != 2 or len(values) != len(video)):
                raise ValueError(
                    f"{self.name} must give {what} of shape ({len(video)}, ...), one row for each "
                    f"video, got {tuple(values.shape)}"
                )
        self.size = features.shape[1]
        return features.float(), None if probabilities is None else probabilities.float()

    def protocol(self) -> dict[str, Any]:
        """What a report says of it."""
        told = {"name": self.name, "digest": self.digest, "preprocessing": self.preprocessing}
        return told | ({"about": self.about} if self.about else {})


def load_features(config: FeaturesConfig, device: torch.device | str = "cpu") -> FeatureExtractor:
    """The network of a config, frozen, on its device.

    Raises:
        ValueError: if it isn't there, can't be loaded, or is another than `digest` says.
    """
    device = torch.device(device)
    if config.name in TORCHSCRIPT:
        extractor = _load_torchscript(config, device)
    elif config.name == "videomae":
        extractor = _load_videomae(config, device)
    else:
        extractor = _load_function(config, device)
    if config.digest and not extractor.digest.startswith(config.digest[:16].lower()):
        raise ValueError(
            f"the features {extractor.name} have the digest {extractor.digest}, expected "
            f"{config.digest}; this is another file, or correct features.digest"
        )
    return extractor


def features_name(config: FeaturesConfig) -> str:
    """As metrics are named after it: "i3d", "videomae-FOLDER", "MODULE:FUNCTION"."""
    if config.name == "videomae":
        return f"videomae-{Path(config.path or '').name}"
    return config.name


def check_finite(values: Tensor, names: Sequence[str], what: str = "features") -> None:
    """Raises if a row is NaN or infinite.

    Args:
        values: (B, ...), a row for each video.
        names: of the videos.
    Raises:
        ValueError: naming the videos.
    """
    fine = torch.isfinite(values).flatten(1).all(1).tolist()
    bad = [name for name, each in zip(names, fine, strict=True) if not each]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise ValueError(
            f"the {what} of {', '.join(bad[:3])}{more} are not finite; the video is broken, or "
            "the network overflows on it: leave it out, or take other features"
        )


def torchscript_path(config: FeaturesConfig) -> Path:
    """Where the TorchScript file of a config is looked for."""
    if config.path:
        return Path(config.path).expanduser()
    return Path(torch.hub.get_dir()) / "checkpoints" / TORCHSCRIPT[config.name].file_name


def _load_torchscript(config: FeaturesConfig, device: torch.device) -> FeatureExtractor:
    known, path = TORCHSCRIPT[config.name], torchscript_path(config)
    if not path.is_file() and not config.download:
        raise ValueError(
            f"the {known.about} is not at {path}: download {known.url} there, or set "
            f"features.path=FILE, or features.download=true (the file is a program, so it is not "
            "fetched unasked)"
        )
    if not config.run_program:
        raise ValueError(
            f"the {known.about} is a TorchScript file, a program as well as weights; to run it, "
            "write features.run_program=true on the command line (features.digest pins the file)"
        )
    if not path.is_file():
        _download(known, path)
    try:
        network = torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{path} is not the TorchScript file of the {known.about} ({reason}); get "
            f"{known.url} again"
        ) from error

    def run_i3d(video: Tensor) -> Outputs:
        # Two-dimensional, without antialias, each side by its own factor: as TATS does it; the
        # file's own resize=True is left alone, so that there is one resize and it is known.
        resized = _resize(video, I3D_SIZE, antialias=False)
        return network(resized, rescale=False, resize=False, return_features=True), None

    def run_c3d(video: Tensor) -> Outputs:
        # It takes 8-bit frames and does the rest itself.
        probabilities = network(to_levels(video).to(torch.uint8))
        return probabilities, probabilities

    is_i3d = config.name == "i3d"
    within_file = "rounded to 8 bits; resized and normalised within the file"
    stretched = f"frames to {I3D_SIZE}x{I3D_SIZE}, bilinear without antialias; [-1, 1]"
    return FeatureExtractor(
        name=config.name,
        digest=file_digest(path)[:16],
        preprocessing=stretched if is_i3d else within_file,
        probabilities=not is_i3d,
        run=run_i3d if is_i3d else run_c3d,
        device=device,
    )


def _download(known: TorchScriptFile, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(known.url, str(path), progress=False)
    except (URLError, OSError) as error:
        raise ValueError(
            f"the {known.about} could not be downloaded ({error}): put {known.url} at {path} "
            "from a machine with a network"
        ) from error


def _resize(video: Tensor, size: int, antialias: bool) -> Tensor:
    """(B, C, T, H, W) with frames of size x size, each side by its own factor."""
    if tuple(video.shape[-2:]) == (size, size):
        return video
    frames = rearrange(video, "b c t h w -> (b t) c h w")
    resized = interpolate(
        frames, size=(size, size), mode="bilinear", align_corners=False, antialias=antialias
    )
    return rearrange(resized, "(b t) c h w -> b c t h w", b=len(video))


def _load_videomae(config: FeaturesConfig, device: torch.device) -> FeatureExtractor:
    from transformers import AutoConfig, VideoMAEForVideoClassification, VideoMAEModel

    assert config.path is not None
    check_local_path(config.path, "VideoMAE of features.path")
    try:
        settings = AutoConfig.from_pretrained(config.path, trust_remote_code=False)
        if settings.model_type != "videomae":
            raise ValueError(f"{config.path} is a {settings.model_type}, expected a videomae")
        has_classes = VIDEOMAE_CLASSIFIER in (settings.architectures or [])
        model_class: Any = VideoMAEForVideoClassification if has_classes else VideoMAEModel
        model, loading = model_class.from_pretrained(
            config.path, output_loading_info=True, use_safetensors=True, dtype=torch.float32
        )
    except OSError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"the VideoMAE {config.path} can't be loaded ({reason}); save it as safetensors in a "
            "folder by save_pretrained and name that in features.path"
        ) from error
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])[0]
        raise ValueError(f"the VideoMAE {config.path} lacks weights, such as {missing}")
    model = model.to(device).eval().requires_grad_(False)
    frames, size = settings.num_frames, settings.image_size
    return FeatureExtractor(
        name=features_name(config),
        digest=weights_digest(model),
        preprocessing=f"{frames} frames evenly from the first to the last, resized to "
        f"{size}x{size}, bilinear with antialias; ImageNet mean and deviation; "
        "mean over the tokens",
        probabilities=has_classes,
        run=_videomae_runner(model, frames, size, has_classes),
        device=device,
    )


def _videomae_runner(
    model: Any, frames: int, size: int, has_classes: bool
) -> Callable[[Tensor], Outputs]:
    def run(video: Tensor) -> Outputs:
        if video.shape[2] != frames:
            chosen = torch.linspace(0, video.shape[2] - 1, frames).round().long()
            video = video[:, :, chosen.to(video.device)]
        mean, std = (
            rearrange(video.new_tensor(values), "c -> c 1 1 1")
            for values in (IMAGENET_MEAN, IMAGENET_STD)
        )
        pixels = ((_resize(video, size, antialias=True) + 1) / 2 - mean) / std
        pixels = rearrange(pixels, "b c t h w -> b t c h w")
        if not has_classes:
            return reduce(model(pixels).last_hidden_state, "b n d -> b d", "mean"), None
        hidden = model.videomae(pixels).last_hidden_state  # (B, N, D)
        features = reduce(hidden, "b n d -> b d", "mean")
        if model.fc_norm is None:  # such a classifier reads the first token
            return features, model.classifier(hidden[:, 0]).softmax(-1)
        features = model.fc_norm(features)
        return features, model.classifier(features).softmax(-1)

    return run


def _load_function(config: FeaturesConfig, device: torch.device) -> FeatureExtractor:
    try:
        # The user's own word for what to run, such as an extractor of another project; the
        # standard library's reading of "module:function".
        function = pkgutil.resolve_name(config.name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"features.name={config.name} can't be imported ({error}); expected MODULE:FUNCTION of "
            "something on PYTHONPATH"
        ) from error
    if not callable(function):
        raise ValueError(f"features.name={config.name} is not a function")
    made = function(config.path) if config.path else function()
    if not callable(made):
        raise ValueError(
            f"{config.name} must return a module or function of videos, got {type(made).__name__}"
        )
    parts = [_source_of(function)]
    if isinstance(made, nn.Module):
        made = made.to(device).eval().requires_grad_(False)
        parts.append(weights_digest(made))

    def run(video: Tensor) -> Outputs:
        outputs = made(video)
        return (outputs[0], outputs[1]) if isinstance(outputs, tuple | list) else (outputs, None)

    return FeatureExtractor(
        name=config.name,
        digest=hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16],
        preprocessing="its own",
        probabilities=bool(getattr(made, "probabilities", False)),
        run=run,
        device=device,
        about=getattr(made, "about", None),
    )


def _source_of(function: Any) -> str:
    """The source of the module that a function stands in, or its name where there is none."""
    try:
        return inspect.getsource(inspect.getmodule(function) or function)
    except (OSError, TypeError):
        return repr(getattr(function, "__qualname__", type(function)))


class ClassifierFeatures(nn.Module):
    """A trained classifier as features, its last layer before the heads, and probabilities.

    Args:
        classifier: of `evaluate.py classifier`; the probabilities are of its first factor.
    """

    probabilities = True
    about = (
        "a classifier of its own clips: it sees what tells their classes apart, and may take a "
        "video for real that has only that"
    )

    def __init__(self, classifier: Any) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) features and (B, K) probabilities of (B, 3, T, H, W) videos."""
        hidden = self.classifier.hidden(video)
        first = next(iter(self.classifier.heads_of(hidden).values()))
        return hidden, first.softmax(-1)


def trained_classifier(path: str) -> nn.Module:
    """The features of a classifier that `evaluate.py classifier` has trained, such as on own clips.

    Args:
        path: the output folder of its training.
    Raises:
        ValueError: if there is none.
    """
    from vidtwin_lab.evaluation.judges.classifier_judge import load_classifier

    return ClassifierFeatures(load_classifier(path, "features.path"))


def random_convolutions(size: str = "64") -> nn.Module:
    """A small network with fixed random weights, for trying the commands, not for results.

    It tells sets of videos apart by their colours and rough motion, and needs no file.

    Args:
        size: D.
    """
    width = int(size)
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(
        nn.Conv3d(3, 16, (3, 8, 8), stride=(1, 4, 4), padding=(1, 2, 2)),
        nn.Tanh(),
        nn.Conv3d(16, width, (3, 3, 3), stride=(2, 2, 2), padding=1),
        nn.Tanh(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    noted: Any = network  # no module's types have it
    noted.about = (
        "random weights: colours and rough motion alone, nothing of whether a video looks real"
    )
    return network
