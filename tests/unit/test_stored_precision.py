"""What a folder's weights are stored in never decides how a model is trained: float32, always."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from diffusion import LatentStats, TwinDiT
from diffusion.text_encoder import TextEncoder
from diffusion.training import build_transformer
from vidtwin.building import build_models, load_autoencoder
from vidtwin.config import DiscriminatorConfig, LossConfig
from vidtwin_lab.language.config import LanguageModelConfig, ObjectiveConfig
from vidtwin_lab.language.models import build_language_model, load_teacher
from vidtwin_lab.language.tasks.finetuning import TaskModel

HALVES = [torch.float16, torch.bfloat16]


def assert_trains_in_float32(model: torch.nn.Module) -> None:
    values = [*model.parameters(), *model.buffers()]
    assert {value.dtype for value in values if value.is_floating_point()} == {torch.float32}


@pytest.fixture(params=HALVES, ids=["float16", "bfloat16"])
def dtype(request: Any) -> torch.dtype:
    return request.param


@pytest.fixture
def language_model(build_pipeline: Callable[..., Any], dtype: torch.dtype, tmp_path: Path) -> Path:
    """A folder of a language model with its tokenizer."""
    tokenizer = build_pipeline().tokenizer
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    BertForMaskedLM(config).to(dtype).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_autoencoders(build_tiny, dtype, tmp_path) -> None:
    model = build_tiny()
    model.to(dtype).save_pretrained(tmp_path)
    trained, _, _ = build_models(
        model.sizes,
        DiscriminatorConfig(),
        LossConfig(discriminator_weight=0.0, perceptual_weight=0.0),
        str(tmp_path),
    )
    assert_trains_in_float32(trained)
    assert_trains_in_float32(load_autoencoder(tmp_path)[0])


def test_transformers(build_pipeline, dtype, tmp_path) -> None:
    model: TwinDiT = build_pipeline().transformer
    model.to(dtype).save_pretrained(tmp_path)
    assert_trains_in_float32(build_transformer(model.sizes, str(tmp_path)))


def test_statistics(dtype, tmp_path) -> None:
    stats = LatentStats(2, 2)
    for name, value in list(stats.named_buffers()):
        stats._buffers[name] = value.to(dtype)
    stats.save_pretrained(tmp_path)
    assert_trains_in_float32(LatentStats.from_pretrained(tmp_path))


def test_language_models_and_teachers(language_model) -> None:
    tokenizer = TextEncoder.from_pretrained(language_model).tokenizer
    config = LanguageModelConfig(family="bert", max_positions=16)
    trained = build_language_model(config, ObjectiveConfig(), tokenizer, str(language_model))
    assert_trains_in_float32(trained)
    assert_trains_in_float32(load_teacher(config, str(language_model), tokenizer))


@pytest.mark.parametrize("random_weights", [False, True])
def test_text_encoders_on_tasks(language_model, dtype, random_weights) -> None:
    encoder = TextEncoder.from_pretrained(language_model)
    model = TaskModel(encoder, "classes", 2, "first", random_weights=random_weights)
    assert_trains_in_float32(model)
    tokens = torch.tensor([[2, 5, 3]])
    outputs = model(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.zeros_like(tokens))
    outputs.sum().backward()
