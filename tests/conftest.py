"""A whole tiny pipeline with random weights, for the tests of the pipeline and of its scripts; and
sprite sheets, since none come with the repository."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from transformers import BertConfig, BertModel

from diffusion import LatentStats, TwinDiT, VidTwinPipeline
from vidtwin import VidTwinAutoencoder
from vidtwin_lab.language.config import TokenizerConfig
from vidtwin_lab.language.tokenizers import train_tokenizer

WORDS = ["a red circle moves left", "a blue square turns", "two green stars on black stand still"]
MAX_WORDS = 16
CLASSES = ["bend", "jump", "wave"]
FRAMES, HEIGHT, WIDTH = 8, 16, 24
TINY: dict[str, Any] = {
    "num_frames": FRAMES,
    "height": HEIGHT,
    "width": WIDTH,
    "patch_size": (1, 8, 8),
    "hidden_size": 16,
    "encoder_depth": 1,
    "decoder_depth": 1,
    "encoder_heads": 2,
    "decoder_heads": 2,
    "num_queries": 2,
    "query_hidden_size": 8,
    "query_layers": 1,
    "query_heads": 2,
    "query_intermediate_size": 16,
    "structure_base_channels": 4,
    "structure_channels": 2,
    "structure_downsamples": 0,
    "dynamics_channels": 2,
    "dynamics_downsamples": 0,
}


def move_weights(model: torch.nn.Module, alpha: float) -> None:
    """Moves every weight away from special values."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=alpha)


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
def build_autoencoder() -> Callable[..., VidTwinAutoencoder]:
    """Builds an autoencoder, TINY but for what is given; `jitter` moves its weights."""

    def build(*, jitter: float = 0.0, **sizes: Any) -> VidTwinAutoencoder:
        torch.manual_seed(0)
        model = VidTwinAutoencoder(**TINY | sizes).eval()
        if jitter:
            move_weights(model, jitter)
        return model

    return build


@pytest.fixture(scope="session")
def build_pipeline(build_autoencoder: Callable[..., Any]) -> Callable[..., VidTwinPipeline]:
    """Builds a quiet pipeline; every weight of the transformer is moved away from special values.

    A new transformer gives zero whatever it is told.
    """

    def build(
        *, text: bool = True, classes: bool = False, scheduler: Any = None, **options: Any
    ) -> VidTwinPipeline:
        autoencoder = build_autoencoder()
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
        move_weights(transformer, 0.2)
        stats = LatentStats(sizes.structure_channels, sizes.dynamics_channels)
        stats.structure_mean += 0.5
        stats.dynamics_x_std *= 2
        pipeline = VidTwinPipeline(
            autoencoder=autoencoder,
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


SHEET_ROWS, SHEET_COLUMNS, CELL = 21, 13, 64
# Part of a character -> the rows of a cell that it fills.
BANDS = {"body": (0, 64), "bottomwear": (36, 48), "topwear": (24, 36), "hair": (0, 16)}
HUES = ((250, 60, 60), (60, 250, 60), (60, 60, 250), (250, 250, 60), (250, 60, 250), (60, 250, 250))


def draw_sheet(part: str, variant: int) -> np.ndarray:
    """(1344, 832, 4) uint8: bands in the variant's colour. In the body's rows 16 to 24, which
    nothing covers, stand a bar that moves with the sheet's column, one that moves with its
    direction, and in the last pixel (row + 1, column + 1, variant + 1)."""
    top, bottom = BANDS[part]
    sheet = np.zeros((SHEET_ROWS * CELL, SHEET_COLUMNS * CELL, 4), np.uint8)
    for row in range(SHEET_ROWS):
        for column in range(SHEET_COLUMNS):
            cell = sheet[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
            cell[top:bottom] = (*HUES[variant], 255)
            if part == "body":
                cell[16:24] = (0, 0, 0, 255)
                cell[16:20, 4 * column : 4 * column + 4] = (255, 255, 255, 255)
                cell[20:24, 12 * (row % 4) : 12 * (row % 4) + 12] = (255, 255, 255, 255)
                cell[23, 63] = (row + 1, column + 1, variant + 1, 255)
    return sheet


@pytest.fixture(scope="session")
def write_sheets() -> Callable[[Path, Mapping[str, int]], Path]:
    """Writes a folder of sprite sheets: part -> how many variants."""

    def write(folder: Path, counts: Mapping[str, int]) -> Path:
        for part, number in counts.items():
            (folder / part).mkdir(parents=True, exist_ok=True)
            for variant in range(number):
                image = Image.fromarray(draw_sheet(part, variant))
                image.save(folder / part / f"{variant}.png", compress_level=1)
        return folder

    return write


@pytest.fixture(scope="session")
def sheets(write_sheets: Callable[[Path, Mapping[str, int]], Path], tmp_path_factory: Any) -> Path:
    """Sheets of 3 x 2 x 2 x 3 = 36 characters."""
    counts = {"body": 3, "bottomwear": 2, "topwear": 2, "hair": 3}
    return write_sheets(tmp_path_factory.mktemp("sheets"), counts)
