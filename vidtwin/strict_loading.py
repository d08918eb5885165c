"""Loading that is whole or refused: what diffusers' ModelMixin only warns of is an error."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self


class StrictLoading:
    """Before ModelMixin among a model's bases: `from_pretrained` refuses what diffusers alone
    only warns of."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[str] | None, **kwargs: Any
    ) -> Self:
        """A saved model in evaluation mode, with every weight from its safetensors file.

        diffusers alone only warns of weights that are missing, and reads pickles where there is
        no safetensors file.

        Args:
            pretrained_model_name_or_path: a folder of `save_pretrained`, or a hub id.
            kwargs: those of diffusers' `ModelMixin.from_pretrained`, and config overrides.
        Raises:
            ValueError: naming what the file lacks or has too much, in weights or config, or if
                another format is asked for.
            OSError: if there is no such folder, or no safetensors file in it.
        """
        if kwargs.get("use_safetensors") not in (None, True) or kwargs.get("use_flashpack"):
            raise ValueError("weights are read from safetensors files only; drop `use_...`")
        wants_report = kwargs.pop("output_loading_info", False)
        kwargs |= {"use_safetensors": True, "output_loading_info": True}
        try:
            loaded: Any = super().from_pretrained(  # type: ignore[misc]
                pretrained_model_name_or_path, **kwargs
            )
        except RuntimeError as error:  # torch, of other shapes
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


def refuse_misfits(source: object, problems: Mapping[str, Sequence[str]], advice: str = "") -> None:
    """Raises ValueError if there is any problem: its name and every key that has it."""
    found = [f"{name}: {', '.join(sorted(keys))}" for name, keys in problems.items() if keys]
    if found:
        raise ValueError(f"{source} does not fit this model; {'; '.join(found)}{advice}")
