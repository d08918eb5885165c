"""Next-token prediction ("clm", GPT).

Axes: B batch, L tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vidtwin_lab.language.objectives.base import IGNORED, Choice, Objective, Term, inputs_for
from vidtwin_lab.language.samples import Sample


class NextToken(Objective):
    """Predicts each token from those before it."""

    name = "clm"

    def hide(self, sample: Sample) -> Sample:
        """The sample with "labels"; nothing is masked, and the first token is not predicted."""
        return {**sample, "labels": [IGNORED, *sample["input_ids"][1:]]}

    def terms(self, model: torch.nn.Module, batch: dict[str, Tensor]) -> dict[str, Term]:
        """Logits of each place against the token after it."""
        logits = model(**inputs_for(model, batch), use_cache=False).logits
        return {self.name: Choice(logits[:, :-1], batch["labels"][:, 1:])}
