"""Pretraining objectives by name; how to add one is in docs/extending.md."""

from typing import Any

from vidtwin_lab.language.config import ObjectiveConfig
from vidtwin_lab.language.objectives.base import Objective
from vidtwin_lab.language.objectives.contrastive import Contrastive
from vidtwin_lab.language.objectives.distillation import Distillation
from vidtwin_lab.language.objectives.masked_tokens import MaskedTokens
from vidtwin_lab.language.objectives.next_token import NextToken
from vidtwin_lab.language.objectives.prefix import PrefixLM
from vidtwin_lab.language.objectives.replaced_tokens import ReplacedTokens

__all__ = ["OBJECTIVES", "Objective", "build_objective"]

# The families of models that each can train are in `vidtwin_lab.language.config.OBJECTIVES_OF`.
OBJECTIVES: dict[str, type[Objective]] = {
    kind.name: kind
    for kind in (MaskedTokens, NextToken, PrefixLM, ReplacedTokens, Distillation, Contrastive)
}


def build_objective(
    config: ObjectiveConfig, family: str, tokenizer: Any, teacher: Any = None
) -> Objective:
    """The objective for a model of a family.

    Args:
        teacher: of "distillation": a model of transformers for the same tokens.
    Raises:
        ValueError: if the two don't go together, or the tokenizer lacks the tokens for it.
    """
    return OBJECTIVES[config.named(family)](config, tokenizer, teacher)
