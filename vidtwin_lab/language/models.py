"""Language models as classes of transformers: built, loaded, and saved with their tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, ElectraForMaskedLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_PRETRAINING_MAPPING,
)

from diffusion.prefix_attention import MARK
from diffusion.text_loading import find_encoder, one_line, position_table, quiet
from vidtwin_lab.language.config import TOKENIZER_OF, LanguageModelConfig, ObjectiveConfig
from vidtwin_lab.language.objectives.distillation import build_student
from vidtwin_lab.language.objectives.masked_tokens import SpanBoundaryModel
from vidtwin_lab.language.objectives.replaced_tokens import (
    GENERATOR,
    ReplacedTokenModel,
    generator_config,
)

ALBERT_EMBEDDING = 128  # width of ALBERT's embeddings, as published


def build_language_model(
    config: LanguageModelConfig,
    objective: ObjectiveConfig,
    tokenizer: Any,
    init_from: str | None = None,
    teacher: Any = None,
) -> Any:
    """A model of transformers' own class, for the tokens of this tokenizer.

    Args:
        objective: what it is trained with, which decides on its heads.
        init_from: a saved language model's folder or hub id, whose sizes then hold; None for a new
            one.
        teacher: of "distillation": a new model starts from some of its layers.
    Returns:
        nn.Module: with transformers' `config` and `save_pretrained`; a `ReplacedTokenModel` for
            "rtd", a `SpanBoundaryModel` for the span-boundary objective.
    Raises:
        ValueError: if `init_from` is no such model, or has too few positions.
    """
    name = objective.named(config.family)
    kind = _model_class(config.family, name, objective.pairs)
    if init_from is not None:
        model, fresh = _load_language_model(config, kind, tokenizer, init_from)
    elif name == "distillation":
        model, fresh = build_student(teacher, kind, config.num_layers), False
    else:
        model, fresh = kind(_model_config(config, tokenizer)), True
    if (name == "prefix_lm") != getattr(model.config, MARK, False):
        setattr(model.config, MARK, name == "prefix_lm")
    if name == "rtd":
        generator = _generator(model, objective, config, tokenizer, init_from)
        return ReplacedTokenModel(generator, model)
    if objective.span_boundary:
        whole = SpanBoundaryModel(model)
        read = init_from is not None and whole.load_head(init_from)
        if not (read or fresh or config.new_heads):
            raise ValueError(
                f"{init_from} has no span-boundary head; set model.new_heads=true for a new one"
            )
        return whole
    return model


def load_teacher(config: LanguageModelConfig, name: str, tokenizer: Any) -> Any:
    """The teacher of a student of this config's family.

    Raises:
        ValueError: if there is none, or it is of another kind or vocabulary.
    """
    family = "bert" if config.family == "distilbert" else config.family
    config = dataclasses.replace(config, family=family, new_heads=False)
    return _load_language_model(config, _model_class(family, "mlm", "none"), tokenizer, name)[0]


def _model_class(family: str, objective: str, pairs: str) -> Any:
    """Transformers' class of a family with the heads of an objective."""
    # GPT-2 has one head, and stands among the classes for pretraining alone.
    pretraining = pairs != "none" or objective in ("rtd", "clm", "prefix_lm")
    mapping = MODEL_FOR_PRETRAINING_MAPPING if pretraining else MODEL_FOR_MASKED_LM_MAPPING
    return mapping[CONFIG_MAPPING[family]]


def _model_config(config: LanguageModelConfig, tokenizer: Any) -> Any:
    """Transformers' config of a family in these sizes."""
    values: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "max_position_embeddings": config.max_positions,
        "pad_token_id": tokenizer.pad_token_id,
    }
    size, dropout = config.intermediate_size, config.dropout
    if config.family == "gpt2":
        values |= {"n_inner": size}
        values |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    elif config.family == "distilbert":
        values |= {"hidden_dim": size, "dropout": dropout, "attention_dropout": dropout}
    else:
        values |= {"intermediate_size": size}
        values |= dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), dropout)
    if config.family in ("gpt2", "roberta", "albert"):
        values["bos_token_id"] = tokenizer.bos_token_id
        values["eos_token_id"] = tokenizer.eos_token_id
    if config.family == "roberta":
        # RoBERTa counts positions from the one after its padding token's.
        values["max_position_embeddings"] += tokenizer.pad_token_id + 1
        values["type_vocab_size"] = 1
    elif config.family == "albert":
        values["embedding_size"] = config.embedding_size or ALBERT_EMBEDDING
        values["classifier_dropout_prob"] = dropout  # of the head for pairs
    elif config.family == "electra":
        values["embedding_size"] = config.embedding_size or config.hidden_size
    return AutoConfig.for_model(config.family, **values)


def _generator(
    discriminator: Any,
    objective: ObjectiveConfig,
    config: LanguageModelConfig,
    tokenizer: Any,
    init_from: str | None,
) -> Any:
    """The generator of a discriminator, from the same folder or new."""
    folder = None if init_from is None else Path(init_from) / GENERATOR
    if folder is not None and folder.is_dir():
        return _load_language_model(config, ElectraForMaskedLM, tokenizer, str(folder))[0]
    if folder is not None and not config.new_heads:
        raise ValueError(
            f"{init_from} has no {GENERATOR} beside its discriminator; set model.new_heads=true "
            "for a new one"
        )
    return ElectraForMaskedLM(generator_config(discriminator.config, objective.rtd.generator_size))


def describe_language_model(model: Any, tokenizer: Any) -> str:
    """One line of family, number of parameters and vocabulary size."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    family = model.config.model_type
    return f"{family}: {parameters:,} parameters, {len(tokenizer):,} tokens in its vocabulary"


def _load_language_model(
    config: LanguageModelConfig, kind: Any, tokenizer: Any, name: str
) -> tuple[Any, bool]:
    """A pretrained model, and whether heads of it are new."""
    found = find_encoder(name, "language model")
    try:
        with quiet():
            model, report = kind.from_pretrained(found, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"no language model in {name}: {one_line(error)}") from error
    if model.config.model_type != config.family:
        raise ValueError(
            f"{name} is of the family {model.config.model_type!r}; set model.family to it "
            f"(known are {', '.join(TOKENIZER_OF)}), got {config.family!r}"
        )
    missing = sorted(report["missing_keys"])
    encoder = f"{model.base_model_prefix}."
    heads = [key for key in missing if not key.startswith(encoder) or "pooler." in key]
    if len(heads) < len(missing) or (missing and not config.new_heads):
        lacking = next((key for key in missing if key not in heads), missing[0])
        hint = "; set model.new_heads=true for new ones" if len(heads) == len(missing) else ""
        raise ValueError(
            f"{name} lacks {len(missing)} weights of {kind.__name__}, such as {lacking}{hint}"
        )
    _, limit = position_table(model)
    if limit is not None and config.max_positions > limit:
        raise ValueError(
            f"{name} can read {limit} tokens; set model.max_positions={limit} or less, got "
            f"{config.max_positions}"
        )
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ValueError(f"{name} embeds {rows} tokens and its tokenizer has {len(tokenizer)}")
    return model.float(), bool(missing)  # whatever it is stored in


class LanguageModelFiles:
    """A model and its tokenizer, saved together for `TextEncoder.from_pretrained`."""

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    def parameters(self) -> Iterator[nn.Parameter]:
        """Of the model."""
        return self.model.parameters()

    def save_pretrained(self, save_directory: str | PathLike[str]) -> None:
        """Writes both into one folder."""
        with quiet():
            self.model.save_pretrained(save_directory)  # type: ignore[operator]
            self.tokenizer.save_pretrained(save_directory)
