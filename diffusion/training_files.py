"""The files that a training of the transformer starts from, looked for without loading them.

Imports no torch: a command refuses a wrong path at once.
"""

from __future__ import annotations

from pathlib import Path

from diffusion.cache_format import read_manifest
from diffusion.config import InputsConfig
from diffusion.pipeline_files import pipeline_folder
from diffusion.text_loading import find_encoder
from vidtwin.model_paths import find_autoencoder

__all__ = ["check_input_files", "find_transformer"]


def check_input_files(config: InputsConfig, dry_run: bool = False) -> Path:
    """Where the autoencoder is; looks for the data or the cache, and the text encoder too.

    Args:
        config: of the run.
        dry_run: needs neither data nor text encoder, and takes a config for the autoencoder.
    Raises:
        ValueError: for the first that is not there.
    """
    autoencoder = find_autoencoder(config.autoencoder, untrained=dry_run)
    if dry_run:
        return autoencoder
    if config.cache is None:
        config.data.check_files()
    else:
        read_manifest(Path(config.cache).expanduser() / "train")
    if config.text_encoder is not None:
        find_encoder(config.text_encoder)
    return autoencoder


def find_transformer(init_from: str) -> Path:
    """The folder of a saved transformer, of its own or in a pipeline or run folder.

    Raises:
        ValueError: if there is none in it.
    """
    folder = pipeline_folder(init_from)
    if (folder / "transformer").is_dir():
        folder = folder / "transformer"
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"init_from={init_from} holds no transformer: expected a run folder of "
            "train_diffusion.py, a pipeline's, or a folder such as RUN/pipeline/transformer"
        )
    return folder
