"""What a tokenizer stands beside: H.264 at the same size, and its own latents in bits.

Bits per pixel count pixels of T H W, not the three values of each.

Axes: B batch, C channels, T frames, H W pixels, N bytes.
"""

from __future__ import annotations

import itertools
import lzma
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import torch
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from numpy.typing import NDArray

from vidtwin import VidTwinLatents
from vidtwin.media import frame_rate, from_uint8, to_uint8
from vidtwin_lab.evaluation.config import CodecConfig

__all__ = [
    "Quantized",
    "check_encoder",
    "curve_at",
    "decode_h264",
    "encode_h264",
    "formats_for",
    "quantize",
    "reencoded",
]

BT709 = 1  # the code of the BT.709 primaries and transfer curve in H.264's colour description
START_CODE = re.compile(b"\x00\x00\x00?\x01")
# Supplemental enhancement information: x264 puts its name and options there, some 700 bytes that
# no decoder needs and that a short clip would be unfairly charged with.
SUPPLEMENTAL = 6
MAX_BITS = 8
RANGE_BITS = 64  # smallest and largest value of a channel, float32 each
# Of a raw stream, without the headers and checksums of a file.
# The strongest preset would take 64 MiB for its dictionary; a window has some kilobytes.
LZMA_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 2**20}]


def check_encoder() -> None:
    """Raises if this PyAV can't write H.264.

    Raises:
        ValueError: saying what to do.
    """
    if "libx264" not in av.codec.codecs_available:
        raise ValueError(
            "this PyAV has no libx264; install the wheel of av, or set codec=null reencode=null"
        )


def formats_for(config: CodecConfig, height: int, width: int) -> tuple[str, ...]:
    """The pixel formats that frames of a size can have: H.264 can't halve an odd one."""
    return config.pixel_formats if height % 2 == 0 and width % 2 == 0 else ("yuv444p",)


def encode_h264(
    frames: NDArray[np.uint8],
    fps: float,
    crf: int,
    pixel_format: str = "yuv420p",
    *,
    preset: str = CodecConfig.preset,
    tune: str | None = CodecConfig.tune,
) -> bytes:
    """A clip as an H.264 stream: what a decoder needs and nothing else, no container.

    The same frames give the same bytes on any number of processors.

    Args:
        frames: (T, H, W, 3) uint8 RGB.
        fps: frames per second.
        crf: quality, 0 (best) to 51 (worst).
        pixel_format: "yuv420p" (even sizes alone) or "yuv444p".
        preset: of x264.
        tune: of x264.
    Returns:
        bytes: an Annex B stream; its exact size in bits is 8 times its length.
    """
    context: Any = VideoCodecContext.create("libx264", "w")
    context.height, context.width = frames.shape[1:3]
    context.pix_fmt = pixel_format
    context.framerate = frame_rate(fps)
    context.time_base = 1 / frame_rate(fps)
    context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
    context.color_primaries = context.color_trc = BT709
    # More threads would cut frames into other slices. A clip is short: one key frame will do.
    # Without assembly: x264's for AVX-512 reads memory that nobody has written, so that the same
    # frames give other streams from run to run, and each processor's gives other ones.
    context.options = {"crf": str(crf), "preset": preset, "threads": "1"}
    context.options |= {"x264-params": "asm=0"}
    context.options |= {"g": str(len(frames))} | ({"tune": tune} if tune else {})
    packets = []
    converter = VideoReformatter()  # one for all frames: making one takes longer than its work
    for number, frame in enumerate(frames):
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture = converter.reformat(
            picture,
            format=context.pix_fmt,
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
        )
        picture.pts = number
        packets += context.encode(picture)
    packets += context.encode(None)
    return without_supplements(b"".join(bytes(packet) for packet in packets))


def without_supplements(stream: bytes) -> bytes:
    """An Annex B stream without the units that decoding does not need."""
    starts = [match.start() for match in START_CODE.finditer(stream)] + [len(stream)]
    units = [stream[start:end] for start, end in itertools.pairwise(starts)]
    return b"".join(unit for unit in units if unit.lstrip(b"\0")[1] & 0x1F != SUPPLEMENTAL)


