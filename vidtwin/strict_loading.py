"""Strict loading of weights: what diffusers' ModelMixin only warns about is an error here."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

__all__ = ["StrictLoading", "load_strictly", "refuse_misfits"]

if TYPE_CHECKING:
    from typing_extensions import Self


class StrictLoading:
    """A base class for models, before ModelMixin: makes `from_pretrained` strict."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[str] | None, **kwargs: Any
    ) -> Self:
        """A saved model in evaluation mode, with every weight read from its safetensors file.

        diffusers itself only warns about missing weights, and falls back to pickles where there
        is no safetensors file.

        Args:
            pretrained_model_name_or_path: a folder of `save_pretrained`, or a hub id.
            kwargs: those of diffusers' `ModelMixin.from_pretrained`, and config overrides.
        Raises:
            ValueError: naming the weights or config keys that are missing or unexpected, or if
                another file format is requested.
            OSError: if there is no such folder, or no safetensors file in it.
        """
        if kwargs.get("use_safetensors") not in (None, True) or kwargs.get("use_flashpack"):
            raise ValueError(
                "weights are read from safetensors files only; remove the keyword "
                "use_safetensors or use_flashpack"
            )
        wants_report = kwargs.pop("output_loading_info", False)
        kwargs |= {"use_safetensors": True, "output_loading_info": True}
        try:
            loaded: Any = super().from_pretrained(  # type: ignore[misc]
                pretrained_model_name_or_path, **kwargs
            )
        except RuntimeError as error:  # raised by torch for weights of other shapes
            reason = " ".join(str(error).split())
            raise ValueError(f"{pretrained_model_name_or_path}: {reason}") from error
        model, report = loaded
        known = {*inspect.signature(cls.__init__).parameters, "quantization_config"}
        refuse_misfits(
            pretrained_model_name_or_path,
            {
                "missing": report["missing_keys"],
                "unexpected": report["unexpected_keys"],
                "other shape": [key for key, *_ in report["mismatched_keys"]],
                "unknown in config.json": [
                    key for key in model.config if key not in known and not key.startswith("_")
                ],
            },
        )
        return loaded if wants_report else model


def load_strictly(
    model: nn.Module,
    weights: Mapping[str, torch.Tensor],
    path: str | PathLike[str],
    unknown: Sequence[str],
) -> None:
    """Loads converted weights into the model.

    Args:
        model: gets the weights.
        weights: state dict under our names.
        path: the file of the weights, for the message.
        unknown: names in the file that have no counterpart among ours.
    Raises:
        ValueError: naming every weight that is missing, unexpected or of another shape.
    """
    wanted = model.state_dict()
    shapes = [
        f"{key}: file {tuple(weights[key].shape)}, model {tuple(wanted[key].shape)}"
        for key in set(weights) & set(wanted)
        if weights[key].shape != wanted[key].shape
    ]
    problems = {
        "missing (our names)": [*(set(wanted) - set(weights))],
        "unexpected (released names)": unknown,
        "unexpected (our names)": [*(set(weights) - set(wanted))],
        "other shape": shapes,
    }
    advice = "; pass the model's sizes as keywords, e.g. from_official(path, encoder_heads=12)"
    refuse_misfits(path, problems, advice)
    model.load_state_dict(weights, strict=True)


def refuse_misfits(source: object, problems: Mapping[str, Sequence[str]], advice: str = "") -> None:
    """Raises ValueError if there is any problem, listing each with the keys that have it."""
    found = [f"{name}: {', '.join(sorted(keys))}" for name, keys in problems.items() if keys]
    if found:
        raise ValueError(f"{source} does not fit this model; {'; '.join(found)}{advice}")
