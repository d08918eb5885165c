"""Where a saved autoencoder lies, found without loading it; imports no torch.

So a command refuses a wrong path at once, and `building.load_autoencoder` loads what is found here.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from vidtwin.config import AutoencoderConfig
from vidtwin.files import shipped_path
from vidtwin.yaml_files import read_config_file

__all__ = ["find_autoencoder", "read_model_section"]

# What a run of train_ae.py leaves, best first, and that of the pipeline of another run.
MODEL_FOLDERS = ("autoencoder_ema", "autoencoder", "pipeline/autoencoder")
OFFICIAL_SUFFIXES = (".ckpt", ".safetensors", ".pt", ".pth")
CONFIG_SUFFIXES = (".yaml", ".yml")


def find_autoencoder(path: str | Path, *, untrained: bool = False) -> Path:
    """The folder or file that an autoencoder is loaded from.

    Args:
        path: a `save_pretrained` folder, a run folder of train_ae.py (EMA weights are preferred
            to the last ones), that of a pipeline or of its run, or a released checkpoint file.
        untrained: also accept the YAML config of a train_ae.py run, for `--dry-run`.
    Raises:
        ValueError: if there is no autoencoder.
    """
    path = shipped_path(path)
    if path.suffix in CONFIG_SUFFIXES:
        if not untrained:
            raise ValueError(
                f"{path} is the config of an autoencoder, which only --dry-run takes: train it "
                f"with train_ae.py --config {path}, and name its run folder"
            )
        read_model_section(path)
        return path
    if path.is_file():
        if path.suffix.lower() not in OFFICIAL_SUFFIXES:
            raise ValueError(
                f"a model file must be a released checkpoint ({', '.join(OFFICIAL_SUFFIXES)}), "
                f"got {path}"
            )
        return path
    if not path.is_dir():
        raise ValueError(
            f"the model {path} does not exist; expected a folder written by save_pretrained, "
            "the run folder of train_ae.py, or a released .ckpt or .safetensors file"
            + ("; a config shows sizes too, such as configs/ae/official.yaml" if untrained else "")
        )
    candidates = (path, *(path / name for name in MODEL_FOLDERS))
    folder = next((one for one in candidates if (one / "config.json").is_file()), None)
    if folder is None:
        raise ValueError(
            f"the folder {path} holds no autoencoder: expected config.json in it (save_pretrained) "
            f"or in {' or '.join(MODEL_FOLDERS)} below it (a run of train_ae.py has them from its "
            "first checkpoint on, after save_every steps)"
        )
    return folder


def read_model_section(path: Path) -> AutoencoderConfig:
    """The sizes in the YAML config of a train_ae.py run."""
    return AutoencoderConfig.from_dict(_model_section(path))


def _model_section(path: Path) -> dict[str, Any]:
    """The section `model` of a YAML config, on top of that of its `base`."""
    section = read_config_file(path).get("model") or {}
    if not isinstance(section, dict):
        raise ValueError(f"{path}: `model` must be a mapping, got {section!r}")
    unknown = section.keys() - {field.name for field in dataclasses.fields(AutoencoderConfig)}
    if unknown:
        raise ValueError(f"{path}: unknown keys of `model`: {', '.join(sorted(map(str, unknown)))}")
    return section
