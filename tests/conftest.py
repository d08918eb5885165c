"""A whole tiny pipeline with random weights, for the tests of the pipeline and of its scripts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from transformers import BertConfig, BertModel

from diffusion import LatentStats, TwinDiT, VidTwinPipeline
from diffusion.language.tokenizer import TokenizerConfig, train_tokenizer
from vidtwin import VidTwinAutoencoder

WORDS = ["a red circle moves left", "a blue square turns", "two green stars on black stand still"]
MAX_WORDS = 16
CLASSES = ["bend", "jump", "wave"]
FRAMES, HEIGHT, WIDTH = 8, 16, 24


def tiny_autoencoder() -> VidTwinAutoencoder:
    return VidTwinAutoencoder(
        num_frames=FRAMES,
        height=HEIGHT,
        width=WIDTH,
        patch_size=(1, 8, 8),
        hidden_size=16,
        encoder_depth=1,
        decoder_depth=1,
        encoder_heads=2,
        decoder_heads=2,
        num_queries=2,
        query_hidden_size=8,
        query_layers=1,
        query_heads=2,
        query_intermediate_size=16,
        structure_base_channels=4,
        structure_channels=2,
        structure_downsamples=0,
        dynamics_channels=2,
        dynamics_downsamples=0,
    )


def tiny_text_encoder() -> tuple[Any, Any]:
    tokenizer = train_tokenizer(
        WORDS * 3, "wordpiece", TokenizerConfig(vocabulary_size=120), MAX_WORDS
    )
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=MAX_WORDS,
    )
    return BertModel(config, add_pooling_layer=False), tokenizer


@pytest.fixture(scope="session")
def build_pipeline() -> Callable[..., VidTwinPipeline]:
    """Builds a quiet pipeline; every weight of the transformer is moved away from special values.

    A new transformer gives zero whatever it is told.
    """

    def build(
        *, text: bool = True, classes: bool = False, scheduler: Any = None, **options: Any
    ) -> VidTwinPipeline:
        torch.manual_seed(0)
        autoencoder = tiny_autoencoder()
        text_encoder, tokenizer = tiny_text_encoder() if text else (None, None)
        sizes = autoencoder.sizes
        transformer = TwinDiT(
            structure_shape=sizes.structure_shape,
            dynamics_x_shape=sizes.dynamics_x_shape,
            dynamics_y_shape=sizes.dynamics_y_shape,
            hidden_size=16,
            depth=1,
            num_heads=2,
            num_classes=len(CLASSES) if classes else None,
            text_hidden_size=16 if text else None,
        )
        with torch.no_grad():
            for parameter in transformer.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
        stats = LatentStats(sizes.structure_channels, sizes.dynamics_channels)
        stats.structure_mean += 0.5
        stats.dynamics_x_std *= 2
        pipeline = VidTwinPipeline(
            autoencoder=autoencoder.eval(),
            transformer=transformer.eval(),
            scheduler=scheduler or FlowMatchEulerDiscreteScheduler(),
            latent_stats=stats,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            **{"class_names": CLASSES if classes else None, "fps": 8.0} | options,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return build
