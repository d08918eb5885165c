"""Language models of transformers, by the few sizes that are chosen here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from os import PathLike
from typing import Any

from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from diffusion.language.loading import one_line, quiet
from diffusion.language.text_encoder import position_table

# Family -> the objective it is trained with and the tokenizer it reads through.
FAMILIES = {
    "bert": ("mlm", "wordpiece"),
    "roberta": ("mlm", "byte_bpe"),
    "gpt2": ("clm", "byte_bpe"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModelConfig:
    """Family and sizes of a language model; BERT-base is the default.

    Args:
        family: "bert" and "roberta" read both ways, "gpt2" reads one way.
        max_positions: tokens that the model can read at once.
        dropout: of hidden states and attention.
    """

    family: str = "bert"
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 512
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"`family` must be one of {', '.join(FAMILIES)}; got {self.family!r}")
        for name in ("hidden_size", "num_layers", "num_heads", "intermediate_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"`hidden_size` must be a multiple of num_heads={self.num_heads}, "
                f"got {self.hidden_size}"
            )
        if self.max_positions < 8:
            raise ValueError(f"`max_positions` must be at least 8, got {self.max_positions}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1), got {self.dropout}")

    @property
    def objective(self) -> str:
        """What the family is trained with: "mlm" or "clm"."""
        return FAMILIES[self.family][0]

    @property
    def tokenizer_kind(self) -> str:
        """What the family reads through: "wordpiece" or "byte_bpe"."""
        return FAMILIES[self.family][1]


def build_language_model(
    config: LanguageModelConfig, tokenizer: Any, init_from: str | None = None
) -> Any:
    """A model of transformers' own class, for the tokens of this tokenizer.

    Args:
        init_from: a saved language model's folder or hub id, whose sizes then hold; None for a new
            one.
    Raises:
        ValueError: if `init_from` is no such model, or can't be read as far as the config says.
    """
    if init_from is not None:
        return _load_language_model(config, tokenizer, init_from)
    size = len(tokenizer)
    if config.family == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=size,
                n_embd=config.hidden_size,
                n_layer=config.num_layers,
                n_head=config.num_heads,
                n_inner=config.intermediate_size,
                n_positions=config.max_positions,
                resid_pdrop=config.dropout,
                embd_pdrop=config.dropout,
                attn_pdrop=config.dropout,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    common = {
        "vocab_size": size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_size,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if config.family == "roberta":
        # RoBERTa counts positions from the one after its padding token's.
        positions = config.max_positions + tokenizer.pad_token_id + 1
        return RobertaForMaskedLM(
            RobertaConfig(
                max_position_embeddings=positions,
                type_vocab_size=1,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                **common,
            )
        )
    return BertForMaskedLM(BertConfig(max_position_embeddings=config.max_positions, **common))


def describe_language_model(model: Any, tokenizer: Any) -> str:
    """Family, parameters and vocabulary in a line."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    family = model.config.model_type
    return f"{family}: {parameters:,} parameters, {len(tokenizer):,} tokens in its vocabulary"


def _load_language_model(config: LanguageModelConfig, tokenizer: Any, name: str) -> Any:
    """A pretrained model to train on, every weight of it from the file."""
    kind: Any = AutoModelForCausalLM if config.objective == "clm" else AutoModelForMaskedLM
    try:
        with quiet():
            model, report = kind.from_pretrained(name, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"no language model in {name}: {one_line(error)}") from error
    if model.config.model_type != config.family:
        raise ValueError(
            f"{name} is of the family {model.config.model_type!r}; set model.family to it "
            f"(known are {', '.join(FAMILIES)}), got {config.family!r}"
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"{name} lacks {len(missing)} weights of a model for {config.objective}, such as "
            f"{missing[0]}"
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
    return model


class LanguageModelFiles:
    """A model and its tokenizer as one thing to save, which `TextEncoder` reads again."""

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