def decode_h264(stream: bytes) -> NDArray[np.uint8]:
    """(T, H, W, 3) uint8 RGB frames of an Annex B stream."""
    context: Any = VideoCodecContext.create("h264", "r")
    context.thread_count = 1
    packets = [*context.parse(stream), *context.parse(b"")]
    pictures = [picture for packet in packets for picture in context.decode(packet)]
    pictures += context.decode(None)
    converter = VideoReformatter()
    return np.stack(
        [
            converter.reformat(
                picture,
                format="rgb24",
                src_colorspace=Colorspace.ITU709,
                src_color_range=ColorRange.MPEG,
                dst_color_range=ColorRange.JPEG,
            ).to_ndarray()
            for picture in pictures
        ]
    )


def reencoded(frames: torch.Tensor, fps: float, crf: int) -> torch.Tensor:
    """(3, T, H, W) frames in [-1, 1] as they come back from a video file, by x264's defaults."""
    usual = CodecConfig(pixel_formats=("yuv420p",))  # as files are, if the size allows it
    pixel_format = formats_for(usual, *frames.shape[-2:])[0]
    return from_uint8(decode_h264(encode_h264(to_uint8(frames), fps, crf, pixel_format, tune=None)))


@dataclass(frozen=True)
class Quantized:
    """The latents of a batch in few levels, and how many bits each clip takes.

    Args:
        latents: as a decoder gets them.
        bits: of each clip, every value at the full number of bits, the ranges included.
        lzma_bits: of each clip, the values of one latent after another through LZMA, the ranges
            included.
    """

    latents: VidTwinLatents
    bits: list[int]
    lzma_bits: list[int]


def quantize(latents: VidTwinLatents, bits: int = 8) -> Quantized:
    """The latents rounded to 2^bits levels, evenly between each channel's least and greatest value.

    The range is that of one clip, so that a clip can be decoded alone; it is sent along in
    float32 and counted. Nothing is learned from the data set.

    Args:
        latents: of B clips, float32.
        bits: of a value, 1 to 8.
    """
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"bits must be from 1 to {MAX_BITS}, got {bits}")
    levels = 2**bits - 1
    rounded: list[torch.Tensor] = []
    codes: list[NDArray[np.uint8]] = []
    ranges = 0
    for tensor in latents.tensors():
        values = tensor.float()
        axes = tuple(range(2, values.ndim))
        low, high = values.amin(axes, keepdim=True), values.amax(axes, keepdim=True)
        # A channel of one value has no steps.
        step = torch.where(high > low, (high - low) / levels, 1.0)
        code = ((values - low) / step).round().clamp(0, levels)  # (B, C, ...)
        rounded.append((low + code * step).to(tensor.dtype))
        codes.append(code.to(torch.uint8).cpu().numpy())
        ranges += RANGE_BITS * values.shape[1]
    number = latents.batch_size
    packed = [b"".join(code[clip].tobytes() for code in codes) for clip in range(number)]
    return Quantized(
        latents=VidTwinLatents(*rounded),
        bits=[ranges + bits * len(payload) for payload in packed],
        lzma_bits=[ranges + 8 * len(_lzma(payload)) for payload in packed],
    )


def _lzma(payload: bytes) -> bytes:
    return lzma.compress(payload, lzma.FORMAT_RAW, filters=LZMA_FILTERS)


def curve_at(
    curve: Sequence[Mapping[str, float]], rate: float, name: str
) -> tuple[float | None, str]:
    """A quality at a rate between the measured ones, linear over the rate's logarithm.

    Args:
        curve: points with "bpp" and the quality `name`, in any order.
        rate: bits per pixel.
        name: of the quality.
    Returns:
        The quality and "", or None and "below" or "above" for a rate that is smaller or larger
        than all of the curve: nothing is extrapolated.
    """
    points = sorted((point["bpp"], point[name]) for point in curve)
    if rate < points[0][0]:
        return None, "below"
    if rate > points[-1][0]:
        return None, "above"
    rates = [math.log(bpp) for bpp, _ in points]
    return float(np.interp(math.log(rate), rates, [quality for _, quality in points])), ""
