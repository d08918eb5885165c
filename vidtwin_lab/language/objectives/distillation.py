"""Distillation: a student of fewer layers learns to predict as its teacher does.

Axes: B batch, L tokens, V vocabulary.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DistilBertConfig

from diffusion.text_loading import one_line
from vidtwin_lab.language.config import ObjectiveConfig
from vidtwin_lab.language.objectives.base import Choice, Distance, Term, inputs_for
from vidtwin_lab.language.objectives.masked_tokens import MaskedTokens
from vidtwin_lab.language.samples import Sample

# Names of BERT's weights and of DistilBERT's for the same.
_DISTILBERT_NAMES = (
    ("bert.encoder.layer.", "distilbert.transformer.layer."),
    ("attention.self.query", "attention.q_lin"),
    ("attention.self.key", "attention.k_lin"),
    ("attention.self.value", "attention.v_lin"),
    ("attention.output.dense", "attention.out_lin"),
    ("attention.output.LayerNorm", "sa_layer_norm"),
    ("intermediate.dense", "ffn.lin1"),
    ("cls.predictions.transform.dense", "vocab_transform"),
    ("cls.predictions.transform.LayerNorm", "vocab_layer_norm"),
    ("cls.predictions.decoder", "vocab_projector"),
    ("output.dense", "ffn.lin2"),
    ("output.LayerNorm", "output_layer_norm"),
    ("bert.embeddings.", "distilbert.embeddings."),
)
_LAYER = re.compile(r"(?<=layer\.)\d+(?=\.)")


class Distillation(MaskedTokens):
    """True tokens ("mlm"), a teacher's predictions ("soft"), its hidden states ("cosine").

    Args:
        teacher: of transformers, for the same tokens.
    """

    name = "distillation"

    def __init__(self, config: ObjectiveConfig, tokenizer: Any, teacher: Any = None) -> None:
        super().__init__(config, tokenizer)
        self.teacher = teacher.eval().requires_grad_(False)
        self.weights = {
            "mlm": config.distillation.hard_weight,
            "soft": config.distillation.soft_weight,
            "cosine": config.distillation.cosine_weight,
        }

    def to(self, device: torch.device) -> None:
        """Moves the teacher."""
        self.teacher.to(device)

    def counts(self, samples: Sequence[Sample]) -> dict[str, int]:
        """Over how many predictions each term is a sum; the teacher predicts all tokens."""
        tokens = sum(len(sample["input_ids"]) for sample in samples)
        return {**super().counts(samples), "soft": tokens, "cosine": tokens}

    def terms(self, model: torch.nn.Module, batch: dict[str, Tensor]) -> dict[str, Term]:
        """The terms of the loss, that of the true tokens first."""
        with torch.no_grad():
            expected = self.teacher(**inputs_for(self.teacher, batch), output_hidden_states=True)
        output = model(**inputs_for(model, batch), output_hidden_states=True)
        seen = batch["attention_mask"] == 1
        states = (output.hidden_states[-1].float(), expected.hidden_states[-1].float())
        angle = 1 - torch.nn.functional.cosine_similarity(*states, dim=-1)
        logits, temperature = (output.logits, expected.logits), self.config.distillation.temperature
        return {
            "mlm": Choice(output.logits, batch["labels"]),
            "soft": Distance(soft_cross_entropy(*logits, temperature), seen),
            "cosine": Distance(angle, seen),
        }


def soft_cross_entropy(logits: Tensor, expected: Tensor, temperature: float) -> Tensor:
    """(B, L) Kullback-Leibler divergence of the predictions of (B, L, V) logits from expected ones.

    Multiplied by the squared temperature, which keeps gradients as large as those of true labels.
    Source: Hinton et al. (arXiv 1503.02531), Sec. 2; DistilBERT's `loss_ce`.
    """
    own = (logits.float() / temperature).log_softmax(-1)
    other = (expected.float() / temperature).log_softmax(-1)
    return temperature**2 * (other.exp() * (other - own)).sum(-1)


def build_student(teacher: Any, kind: Any, num_layers: int) -> Any:
    """A model of `num_layers` layers that starts from the teacher's weights.

    Layers are taken at even intervals: every other one for a student of half the depth.

    Args:
        teacher: BertForMaskedLM for a DistilBERT, or a model of the student's own class.
        kind: class of the student: DistilBertForMaskedLM, BertForMaskedLM, RobertaForMaskedLM.
    Raises:
        ValueError: if the student is to have more layers than the teacher.
    Source: DistilBERT (arXiv 1910.01108), Sec. 3. Differs: DistilBERT has no embeddings of
        segments; here the first one is added to the positions, so that a student of all layers
        is its teacher.
    """
    depth = teacher.config.num_hidden_layers
    if num_layers > depth:
        raise ValueError(
            f"the teacher has {depth} layers; set model.num_layers={depth // 2 or 1} (half of "
            f"them) or another number up to {depth}, got {num_layers}"
        )
    places = {index * depth // num_layers: index for index in range(num_layers)}
    weights = {}
    for name, value in teacher.state_dict().items():
        layer = _LAYER.search(name)
        if layer is None or int(layer[0]) in places:
            new = "" if layer is None else str(places[int(layer[0])])
            weights[_LAYER.sub(new, name)] = value.clone()
    if kind is type(teacher):
        config = copy.deepcopy(teacher.config)
        config.num_hidden_layers = num_layers
    else:
        config = _distilbert_config(teacher.config, num_layers)
        weights = _distilbert_weights(weights)
    student = kind(config)
    try:
        student.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"{type(teacher).__name__} can't teach a {kind.__name__}: {one_line(error)}"
        ) from error
    return student


def _distilbert_config(teacher: Any, num_layers: int) -> DistilBertConfig:
    return DistilBertConfig(
        vocab_size=teacher.vocab_size,
        dim=teacher.hidden_size,
        n_layers=num_layers,
        n_heads=teacher.num_attention_heads,
        hidden_dim=teacher.intermediate_size,
        max_position_embeddings=teacher.max_position_embeddings,
        dropout=teacher.hidden_dropout_prob,
        attention_dropout=teacher.attention_probs_dropout_prob,
        activation=teacher.hidden_act,
        pad_token_id=teacher.pad_token_id,
    )


def _distilbert_weights(weights: dict[str, Any]) -> dict[str, Any]:
    """BERT's weights by DistilBERT's names."""
    segments = weights.pop("bert.embeddings.token_type_embeddings.weight")
    weights["bert.embeddings.position_embeddings.weight"] += segments[0]
    weights.pop("cls.predictions.bias")  # the decoder's own, under another name
    renamed = {}
    for name, value in weights.items():
        for old, new in _DISTILBERT_NAMES:
            name = name.replace(old, new)
        renamed[name] = value
    return renamed
