"""Laws of the autoencoder's configuration: sizes that follow from it, and what it refuses."""

from __future__ import annotations

import dataclasses
import inspect
import math

import pytest

from vidtwin import AutoencoderConfig, VidTwinAutoencoder
from vidtwin.config import halved


def test_released_rate() -> None:
    config = AutoencoderConfig()
    assert config.grid == (14, 14)
    assert config.structure_shape == (8, 16, 7, 7)
    assert config.dynamics_x_shape == config.dynamics_y_shape == (8, 16, 7)
    assert config.numel_per_clip == 6272 + 1792 == 8064
    assert config.compression_rate == 8064 / (3 * 16 * 224 * 224)
    assert f"{config.compression_rate:.3%}" == "0.335%"


def test_rate_of_the_paper() -> None:
    config = AutoencoderConfig(structure_channels=4)
    assert config.numel_per_clip == 3136 + 1792 == 4928
    assert f"{config.compression_rate:.3%}" == "0.205%"


def test_rate_counts_the_latents_of_any_shape() -> None:
    config = AutoencoderConfig(
        num_frames=5, height=80, width=208, structure_downsamples=2, dynamics_downsamples=0
    )
    assert config.grid == (5, 13)
    assert config.structure_shape == (8, 16, 2, 4)
    assert config.dynamics_x_shape == (8, 5, 13)
    assert config.dynamics_y_shape == (8, 5, 5)
    assert config.numel_per_clip == 8 * 16 * 2 * 4 + 8 * 5 * (13 + 5)
    assert config.video_shape == (3, 5, 80, 208)


@pytest.mark.parametrize(
    ("size", "times", "expected"),
    [(14, 0, 14), (14, 1, 7), (7, 1, 4), (14, 2, 4), (5, 2, 2), (1, 3, 1)],
)
def test_halved(size: int, times: int, expected: int) -> None:
    assert halved(size, times) == expected == math.ceil(size / 2**times)


def test_the_model_has_the_same_keywords_and_defaults() -> None:
    """The model spells them out, for readers and for diffusers; they must not drift apart."""
    parameters = list(inspect.signature(VidTwinAutoencoder.__init__).parameters.values())[1:]
    fields = dataclasses.fields(AutoencoderConfig)
    assert [(p.name, p.default) for p in parameters] == [(f.name, f.default) for f in fields]


def test_frozen_and_keyword_only() -> None:
    config = AutoencoderConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.height = 112  # type: ignore[misc]
    with pytest.raises(TypeError):
        AutoencoderConfig(3)  # type: ignore[misc]


def test_a_list_is_as_good_as_a_tuple() -> None:
    """YAML and JSON know no tuples."""
    listed = AutoencoderConfig.from_dict({"patch_size": [1, 16, 16]})
    assert listed == AutoencoderConfig()
    assert AutoencoderConfig(**dataclasses.asdict(listed)) == listed


def test_a_ratio_found_from_weights_gives_their_width() -> None:
    for hidden_size in (28, 44, 52, 768):
        for width in range(1, 4 * hidden_size + 1):
            config = AutoencoderConfig(
                hidden_size=hidden_size,
                mlp_ratio=width / hidden_size,
                encoder_heads=1,
                decoder_heads=1,
            )
            assert config.mlp_size == width


def test_a_fraction_of_a_width_is_cut_off() -> None:
    assert AutoencoderConfig(mlp_ratio=8 / 3).mlp_size == 2048
    assert AutoencoderConfig(mlp_ratio=2.67).mlp_size == 2050  # of 2050.56


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 225}, r"`height` must be a multiple of the patch size 16, got 225; set height"),
        ({"width": 5}, r"`width` must be .* 16, got 5; set width=16"),
        ({"patch_size": (2, 16, 16)}, r"`patch_size\[0\]` must be 1, got 2: VidTwin keeps every"),
        ({"patch_size": (16, 16)}, r"`patch_size` must be three counts \(1, ph, pw\), got \(16"),
        ({"patch_size": 16}, r"`patch_size` must be three counts \(1, ph, pw\), got 16"),
        ({"patch_size": (1, 16, 0)}, r"`patch_size` must be three counts"),
        ({"patch_size": (1, 16, 16.0)}, r"`patch_size` must be three counts"),
        ({"patch_size": None}, r"`patch_size` must be three counts .* got None"),
        ({"hidden_size": 18}, r"`hidden_size` must be a multiple of 4 .*, got 18"),
        ({"encoder_heads": 7}, r"`encoder_heads`=7 must divide the width 768"),
        ({"decoder_heads": 5}, r"`decoder_heads`=5 must divide the width 768"),
        ({"query_heads": 3}, r"`query_heads`=3 must divide the width 64"),
        ({"num_frames": 0}, r"`num_frames` must be positive, got 0"),
        ({"num_frames": 16.0}, r"`num_frames` must be of type int, got 16.0"),
        ({"num_frames": "16"}, r"`num_frames` must be of type int, got '16'"),
        ({"num_frames": True}, r"`num_frames` must be of type int, got True"),
        ({"encoder_causal": 1}, r"`encoder_causal` must be of type bool, got 1"),
        ({"encoder_depth": -1}, r"`encoder_depth` must be positive, got -1"),
        ({"structure_downsamples": -1}, r"`structure_downsamples` must be positive, got -1"),
        ({"mlp_ratio": 0.0}, r"`mlp_ratio` must be positive, got 0.0"),
        ({"mlp_ratio": float("nan")}, r"`mlp_ratio` must be positive, got nan"),
        ({"mlp_ratio": float("inf")}, r"`mlp_ratio` must be positive, got inf"),
        ({"mlp_ratio": 0.001}, r"`mlp_ratio`=0.001 of `hidden_size`=768 leaves no width"),
        ({"query_dropout": 1.0}, r"`query_dropout` must be in \[0, 1\), got 1.0"),
        ({"structure_frame": 16}, r"`structure_frame` must be null or a frame .*, 0 to 15, got 16"),
        ({"structure_frame": -1}, r"`structure_frame` must be null or a frame .*, got -1"),
        ({"structure_frame": 0.0}, r"`structure_frame` must be null or a frame .*, got 0.0"),
        ({"patch_overlap": True, "patch_size": (1, 7, 7)}, r"`patch_overlap` needs .* got 7 x 7"),
        ({"refinement_channels": 0}, r"`refinement_channels` must be null .* positive, got 0"),
        ({"refinement_channels": 8.0}, r"`refinement_channels` must be null .*, got 8.0"),
        ({"refinement_layers": 1}, r"`refinement_layers` must be at least 2, got 1"),
        ({"refinement_stride": 3}, r"`refinement_stride` must divide .* 16 x 16, got 3"),
        ({"structure_frame": True}, r"`structure_frame` must be null or a frame .*, got True"),
    ],
)
def test_refusals_name_the_keyword(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoencoderConfig(**changes)
    with pytest.raises(ValueError, match=message):
        VidTwinAutoencoder(**changes)


def test_an_int_does_for_a_float() -> None:
    assert AutoencoderConfig(mlp_ratio=4, query_dropout=0).mlp_size == 3072
