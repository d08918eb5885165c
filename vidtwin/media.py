"""Pixels as numbers and as files: conversions, H.264 videos, GIFs, labelled contact sheets.

Axes: T frames, H W pixels. Frames are uint8 RGB (H, W, 3), videos (T, H, W, 3).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vidtwin.files import partial_path, written_whole

if TYPE_CHECKING:
    import av

__all__ = [
    "FrameSampler",
    "VideoWriter",
    "contact_sheet",
    "eight_bit",
    "frame_rate",
    "from_uint8",
    "thumbnail",
    "to_levels",
    "to_uint8",
    "write_clip",
    "write_gif",
    "write_video",
]

CONTAINERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
BT709 = 1  # the code for BT.709 primaries and transfer curve in H.264's colour description
MAX_GIF_FPS = 50.0
SHEET_BACKGROUND, SHEET_INK, SHEET_MUTED = (255, 255, 255), (20, 20, 20), (120, 120, 120)


def to_levels(video: torch.Tensor) -> torch.Tensor:
    """Values in [-1, 1] as the nearest of 256 levels, 0.0 to 255.0; values outside are clipped."""
    return ((video.float() + 1.0) * 127.5).round().clamp(0, 255)


def eight_bit(video: torch.Tensor) -> torch.Tensor:
    """Values in [-1, 1] rounded to 8 bits and back: the nearest of 256 levels; NaN stays NaN."""
    return to_levels(video) / 127.5 - 1.0


def to_uint8(video: torch.Tensor) -> NDArray[np.uint8]:
    """The video as uint8 frames, values outside [-1, 1] clipped.

    Args:
        video: (3, T, H, W) or (3, H, W), float in [-1, 1].
    Returns:
        (T, H, W, 3) or (H, W, 3) uint8 RGB.
    Raises:
        ValueError: on another shape, or if a value is NaN or infinite.
    """
    if video.ndim not in (3, 4) or video.shape[0] != 3:
        raise ValueError(
            f"expected one video (3, T, H, W) or frame (3, H, W), got shape {tuple(video.shape)}; "
            "for a batch, convert its videos one by one"
        )
    # A NaN would silently be cast to some colour.
    if not bool(torch.isfinite(video).all()):
        raise ValueError("the video has values that are not finite; it can't be shown")
    levels = to_levels(video.detach()).to(torch.uint8)
    return rearrange(levels.cpu(), "c ... h w -> ... h w c").numpy()


def from_uint8(frames: NDArray[np.uint8]) -> torch.Tensor:
    """Frames as a float32 video in [-1, 1]; `to_uint8` is its exact inverse.

    Args:
        frames: (T, H, W, 3) or (H, W, 3), uint8 RGB.
    Returns:
        (3, T, H, W) or (3, H, W) float32.
    Raises:
        ValueError: if the frames are not uint8 RGB.
    """
    _check_rgb(frames, dims=(3, 4))
    video = torch.from_numpy(np.ascontiguousarray(frames)).float() / 127.5 - 1.0
    return rearrange(video, "... h w c -> c ... h w").contiguous()


def frame_rate(fps: float | Fraction) -> Fraction:
    """The exact frame rate that a float approximates: 29.97002997 is 30000/1001.

    Args:
        fps: frames per second, more than 0.
    Returns:
        Fraction: with a denominator of at most 1001, as NTSC rates have.
    Raises:
        ValueError: if fps is not a positive, finite number (of at least 1/1001).
    """
    if not math.isfinite(fps) or fps <= 0:
        raise ValueError(f"fps must be a positive number, got {fps}")
    rate = Fraction(fps).limit_denominator(1001)
    if rate == 0:
        raise ValueError(f"fps must be at least 1/1001, got {fps}")
    return rate


class VideoWriter:
    """Writes an H.264 video frame by frame, in memory that doesn't grow with its length.

    The file is written under a hidden name and renamed by `close`, so it is never incomplete.
    Leaving the `with` block by an exception removes it.

    Even sizes are stored as yuv420p, which plays everywhere. Halved chroma can't express an odd
    width or height; those are stored as yuv444p (profile High 4:4:4) and keep their size.

    Args:
        path: the file to write, .mp4, .mov or .mkv; its folder is made if needed.
        fps: frames per second, may be fractional (30000/1001).
        crf: quality, 0 (lossless but for colour conversion) to 51; 12 is visually lossless.
    Raises:
        ValueError: if the suffix, fps or crf is not allowed.
        OSError: if the file can't be written.
    """

    def __init__(self, path: str | Path, fps: float | Fraction, crf: int = 12) -> None:
        import av  # slow to import, and not needed to convert pixels

        self.path = Path(path)
        if self.path.suffix.lower() not in CONTAINERS:
            raise ValueError(
                f"a video is written as {', '.join(CONTAINERS)}, got {self.path.name!r}; "
                "change the file's suffix"
            )
        if not 0 <= crf <= 51:
            raise ValueError(f"crf must be from 0 (best) to 51 (worst), got {crf}")
        self.num_frames = 0
        self._rate, self._crf = frame_rate(fps), crf
        self._size: tuple[int, int] | None = None
        self._stream: Any = None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = partial_path(self.path)
        self._container: Any = av.open(
            str(self._partial), "w", format=CONTAINERS[self.path.suffix.lower()]
        )

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Appends one frame.

        Args:
            frame: (H, W, 3) uint8 RGB, all frames of one size.
        Raises:
            ValueError: if the frame is not uint8 RGB or of another size than the first.
        """
        import av
        from av.video.reformatter import ColorRange, Colorspace

        _check_rgb(frame, dims=(3,))
        height, width = frame.shape[:2]
        if self._container is None:
            raise ValueError(f"{self.path} is closed; a frame can't be added")
        if self._size is None:
            self._size = (height, width)
            self._stream = self._open_stream(height, width)
        if self._size != (height, width):
            raise ValueError(
                f"{self.path}: all frames must have the size of the first, {self._size[0]}x"
                f"{self._size[1]}; frame {self.num_frames} has {height}x{width}"
            )
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        # Players take untagged files for BT.601 or BT.709; convert to one of them and tag it.
        picture = picture.reformat(
            format=self._stream.pix_fmt,
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            threads=1,  # starting others takes longer than their work
        )
        self._mux(picture)
        self.num_frames += 1

    def close(self) -> None:
        """Finishes the file and renames it to `path`.

        Raises:
            ValueError: if no frame was written.
        """
        if self._container is None:
            return
        if self._stream is None:
            self.abort()
            raise ValueError(f"{self.path}: a video needs at least one frame, got none")
        try:
            self._mux(None)
            self._container.close()
            self._container = None
            os.replace(self._partial, self.path)
        finally:
            self.abort()

    def abort(self) -> None:
        """Removes what was written; does nothing after `close`."""
        if self._container is not None:
            container, self._container = self._container, None
            container.close()
        self._partial.unlink(missing_ok=True)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _open_stream(self, height: int, width: int) -> Any:
        from av.video.reformatter import ColorRange, Colorspace

        stream = self._container.add_stream("libx264", rate=self._rate)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p" if height % 2 == 0 and width % 2 == 0 else "yuv444p"
        stream.options = {"crf": str(self._crf)}
        context = stream.codec_context
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries = context.color_trc = BT709
        return stream

    def _mux(self, picture: av.VideoFrame | None) -> None:
        for packet in self._stream.encode(picture):
            self._container.mux(packet)


