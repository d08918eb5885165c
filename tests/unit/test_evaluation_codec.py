"""H.264 at a known size, quantised latents and their bits.

Axes: B batch, C channels, T frames, H W pixels.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vidtwin import VidTwinLatents
from vidtwin.data.synthetic.shapes import MovingShapes, ShapesConfig
from vidtwin.media import from_uint8
from vidtwin.metrics import psnr
from vidtwin_lab.evaluation.codec import (
    curve_at,
    decode_h264,
    encode_h264,
    formats_for,
    quantize,
    without_supplements,
)
from vidtwin_lab.evaluation.config import CodecConfig


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return MovingShapes(ShapesConfig(num_frames=6, height=32, width=48)).clip(3).video


def quality(frames: np.ndarray, stream: bytes) -> float:
    return psnr(from_uint8(frames)[None], from_uint8(decode_h264(stream))[None]).item()


def draw_latents(batch: int = 3, seed: int = 0) -> VidTwinLatents:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((2, 3, 4, 5), (3, 4, 5), (3, 4, 4))
    tensors = []
    for shape in shapes:
        # Channels of very different sizes: each has a range of its own.
        scale = torch.tensor([1.0, 30.0, 0.01][: shape[0]])
        noise = torch.randn(batch, *shape, generator=generator)
        tensors.append(torch.einsum("bc...,c->bc...", noise, scale))
    return VidTwinLatents(*tensors)


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p"])
def test_fewer_bits_cost_quality(frames, pixel_format) -> None:
    points = []
    for crf in (10, 30, 51):
        stream = encode_h264(frames, 8, crf, pixel_format)
        assert decode_h264(stream).shape == frames.shape
        points.append((len(stream), quality(frames, stream)))
    assert points == sorted(points, reverse=True)
    assert points[0][1] > 30


def test_full_colour_comes_back_almost_unchanged(frames) -> None:
    # Colours converted there and back by the same rule, every frame in its place.
    assert quality(frames, encode_h264(frames, 25, 0, "yuv444p")) > 45
    moved = np.roll(frames, 1, axis=0)
    assert quality(moved, encode_h264(frames, 25, 0, "yuv444p")) < 40


def test_the_stream_is_all_that_is_needed_and_no_more(frames) -> None:
    stream = encode_h264(frames, 8, 30)
    assert b"x264" not in stream  # the encoder's name and options
    assert without_supplements(stream) == stream
    assert stream == encode_h264(frames, 8, 30)
    with_notes = b"\x00\x00\x01\x06\x05\x04note\x80" + stream
    assert without_supplements(with_notes) == stream
    assert (decode_h264(with_notes) == decode_h264(stream)).all()


def test_odd_sizes_have_full_colour_alone(frames) -> None:
    assert formats_for(CodecConfig(), 32, 48) == ("yuv420p", "yuv444p")
    assert formats_for(CodecConfig(pixel_formats=("yuv420p",)), 31, 48) == ("yuv444p",)
    odd = np.ascontiguousarray(frames[:, :31, :47])
    assert decode_h264(encode_h264(odd, 8, 20, "yuv444p")).shape == odd.shape


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_quantised_latents_are_off_by_half_a_step(bits) -> None:
    latents = draw_latents()
    quantized = quantize(latents, bits)
    for before, after in zip(latents.tensors(), quantized.latents.tensors(), strict=True):
        axes = tuple(range(2, before.ndim))
        low, high = before.amin(axes, keepdim=True), before.amax(axes, keepdim=True)
        step = (high - low) / (2**bits - 1)
        assert ((before - after).abs() <= step * 0.5001).all()
        # Ends of the range are levels themselves.
        assert torch.allclose(after.amin(axes, keepdim=True), low)
        assert torch.allclose(after.amax(axes, keepdim=True), high, rtol=1e-5)
        for channel in after[0]:
            assert len(channel.unique()) <= 2**bits


def test_bits_are_those_of_the_values_and_the_ranges() -> None:
    latents = draw_latents()
    values, channels = 2 * 60 + 3 * 20 + 3 * 16, 2 + 3 + 3
    assert quantize(latents, 8).bits == [8 * values + 64 * channels] * 3
    assert quantize(latents, 5).bits == [5 * values + 64 * channels] * 3
    constant = VidTwinLatents(*(torch.full_like(tensor, 2.5) for tensor in latents.tensors()))
    flat = quantize(constant, 8)
    assert all(torch.equal(a, b) for a, b in zip(flat.latents.tensors(), constant.tensors()))
    assert max(flat.lzma_bits) < 64 * channels + 8 * 40
    # Noise can't be made shorter.
    assert min(quantize(latents, 8).lzma_bits) > 0.8 * 8 * values


def test_a_clip_does_not_depend_on_its_batch() -> None:
    latents = draw_latents()
    together, alone = quantize(latents, 6), quantize(latents[1:2], 6)
    for whole, one in zip(together.latents.tensors(), alone.latents.tensors(), strict=True):
        assert torch.equal(whole[1:2], one)
    assert together.lzma_bits[1] == alone.lzma_bits[0]


def test_between_points_quality_follows_the_logarithm_of_the_rate() -> None:
    curve = [{"bpp": 0.4, "psnr": 40.0}, {"bpp": 0.1, "psnr": 30.0}]
    assert curve_at(curve, 0.2, "psnr")[0] == pytest.approx(35.0)
    assert curve_at(curve, 0.1, "psnr") == (30.0, "")
    assert curve_at(curve, 0.4, "psnr") == (40.0, "")
    assert curve_at(curve, 0.09, "psnr") == (None, "below")
    assert curve_at(curve, 0.41, "psnr") == (None, "above")
    assert math.isfinite(curve_at(curve, 0.3, "psnr")[0] or math.nan)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crfs": (20,)}, "at least two rising qualities"),
        ({"crfs": (30, 20)}, "rising"),
        ({"crfs": (30, 52)}, "from 0 to 51"),
        ({"pixel_formats": ("rgb",)}, "codec.pixel_formats must name some of yuv420p, yuv444p"),
        ({"preset": "best"}, "codec.preset must be one of"),
        ({"tune": "film"}, "codec.tune must be psnr or ssim, or null"),
    ],
)
def test_bad_settings_are_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        CodecConfig(**changes)


def test_bits_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="bits must be from 1 to 8, got 9"):
        quantize(draw_latents(), 9)
