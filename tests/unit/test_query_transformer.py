"""Our Q-Former is BLIP-2's of transformers, bit for bit: names, weights, outputs, gradients."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from vidtwin.query_transformer import QueryTransformer

SIZES = {"hidden_size": 16, "num_layers": 3, "num_heads": 4, "intermediate_size": 24}


def build(dropout: float) -> tuple[QueryTransformer, Any]:
    transformers = pytest.importorskip("transformers", reason="transformers is the reference")
    torch.manual_seed(3)
    ours = QueryTransformer(**SIZES, token_size=12, dropout=dropout)
    after = torch.rand(1)
    config = transformers.Blip2QFormerConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=24,
        encoder_hidden_size=12,
        cross_attention_frequency=2,
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        use_qformer_text_input=False,
    )
    torch.manual_seed(3)
    theirs = transformers.Blip2QFormerModel(config)
    assert torch.equal(torch.rand(1), after)  # what is drawn after it stays as well
    return ours, theirs


def test_names_and_seeded_weights_are_the_same() -> None:
    ours, theirs = build(0.1)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "autocast"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_outputs_and_gradients_are_the_same(
    dtype: str, training: bool, checkpointing: bool
) -> None:
    results = []
    for model in build(0.1):
        model.to(torch.bfloat16 if dtype == "bfloat16" else torch.float32).train(training)
        if checkpointing:
            for module in model.modules():
                if hasattr(module, "gradient_checkpointing"):
                    module.gradient_checkpointing = True
                    module._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        torch.manual_seed(0)
        queries = torch.randn(5, 4, 16).to(model.layernorm.weight).requires_grad_()
        tokens = torch.randn(5, 7, 12).to(queries).requires_grad_()
        with torch.autocast("cpu", enabled=dtype == "autocast"):
            if isinstance(model, QueryTransformer):
                out = model(queries, tokens)
            else:
                found = model(query_embeds=queries, encoder_hidden_states=tokens)
                out = found.last_hidden_state
        out.square().sum().backward()
        results.append((out, queries.grad, tokens.grad, *(p.grad for p in model.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
