"""What a pipeline must consist of, and how a saved one is loaded without running foreign code."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

# torch is imported where it is used: `find_pipeline` answers a command without it.
from diffusion.cache_format import LATENT_NAMES
from diffusion.inputs import class_indices
from diffusion.scheduler_names import check_scheduler_name, scheduler_names, stepped_by
from diffusion.text_loading import load_text_model
from vidtwin.files import shipped_path
from vidtwin.hub_names import check_local_path
from vidtwin.text_files import read_json

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

__all__ = [
    "PipelineFiles",
    "check_asked",
    "check_parts",
    "check_pipeline_folder",
    "check_scheduler",
    "find_pipeline",
    "load_parts",
    "pipeline_folder",
]

INDEX = "model_index.json"
RUN_CONFIG, RUN_PIPELINE = "config.yaml", "pipeline"  # of a run folder of train_diffusion.py
CLASS_NAME = "VidTwinPipeline"
# Where the class of a component may come from: diffusers imports the module that the index names,
# so a foreign name in it would be foreign code.
REQUIRED = {
    "autoencoder": ("vidtwin.autoencoder", "VidTwinAutoencoder"),
    "transformer": ("diffusion.dit", "TwinDiT"),
    "latent_stats": ("diffusion.latent_stats", "LatentStats"),
    "scheduler": ("diffusers", None),
}
# Of diffusers, the classes that an index may name: its schedulers that can fit an objective here.
SCHEDULER_CLASSES = (
    *("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "DDIMScheduler"),
    *("DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler"),
    *("DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler"),
    *("HeunDiscreteScheduler", "PNDMScheduler", "UniPCMultistepScheduler"),
)
TOKENIZER_CLASS = re.compile(r"(?!Auto)\w+Tokenizer(Fast)?")
OPTIONAL = {"text_encoder": ("transformers", None), "tokenizer": ("transformers", None)}
COMPONENTS = (*REQUIRED, *OPTIONAL)
DOWNLOAD_OPTIONS = (
    *("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token"),
    "variant",
)


def pipeline_folder(name: str | PathLike[str]) -> Path:
    """Where the pipeline of this name lies, if it is a folder: its own, a run's, a shipped one."""
    folder = shipped_path(str(name))
    below = folder / RUN_PIPELINE
    return below if (below / INDEX).is_file() and not (folder / INDEX).is_file() else folder