def write_video(
    path: str | Path, frames: Iterable[NDArray[np.uint8]], fps: float | Fraction, crf: int = 12
) -> Path:
    """Writes frames as an H.264 video, whole or not at all; see `VideoWriter`.

    Args:
        path: the file to write, .mp4, .mov or .mkv.
        frames: (T, H, W, 3) uint8 RGB, or an iterable of (H, W, 3).
        fps: frames per second, may be fractional (30000/1001).
        crf: quality, 0 (best) to 51 (worst).
    Returns:
        Path: the file.
    Raises:
        ValueError: on an empty video, another dtype or shape, suffix, fps or crf.
    """
    with VideoWriter(path, fps, crf) as writer:
        for frame in frames:
            writer.write(frame)
    return writer.path


def write_gif(path: str | Path, frames: NDArray[np.uint8], fps: float) -> Path:
    """Writes frames as an endless GIF, whole or not at all.

    A GIF counts time in hundredths of a second, so the frame rate is kept only on average.

    Args:
        path: the file to write.
        frames: (T, H, W, 3) uint8 RGB.
        fps: frames per second, at most 50 (players slow faster GIFs down to 10).
    Returns:
        Path: the file.
    Raises:
        ValueError: on an empty video, another dtype or shape, or fps.
    """
    _check_rgb(frames, dims=(4,))
    rate = frame_rate(fps)
    if rate > MAX_GIF_FPS:
        raise ValueError(
            f"a GIF plays at most {MAX_GIF_FPS:g} frames per second, got {fps}; drop frames"
        )
    ends = [round(100 * (index + 1) / rate) for index in range(len(frames))]
    durations = [10 * (end - start) for start, end in zip([0, *ends], ends, strict=False)]
    pictures = [Image.fromarray(frame) for frame in frames]
    animation = {"append_images": pictures[1:], "duration": durations, "loop": 0}
    with written_whole(path) as partial:
        pictures[0].save(partial, format="GIF", save_all=True, **animation)
    return Path(path)


