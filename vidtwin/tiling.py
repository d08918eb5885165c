"""Encodes and decodes videos of any length and resolution with a model of fixed size.

A video is cut into overlapping windows of the model's (T, H, W); each passes through the model
once, and the results are blended where they overlap:

    windows     start every (window - overlap); the last one is shifted back to end with the
                video, so it may overlap more than the others.
    padding     an axis shorter than the window is extended by mirroring (0 1 2 3 2 1 0 1 ...)
                and cropped afterwards; a single frame, row or column is repeated.
    blending    over an overlap of n the weights rise linearly, k / (n + 1), from one window to
                the next, one axis at a time. Each step is a + weight * (b - a), so the weights
                sum to exactly 1 and equal windows are reproduced bit for bit.
    memory      streams hold one window of input and one of output in time, however long the
                video; the output lags by at most window + 2 (window - overlap) frames.

Axes: B batch, C channels, T frames, H W pixels; n tiles of one window in time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, overload

import torch
from einops import rearrange

from vidtwin.latents import Part, VidTwinLatents

__all__ = [
    "LatentWindow",
    "Layout",
    "decode_windows",
    "encode_windows",
    "iter_decode_windows",
    "iter_encode_windows",
    "tile_starts",
    "tiled_reconstruct",
]

Sizes = tuple[int, int, int]
AXES = ("frames", "rows", "columns")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a video is cut into windows: their size and overlap.

    Args:
        window: (T, H, W), the model's size.
        overlap: (frames, rows, columns) shared by neighbouring windows, less than the window.
    Raises:
        ValueError: if an overlap is negative or not less than the window.
    """

    window: Sizes
    overlap: Sizes

    def __post_init__(self) -> None:
        for axis, window, overlap in zip(AXES, self.window, self.overlap, strict=True):
            if not 0 <= overlap < window:
                raise ValueError(
                    f"`tile_overlap` in {axis} must be from 0 to {window - 1} (the model's window "
                    f"has {window} {axis}), got {overlap}"
                )

    @staticmethod
    def of_model(model: Any, tile_overlap: Sequence[int] | None = None) -> Layout:
        """The layout for a model's num_frames, height and width.

        Args:
            model: with `config.num_frames`, `.height` and `.width`.
            tile_overlap: (frames, rows, columns); None for a quarter of each.
        """
        window = (model.config.num_frames, model.config.height, model.config.width)
        if tile_overlap is None:
            return Layout(window=window, overlap=(window[0] // 4, window[1] // 4, window[2] // 4))
        if len(tile_overlap) != 3:
            raise ValueError(
                f"`tile_overlap` must be three numbers (frames, rows, columns), got {tile_overlap}"
            )
        frames, rows, columns = (int(size) for size in tile_overlap)
        return Layout(window=window, overlap=(frames, rows, columns))


@dataclass(frozen=True)
class LatentWindow:
    """The latents of one window, and its position in the video.

    Args:
        start: (frame, row, column) of its first pixel.
        size: (frames, rows, columns) of the video that it covers: the model's size, or less along
            an axis where the video is shorter.
        latents: of this window, for each of the B videos.
    """

    start: Sizes
    size: Sizes
    latents: VidTwinLatents


def tile_starts(size: int, window: int, overlap: int) -> list[int]:
    """Start positions of the windows along an axis.

    Args:
        size: length of the axis, at least 1.
        window: length of a window.
        overlap: of neighbouring windows, less than the window.
    Returns:
        list[int]: increasing; the last window ends with the axis ([0] if the axis is shorter).
    """
    if size <= window:
        return [0]
    return [*range(0, size - window, window - overlap), size - window]


@overload
def tiled_reconstruct(
    model: Any,
    video: torch.Tensor,
    tile_overlap: Sequence[int] | None = None,
    part: Part = "both",
    tile_batch_size: int = 1,
) -> torch.Tensor: ...


@overload
def tiled_reconstruct(
    model: Any,
    video: Iterable[torch.Tensor],
    tile_overlap: Sequence[int] | None = None,
    part: Part = "both",
    tile_batch_size: int = 1,
) -> Iterator[torch.Tensor]: ...


def tiled_reconstruct(
    model: Any,
    video: torch.Tensor | Iterable[torch.Tensor],
    tile_overlap: Sequence[int] | None = None,
    part: Part = "both",
    tile_batch_size: int = 1,
) -> torch.Tensor | Iterator[torch.Tensor]:
    """A video of any length and resolution, encoded and decoded window by window.

    Args:
        model: a VidTwinAutoencoder.
        video: (B, C, T, H, W) in [-1, 1], any T, H, W; or an iterable of such chunks,
            consecutive in time, of which only one window of frames is kept in memory.
        tile_overlap: (frames, rows, columns) that neighbouring windows share; a quarter of the
            model's size by default.
        part: "both", or decode only "structure" or "dynamics".
        tile_batch_size: windows (of B videos each) per forward pass.
    Returns:
        The reconstruction, of the video's shape, dtype and device; for an iterable, an iterator
        of (B, C, t, H, W) chunks with as many frames in total.
    Raises:
        ValueError: for a bad overlap, batch size or part, an empty video, or chunks of other sizes.
    """
    if not isinstance(video, torch.Tensor):
        windows = iter_encode_windows(model, video, tile_overlap, tile_batch_size)
        return iter_decode_windows(model, windows, part, tile_batch_size)
    windows = iter_encode_windows(model, [video], tile_overlap, tile_batch_size)
    chunks = iter_decode_windows(
        model, windows, part, tile_batch_size, device=video.device, dtype=video.dtype
    )
    return torch.cat(list(chunks), dim=2)


def encode_windows(
    model: Any,
    video: torch.Tensor | Iterable[torch.Tensor],
    tile_overlap: Sequence[int] | None = None,
    tile_batch_size: int = 1,
) -> list[LatentWindow]:
    """The latents of a video of any length and resolution, as a list of windows.

    Args:
        model: a VidTwinAutoencoder; the posterior is taken at its mode.
        video: (B, C, T, H, W) in [-1, 1], or an iterable of chunks, as in `tiled_reconstruct`.
        tile_overlap: (frames, rows, columns) that neighbouring windows share.
        tile_batch_size: windows per forward pass.
    Returns:
        list[LatentWindow]: ordered by frame, row, column.
    """
    chunks = [video] if isinstance(video, torch.Tensor) else video
    return list(iter_encode_windows(model, chunks, tile_overlap, tile_batch_size))


def decode_windows(
    model: Any,
    windows: Iterable[LatentWindow],
    part: Part = "both",
    tile_batch_size: int = 1,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """The video of windows from `encode_windows`.

    Args:
        model: a VidTwinAutoencoder.
        windows: all windows of one video, in any order.
        part: "both", "structure" or "dynamics".
        tile_batch_size: windows per forward pass.
        device: where the windows are blended; the model's by default.
        dtype: of the video; the model's by default.
    Returns:
        torch.Tensor: (B, C, T, H, W), about [-1, 1].
    Raises:
        ValueError: if there are no windows, or some are missing.
    """
    ordered = sorted(windows, key=lambda window: window.start)
    if not ordered:
        raise ValueError("no windows to decode; expected those of encode_windows, at least one")
    chunks = iter_decode_windows(model, ordered, part, tile_batch_size, device, dtype)
    return torch.cat(list(chunks), dim=2)


def iter_encode_windows(
    model: Any,
    chunks: Iterable[torch.Tensor],
    tile_overlap: Sequence[int] | None = None,
    tile_batch_size: int = 1,
) -> Iterator[LatentWindow]:
    """The streaming form of `encode_windows`: yields each window as soon as its frames have come.

    Args:
        model: a VidTwinAutoencoder.
        chunks: (B, C, t, H, W) each, consecutive in time, any t.
        tile_overlap: (frames, rows, columns) that neighbouring windows share.
        tile_batch_size: windows per forward pass.
    """
    layout = Layout.of_model(model, tile_overlap)
    _check_batch_size(tile_batch_size)
    return _encode(model, chunks, layout, tile_batch_size)


def iter_decode_windows(
    model: Any,
    windows: Iterable[LatentWindow],
    part: Part = "both",
    tile_batch_size: int = 1,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Iterator[torch.Tensor]:
    """The streaming form of `decode_windows`: yields (B, C, t, H, W) as soon as it is final.

    Args:
        model: a VidTwinAutoencoder.
        windows: ordered by start, as from `iter_encode_windows`.
        part: "both", "structure" or "dynamics".
        tile_batch_size: windows per forward pass.
        device: where the windows are blended; the model's by default.
        dtype: of the video; the model's by default.
    """
    _check_batch_size(tile_batch_size)
    pictures = _decode(model, windows, part, tile_batch_size, device, dtype)
    return _blend(pictures, axis=2)


def _encode(
    model: Any, chunks: Iterable[torch.Tensor], layout: Layout, tile_batch_size: int
) -> Iterator[LatentWindow]:
    for first_frame, clip in _cut_time(chunks, layout):
        rows, columns = (
            tile_starts(size, window, overlap)
            for size, window, overlap in zip(
                clip.shape[-2:], layout.window[1:], layout.overlap[1:], strict=True
            )
        )
        places = [(row, column) for row in rows for column in columns]
        for at in range(0, len(places), tile_batch_size):
            group = places[at : at + tile_batch_size]
            tiles = [_tile(clip, place, layout) for place in group]
            padded = torch.stack([_mirror_to(tile, layout.window) for tile in tiles])
            latents = _encode_batch(model, rearrange(padded, "n b c t h w -> (n b) c t h w"))
            batch = clip.shape[0]
            for index, (place, tile) in enumerate(zip(group, tiles, strict=True)):
                frames, height, width = tile.shape[-3:]
                yield LatentWindow(
                    start=(first_frame, *place),
                    size=(frames, height, width),
                    latents=latents[index * batch : (index + 1) * batch],
                )


def _decode(
    model: Any,
    windows: Iterable[LatentWindow],
    part: Part,
    tile_batch_size: int,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Iterator[tuple[int, torch.Tensor]]:
    """(first frame, full-size frames (B, C, t, H, W)) for each window in time."""
    for first_frame, group in groupby(windows, key=lambda window: window.start[0]):
        tiles = list(group)
        decoded: list[torch.Tensor] = []
        for at in range(0, len(tiles), tile_batch_size):
            some = tiles[at : at + tile_batch_size]
            pictures = _decode_batch(model, [tile.latents for tile in some], part)
            pictures = pictures.to(device=device, dtype=dtype)
            stacked = rearrange(pictures, "(n b) c t h w -> n b c t h w", n=len(some))
            decoded += [
                picture[..., : tile.size[0], : tile.size[1], : tile.size[2]]
                for tile, picture in zip(some, stacked, strict=True)
            ]
        strips = []
        for row, pairs in groupby(
            zip(tiles, decoded, strict=True), key=lambda pair: pair[0].start[1]
        ):
            line = [(tile.start[2], picture) for tile, picture in pairs]
            strips.append((row, torch.cat(list(_blend(line, axis=-1)), dim=-1)))
        if len({strip.shape[-1] for _, strip in strips}) > 1:
            raise ValueError(
                f"windows are missing: the rows of frame {first_frame} have different widths"
            )
        yield first_frame, torch.cat(list(_blend(strips, axis=-2)), dim=-2)


def _cut_time(chunks: Iterable[torch.Tensor], layout: Layout) -> Iterator[tuple[int, torch.Tensor]]:
    """(first frame, (B, C, T, H, W)) for each window in time; a shorter video has one of less."""
    window, stride = layout.window[0], layout.window[0] - layout.overlap[0]
    # The last T frames: the next regular window, or the shifted one at the end.
    recent: deque[torch.Tensor] = deque(maxlen=window)
    first: torch.Tensor | None = None
    end, needed = 0, window
    for chunk in chunks:
        first = chunk if first is None else first
        _check_chunk(chunk, first, end)
        for frame in chunk.unbind(2):
            recent.append(frame)
            end, needed = end + 1, needed - 1
            if needed == 0:
                yield end - window, torch.stack(list(recent), dim=2)
                needed = stride
    if not recent:
        raise ValueError("the video has no frames; give at least one")
    if end < window or needed < stride:
        yield max(0, end - window), torch.stack(list(recent), dim=2)


def _tile(clip: torch.Tensor, place: tuple[int, int], layout: Layout) -> torch.Tensor:
    (row, column), (_, height, width) = place, layout.window
    return clip[..., row : row + height, column : column + width]


def _mirror_to(tile: torch.Tensor, window: Sizes) -> torch.Tensor:
    """The tile extended by mirroring to the window's size along axes where it is shorter."""
    for axis, size in zip((-3, -2, -1), window, strict=True):
        length = tile.shape[axis]
        if length < size:
            period = max(1, 2 * (length - 1))
            steps = torch.arange(size, device=tile.device) % period
            tile = tile.index_select(axis, torch.minimum(steps, period - steps))
    return tile


def _blend(windows: Iterable[tuple[int, torch.Tensor]], axis: int) -> Iterator[torch.Tensor]:
    """Blends (start, values) windows, ordered by start, into consecutive pieces along one axis."""
    pending: torch.Tensor | None = None
    pending_start = 0
    for start, window in windows:
        if pending is None:
            if start != 0:
                raise ValueError(f"windows are missing: the first one starts at {start}, not at 0")
        else:
            done, length = start - pending_start, pending.shape[axis]
            if not 0 < done <= length:
                raise ValueError(
                    f"windows are missing or out of order: one starts at {start} after one from "
                    f"{pending_start} to {pending_start + length}"
                )
            yield pending.narrow(axis, 0, done)
            window = _ramp(pending.narrow(axis, done, length - done), window, axis)
        pending, pending_start = window, start
    if pending is not None:
        yield pending


def _ramp(before: torch.Tensor, after: torch.Tensor, axis: int) -> torch.Tensor:
    """`after`, its beginning along the axis cross-faded with all of `before`."""
    overlap = before.shape[axis]
    if overlap == 0:
        return after
    weights = torch.arange(1, overlap + 1, device=after.device, dtype=after.dtype) / (overlap + 1)
    shape = [1] * after.ndim
    shape[axis] = overlap
    start = after.narrow(axis, 0, overlap)
    faded = before + weights.reshape(shape) * (start - before)
    return torch.cat([faded, after.narrow(axis, overlap, after.shape[axis] - overlap)], dim=axis)


@torch.no_grad()
def _encode_batch(model: Any, tiles: torch.Tensor) -> VidTwinLatents:
    parameter = next(model.parameters(), None)
    if parameter is not None:
        tiles = tiles.to(device=parameter.device, dtype=parameter.dtype)
    latents: VidTwinLatents = model.encode(tiles).mode()
    return latents


@torch.no_grad()
def _decode_batch(model: Any, latents: list[VidTwinLatents], part: Part) -> torch.Tensor:
    joined = VidTwinLatents.cat(latents)
    parameter = next(model.parameters(), None)
    if parameter is not None:
        joined = joined.to(device=parameter.device, dtype=parameter.dtype)
    video: torch.Tensor = model.decode(joined, part=part)
    return video


def _check_batch_size(tile_batch_size: int) -> None:
    if tile_batch_size < 1:
        raise ValueError(f"`tile_batch_size` must be at least 1, got {tile_batch_size}")


def _check_chunk(chunk: torch.Tensor, first: torch.Tensor, end: int) -> None:
    """Raises unless the chunk is a float video of the first one's size."""
    if chunk.ndim != 5 or not chunk.is_floating_point() or 0 in chunk.shape[-2:]:
        raise ValueError(
            "expected a float video (B, C, T, H, W) in [-1, 1], got "
            f"{chunk.dtype} {tuple(chunk.shape)}"
        )
    kept = (0, 1, 3, 4)
    if [chunk.shape[axis] for axis in kept] != [first.shape[axis] for axis in kept]:
        raise ValueError(
            f"the chunk at frame {end} has shape {tuple(chunk.shape)}, the first one "
            f"{tuple(first.shape)}; only the number of frames may change"
        )