class PipelineFiles:
    """A base class of the pipeline: how it is loaded, saved and pushed."""

    if TYPE_CHECKING:
        scheduler: Any
        register_modules: Any

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> Self:
        """A saved pipeline, every part of it from safetensors files.

        Args:
            pretrained_model_name_or_path: a folder of `save_pretrained`, or a hub id.
            kwargs: those of diffusers' `DiffusionPipeline.from_pretrained`. The parts are float32
                unless `torch_dtype` asks for another dtype, whatever they are stored in.
        Raises:
            ValueError: naming the part that is missing, or does not belong.
        """
        return load_parts(  # type: ignore[no-any-return]
            cls,
            super().from_pretrained,  # type: ignore[misc]
            pretrained_model_name_or_path,
            kwargs,
        )

    def save_pretrained(
        self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any
    ) -> None:
        """Writes a folder that `from_pretrained` reads, with a model card (README.md).

        A card that lies there stays, unless it was written by this method.

        Args:
            save_directory: the folder.
            args, kwargs: as of diffusers' own method.
        """
        from diffusion.model_card import write_model_card
        from diffusion.schedulers import without_notes

        noted = self.scheduler
        self.register_modules(scheduler=without_notes(noted))
        try:
            super().save_pretrained(  # type: ignore[misc]
                str(save_directory), *args, **kwargs
            )
        finally:
            self.register_modules(scheduler=noted)
        write_model_card(self, Path(save_directory))

    def _upload_folder(self, working_dir: str | PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Puts our card in place of diffusers' template, which `push_to_hub` has just written."""
        from diffusion.model_card import write_model_card

        write_model_card(self, Path(working_dir))
        return super()._upload_folder(working_dir, *args, **kwargs)  # type: ignore[misc]


def find_pipeline(name: str | PathLike[str]) -> Path | None:
    """The folder of a saved pipeline, with all its parts; None for what must be a hub id.

    Args:
        name: a folder of `save_pretrained`, a run folder of train_diffusion.py, a shipped
            pipeline such as "checkpoints/shapes", or a hub id.
    Raises:
        ValueError: if it is none of them, or the folder holds no pipeline.
    """
    folder = pipeline_folder(name)
    if folder.is_dir():
        check_pipeline_folder(folder)
        return folder
    check_local_path(str(name), "pipeline")
    if "/" not in str(name):  # no pipeline on the hub is without an owner
        raise ValueError(f"the pipeline {name} does not exist: expected a folder or a hub id")
    return None


def check_pipeline_folder(folder: Path, passed: Collection[str] = ()) -> dict[str, Any]:
    """The index of a pipeline's folder, if all its parts are there and are what they should be.

    Args:
        folder: written by `VidTwinPipeline.save_pretrained`.
        passed: the components that are given from elsewhere.
    Returns:
        dict: component -> (module, class) or (None, None), and the pipeline's own config.
    Raises:
        ValueError: naming the first part that is missing or is something else.
    """
    index = folder / INDEX
    if not index.is_file():
        if (folder / RUN_CONFIG).is_file():
            raise ValueError(
                f"the run {folder} has no {RUN_PIPELINE}/: a run of train_diffusion.py has one as "
                "soon as its training begins, other runs have none"
            )
        raise ValueError(
            f"{folder} holds no pipeline: there is no {INDEX} in it; name a run folder of "
            "train_diffusion.py, or a folder written by save_pretrained"
        )
    entries = _read_json(index)
    if (found := entries.get("_class_name")) != CLASS_NAME:
        raise ValueError(f"{folder} holds another pipeline: expected {CLASS_NAME}, got {found!r}")
    for name, (module, class_name) in (REQUIRED | OPTIONAL).items():
        if name in passed:
            continue
        came = entries.get(name) or [None, None]
        if came[0] is None:
            if name in REQUIRED:
                raise ValueError(f"the pipeline {folder} has no {name} in its {INDEX}")
            continue
        if came[0] != module or class_name not in (None, came[1]):
            wanted = f"a class of {module}" if class_name is None else f"{module}.{class_name}"
            raise ValueError(f"{index}: {name} must be {wanted}, got {'.'.join(map(str, came))}")
        if name == "tokenizer" and not TOKENIZER_CLASS.fullmatch(str(came[1])):
            raise ValueError(f"{index}: tokenizer must be a tokenizer's class, got {came[1]}")
        if name == "scheduler":
            _check_scheduler_class(index, came[1])
        if not (folder / name).is_dir():
            raise ValueError(f"the pipeline {folder} is not whole: the folder {name!r} is missing")
        if any((folder / name).glob("*.py")):  # which some versions of diffusers would run
            raise ValueError(f"the pipeline {folder} has code in its folder {name!r}; remove it")
        settings = folder / name / "tokenizer_config.json"
        if settings.is_file() and "auto_map" in settings.read_text(encoding="utf-8"):
            raise ValueError(f"{settings} names code of its own (auto_map), which is never run")
    return entries


def check_asked(
    folder: Path,
    scheduler: str | None = None,
    prompts: Sequence[str] | None = None,
    class_labels: Sequence[str] | None = None,
) -> None:
    """Refuses what a saved pipeline can't do, by its JSON files, before anything is loaded.

    Args:
        folder: of `find_pipeline`.
        scheduler, prompts, class_labels: that are asked for.
    Raises:
        ValueError: as the loaded pipeline would.
    """
    index = _read_json(folder / INDEX)
    sizes = _read_json(folder / "transformer" / "config.json")
    num_classes, text_size = sizes.get("num_classes"), sizes.get("text_hidden_size")
    if scheduler is not None:
        check_scheduler_name(scheduler, index.get("prediction", "velocity"))
    if prompts is not None:
        check_trained_with("text", text_size, num_classes)
    if class_labels is not None:
        check_trained_with("classes", num_classes, text_size)
        class_indices(class_labels, int(num_classes or 0), index.get("class_names"))


def check_trained_with(condition: str, size: int | None, others: int | None) -> None:
    """Raises ValueError unless the transformer was trained with a condition.

    Args:
        condition: "text" or "classes".
        size: of the condition, None for a transformer without it.
        others: the size of the other condition.
    """
    if size is None:
        name, other = ("prompt", "class_labels")
        if condition == "classes":
            name, other = other, name
        known = f"; ask by `{other}`" if others else ""
        raise ValueError(
            f"this pipeline was not trained with {condition}: leave out `{name}`{known}"
        )


def _read_json(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no JSON object")
    return content


def _check_scheduler_class(index: Path, name: object) -> None:
    """Raises unless the class is on the list, in the index and in the scheduler's own config."""
    config = index.parent / "scheduler" / "scheduler_config.json"
    content = _read_json(config) if config.is_file() else {}
    told = content.get("_class_name", name)
    for file, found in ((index, name), (config, told)):
        if found not in SCHEDULER_CLASSES:
            raise ValueError(
                f"{file}: the scheduler must be one of {', '.join(SCHEDULER_CLASSES)}, got {found}"
            )


def check_parts(pipeline: Any) -> None:
    """Raises ValueError unless a pipeline's components belong together."""
    sizes, latents = pipeline.transformer.sizes, pipeline.autoencoder.sizes
    for name in LATENT_NAMES:
        made, decoded = getattr(sizes, f"{name}_shape"), getattr(latents, f"{name}_shape")
        if made != decoded:
            raise ValueError(
                f"the transformer makes `{name}` of shape {made} and the autoencoder decodes "
                f"{decoded}; they do not belong together"
            )
    channels = (latents.structure_channels, latents.dynamics_channels)
    stats = pipeline.latent_stats.config
    if (stats.structure_channels, stats.dynamics_channels) != channels:
        raise ValueError(
            f"the latent statistics are of {stats.structure_channels} and "
            f"{stats.dynamics_channels} channels, the autoencoder has {channels}"
        )
    width, text_encoder = sizes.text_hidden_size, pipeline.text_encoder
    if text_encoder is not None and text_encoder.config.hidden_size != width:
        raise ValueError(
            f"the transformer was made for text states of width {width}, the text encoder's "
            f"have {text_encoder.config.hidden_size}"
        )
    names = pipeline.config["class_names"]
    if names is not None and len(names) != sizes.num_classes:
        raise ValueError(
            f"`class_names` must be one for each of the {sizes.num_classes} classes, "
            f"got {len(names)}"
        )
    check_scheduler(pipeline)


def check_scheduler(pipeline: Any) -> None:
    """Raises ValueError unless the scheduler, which may be exchanged, fits the transformer."""
    from diffusion.schedulers import prediction_of

    found, expected = prediction_of(pipeline.scheduler), pipeline.config["prediction"]
    if found != stepped_by(expected):
        raise ValueError(
            f"the transformer predicts {expected}, and the scheduler "
            f"{type(pipeline.scheduler).__name__} is for {found}; take one of "
            f"{', '.join(scheduler_names(expected))} by diffusion.schedulers.build_scheduler"
        )


def load_parts(
    pipeline_class: Any,
    load: Callable[..., Any],
    name: str | PathLike[str],
    options: dict[str, Any],
) -> Any:
    """The pipeline of a folder or hub id, float32 unless the options say otherwise.

    Args:
        pipeline_class: VidTwinPipeline.
        load: `from_pretrained` of its base class.
        name: the folder or hub id.
        options: of `from_pretrained`.
    Raises:
        ValueError: in one line, naming the part that is missing or does not fit.
    """
    import torch
    from safetensors import SafetensorError

    if options.get("use_safetensors") not in (None, True):
        raise ValueError("weights are read from safetensors files only; drop `use_safetensors`")
    for option in ("custom_pipeline", "trust_remote_code"):
        if options.get(option):
            raise ValueError(f"a pipeline is loaded without foreign code; drop `{option}`")
    for option in ("dtype", "torch_dtype"):
        given = options.get(option)
        for one in given.values() if isinstance(given, dict) else [given]:
            if not (one is None or given == "auto" or isinstance(one, torch.dtype)):
                raise ValueError(
                    f'`{option}` must be a dtype of torch, such as torch.bfloat16, or "auto" for '
                    f"what is stored, got {one!r}"
                )
    if "dtype" not in options:
        options = {"torch_dtype": torch.float32} | options
    options = options | {"use_safetensors": True}
    folder = pipeline_folder(name)
    if not folder.is_dir():
        find_pipeline(name)
        asked = {key: options[key] for key in DOWNLOAD_OPTIONS if key in options}
        folder = Path(pipeline_class.download(str(name), use_safetensors=True, **asked))
    entries = check_pipeline_folder(folder, [part for part in options if part in COMPONENTS])
    for option in ("dtype", "torch_dtype"):
        if options.get(option) == "auto":
            options[option] = _stored_dtypes(folder)
    try:
        if "text_encoder" not in options and (entries.get("text_encoder") or [None])[0]:
            options["text_encoder"] = _load_text_encoder(folder / "text_encoder", options)
        with warnings.catch_warnings():
            # Where the caller names no dtype; the oldest diffusers here knows no other name of it.
            warnings.filterwarnings("ignore", message=".*`torch_dtype` is deprecated")
            pipeline = load(folder, **options)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"the pipeline {folder} can't be loaded: {error}") from error
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            _align(part)
    return pipeline


def _stored_dtypes(folder: Path) -> dict[str, torch.dtype]:
    """The dtype that the weights of each part are stored in, by the part's name."""
    import torch
    from safetensors import safe_open

    found = {"default": torch.float32}
    for part in COMPONENTS:
        for file in sorted((folder / part).glob("*.safetensors"))[:1]:
            with safe_open(file, "pt") as weights:
                found[part] = weights.get_tensor(next(iter(weights.keys()))).dtype
    return found


def _align(module: torch.nn.Module) -> None:
    """Moves weights out of the mapped file, where they lie at any address.

    Matrix products on the CPU differ in their last bits by the alignment of what they read, and a
    pipeline should make the same video before and after it was saved.
    """
    import torch

    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.clone()


def _load_text_encoder(folder: Path, options: dict[str, Any]) -> Any:
    """The text encoder; transformers alone would only warn of weights that are missing."""
    import torch
    from safetensors import SafetensorError

    dtype = options.get("dtype", options.get("torch_dtype"))
    if isinstance(dtype, dict):
        dtype = dtype.get("text_encoder", dtype.get("default", torch.float32))
    try:
        return load_text_model(str(folder), True, options.get("variant")).to(dtype=dtype)
    except SafetensorError as error:
        raise ValueError(f"the text_encoder in {folder} can't be loaded: {error}") from error