def write_clip(target: Path, frames: NDArray[np.uint8], fps: float) -> list[Path]:
    """Writes TARGET.mp4 and TARGET.gif.

    Args:
        target: folder and stem of the files.
        frames: (T, H, W, 3) uint8 RGB.
        fps: frames per second; the GIF gets at most 50.
    """
    return [
        write_video(target.with_name(f"{target.name}.mp4"), frames, fps),
        write_gif(target.with_name(f"{target.name}.gif"), frames, min(fps, MAX_GIF_FPS)),
    ]


def contact_sheet(
    rows: Mapping[str, NDArray[np.uint8]],
    path: str | Path,
    num_columns: int = 8,
    frame_numbers: Sequence[int] | None = None,
    title: str | None = None,
    cell_height: int = 128,
) -> Path:
    """Writes a PNG with one labelled row per video and evenly spaced frames as its columns.

    Args:
        rows: label -> (T, H, W, 3) uint8 RGB; T the same in all rows, sizes may differ.
        path: the file to write.
        num_columns: how many frames to show at most, the first and the last among them.
        frame_numbers: the T numbers written over the columns; 0 … T-1 by default.
        title: a line above the sheet.
        cell_height: pixels; frames are scaled to it, small ones without smoothing.
    Returns:
        Path: the file.
    Raises:
        ValueError: without rows, on rows of different lengths, or on other dtypes and shapes.
    """
    if not rows or num_columns < 1:
        raise ValueError(
            f"a contact sheet needs rows and columns, got {len(rows)} rows and "
            f"num_columns={num_columns}"
        )
    for label, frames in rows.items():
        _check_rgb(frames, dims=(4,), name=f"row {label!r}")
    lengths = {label: len(frames) for label, frames in rows.items()}
    num_frames = next(iter(lengths.values()))
    if set(lengths.values()) != {num_frames}:
        raise ValueError(f"the rows of a contact sheet must have equal lengths, got {lengths}")
    numbers = list(range(num_frames)) if frame_numbers is None else list(frame_numbers)
    if len(numbers) != num_frames:
        raise ValueError(f"expected {num_frames} frame_numbers, one a frame, got {len(numbers)}")
    columns = np.linspace(0, num_frames - 1, min(num_columns, num_frames)).round().astype(int)
    cells = [
        [Image.fromarray(thumbnail(frames[column], cell_height)) for column in columns]
        for frames in rows.values()
    ]
    headings = [f"frame {numbers[column]}" for column in columns]
    sheet = _draw_sheet(list(rows), cells, headings, title)
    with written_whole(path) as partial:
        sheet.save(partial, format="PNG")
    return Path(path)


class FrameSampler:
    """Keeps a few evenly spaced entries of a stream of unknown length.

    Holds between `count` and 2 `count` entries: when full, it drops every second one and from
    then on takes half as many.

    Args:
        count: how many entries to hold at least (fewer for a shorter stream).
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        self.count, self.stride, self.seen = count, 1, 0
        self.kept: list[tuple[int, Any]] = []

    def wants(self) -> bool:
        """Whether the next entry would be kept; a costly one need not be computed otherwise."""
        return self.seen % self.stride == 0

    def add(self, entry: Any) -> None:
        """Counts the next entry of the stream, and keeps it if it is wanted.

        Args:
            entry: anything; None if `wants` said no.
        """
        if self.wants():
            if len(self.kept) == 2 * self.count:
                self.kept = self.kept[::2]
                self.stride *= 2
            self.kept.append((self.seen, entry))
        self.seen += 1

    def numbers(self) -> list[int]:
        """The positions in the stream of the kept entries."""
        return [number for number, _ in self.kept]

    def entries(self) -> list[Any]:
        """The kept entries, in the stream's order."""
        return [entry for _, entry in self.kept]


def thumbnail(frame: NDArray[np.uint8], height: int = 128) -> NDArray[np.uint8]:
    """The frame at this height, proportions kept; enlarged without smoothing.

    Args:
        frame: (H, W, 3) uint8 RGB.
        height: pixels.
    """
    picture = Image.fromarray(frame)
    width = max(1, round(picture.width * height / picture.height))
    enlarged = height > picture.height
    method = Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
    return np.asarray(picture.resize((width, height), method))


def _draw_sheet(
    labels: list[str], cells: list[list[Image.Image]], headings: list[str], title: str | None
) -> Image.Image:
    """The sheet: labels on the left, headings over the columns, cells in a grid."""
    font, gap, line = ImageFont.load_default(size=14), 6, 22
    label_width = max(round(font.getlength(label)) for label in labels) + 2 * gap
    heading_width = max(round(font.getlength(heading)) for heading in headings)
    cell_height = cells[0][0].height
    cell_width = max(heading_width, *(cell.width for row in cells for cell in row))
    top = gap + line * (2 if title else 1)
    width = label_width + len(headings) * (cell_width + gap)
    if title:
        width = max(width, round(font.getlength(title)) + 2 * gap)
    sheet = Image.new("RGB", (width, top + len(cells) * (cell_height + gap)), SHEET_BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((gap, gap), title, fill=SHEET_INK, font=font)
    for column, heading in enumerate(headings):
        left = label_width + column * (cell_width + gap)
        draw.text((left, top - line), heading, fill=SHEET_MUTED, font=font)
    for row, (label, pictures) in enumerate(zip(labels, cells, strict=True)):
        upper = top + row * (cell_height + gap)
        middle = upper + cell_height // 2
        draw.text((gap, middle), label, fill=SHEET_INK, font=font, anchor="lm")
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (label_width + column * (cell_width + gap), upper))
    return sheet


def _check_rgb(frames: Any, dims: tuple[int, ...], name: str = "frames") -> None:
    """Raises unless the frames are a non-empty uint8 array whose last axis is RGB."""
    if (
        not isinstance(frames, np.ndarray)
        or frames.dtype != np.uint8
        or frames.ndim not in dims
        or frames.shape[-1] != 3
        or frames.size == 0
    ):
        shapes = {3: "(H, W, 3)", 4: "(T, H, W, 3)"}
        array = isinstance(frames, np.ndarray)
        came = f"{frames.dtype} {frames.shape}" if array else type(frames).__name__
        raise ValueError(
            f"{name}: expected a non-empty uint8 numpy array "
            f"{' or '.join(shapes[dim] for dim in dims)}, got {came}; to_uint8 converts a video"
        )
