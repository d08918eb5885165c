"""Frames of a video file, each read once, within a time limit and limits of size.

PyAV lists the packets: their timestamps are the truth about how many frames there are and when.
Then it decodes, and it is strict: a frame that comes after a decoding error, or that the decoder or
a checksum marks as damaged, is never given. Frames are turned upright by the rotation in the file,
the stream is the one that ffmpeg calls best (never a cover picture), and pixels that aren't square
are left so.

Backend "decord" gives decord's frames instead, each held against PyAV's: by itself it conceals
damage, repeats and shifts frames of some containers, and can miss a key frame by some frames.

Axes: T frames, H W pixels, C colour channels.
"""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vidtwin.data.bad_files import UnusableVideo
from vidtwin.data.frame_lists import VideoInfo
from vidtwin.data.limits import Deadline, Limits
from vidtwin.data.pyav_reader import INDEXED_FORMATS, FrameListIsWrong, PyavReader

__all__ = [
    "Limits",
    "UnusableVideo",
    "VideoInfo",
    "iter_frames",
    "read_clip",
    "read_frames",
    "read_video_info",
]

Frame = NDArray[np.uint8]
Result = TypeVar("Result")
Prepared = TypeVar("Prepared")

BACKENDS = ("auto", "decord", "pyav")
LIMITS = Limits()
# Frames decord may hold at once, in bytes: a clip of 4K frames is read in parts.
CHUNK_BYTES = 64 * 2**20
QUEUED_FRAMES = 4


def run_with_timeout(path: str, timeout: float, work: Callable[[Deadline], Result]) -> Result:
    """The result of `work`, given up after `timeout` seconds.

    A decoder that hangs can't be interrupted from outside, so the work runs in a daemon thread that
    is left behind; PyAV's loops look at the deadline and end by themselves soon after.

    Raises:
        UnusableVideo: if the time is over; anything else that `work` raises.
    """
    deadline = Deadline(path, timeout)
    outcome: list[Result] = []
    failure: list[BaseException] = []

    def target() -> None:
        try:
            outcome.append(work(deadline))
        # Handed over to the caller's thread, which raises it.
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=target, name="video reader", daemon=True)
    thread.start()
    thread.join(timeout)
    if failure:
        raise failure[0]
    if not outcome:
        raise deadline.expired()
    return outcome[0]


def _check_file(
    path: str | Path, backend: str, timeout: float, fetch: Callable[[], bytes] | None = None
) -> str:
    """The path as a string; it must be a file that isn't empty, unless its bytes are fetched."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if not timeout > 0:
        raise ValueError(f"timeout must be above 0 seconds, got {timeout}")
    if fetch is not None:
        return str(path)
    path = Path(path)
    if not path.exists():
        raise UnusableVideo(str(path), "no such file")
    if not path.is_file():
        raise UnusableVideo(str(path), "not a file")
    if path.stat().st_size == 0:
        raise UnusableVideo(str(path), "empty file")
    return str(path)


def _why(error: Exception) -> str:
    """What decord says, without its clock and source file."""
    lines = re.sub(r"\[[\d:]+\] \S+:\d+: ?", "", str(error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _decord_frames(
    reader: PyavReader, indices: NDArray[np.intp], frames: Iterator[Frame]
) -> Iterator[Frame]:
    """Frames by decord.

    Args:
        reader: PyAV's, of the same file.
        indices: increasing, each once.
        frames: PyAV's of these indices.
    Raises:
        UnusableVideo: if decord can't read them, or gives others.
    """

    def declined(why: str) -> UnusableVideo:
        return UnusableVideo(reader.path, f"decord: {why}; take data.backend=pyav")

    if not reader.format_is_one_of(INDEXED_FORMATS):
        raise declined(f"not used for the container {reader.format_name}")
    try:
        import decord
    except ImportError as error:
        raise declined("decord is not installed") from error
    decord.logging.set_level(decord.logging.QUIET)
    try:
        # The smallest tolerance: one frame recovered from a neighbour is an error.
        video = decord.VideoReader(
            reader.source(), ctx=decord.cpu(0), num_threads=1, fault_tol=1e-9
        )
        # The first frame must be decoded first, also because decord repeats one wrong frame in some
        # good files when the first thing it does is to seek.
        first = video[0].asnumpy()
    # decord's errors have no base class of their own.
    except Exception as error:
        raise declined(_why(error)) from error
    if len(video) != reader.info.num_frames:
        raise declined(f"{len(video)} frames, but there are {reader.info.num_frames}")
    shape = (reader.info.height, reader.info.width, 3)
    if first.shape != shape:
        raise declined(f"shape {first.shape} instead of {shape}")
    chunk = max(1, CHUNK_BYTES // first.nbytes)
    for start in range(0, len(indices), chunk):
        part = indices[start : start + chunk].tolist()
        try:
            batch = video.get_batch(part).asnumpy()
        except Exception as error:
            raise declined(_why(error)) from error
        for index, frame in zip(part, batch, strict=True):
            if not np.array_equal(frame, next(frames)):
                raise declined(f"another frame {index} than PyAV's")
            yield frame


def _read(
    path: str,
    choose: Callable[[VideoInfo], NDArray[np.intp]],
    prepare: Callable[[Frame], Prepared],
    backend: str,
    deadline: Deadline,
    limits: Limits,
    fetch: Callable[[], bytes] | None,
) -> tuple[VideoInfo, NDArray[np.intp], list[Prepared]]:
    content = None if fetch is None else fetch()
    # Some streams have packets that show no frame, or timestamps out of order: only decoding all of
    # it tells which frames there are.
    for by_decoding in (False, True):
        with PyavReader(path, deadline, limits, by_decoding, content) as reader:
            indices = choose(reader.info)
            needed, places = np.unique(indices, return_inverse=True)
            frames, info = reader.read(needed), reader.info
            if backend == "decord":
                frames, info = (
                    _decord_frames(reader, needed, frames),
                    replace(info, backend=backend),
                )
            try:
                prepared = [prepare(frame) for frame in frames]
            except FrameListIsWrong:
                continue
            return info, indices, [prepared[place] for place in places]
    raise AssertionError  # listed by decoding, every frame is where it is said to be


def read_clip(
    path: str | Path,
    choose: Callable[[VideoInfo], NDArray[np.intp]],
    prepare: Callable[[Frame], Prepared],
    *,
    backend: str = "auto",
    timeout: float = 30.0,
    limits: Limits = LIMITS,
    fetch: Callable[[], bytes] | None = None,
) -> tuple[VideoInfo, NDArray[np.intp], list[Prepared]]:
    """Some frames of a video, chosen once its timestamps are known, each prepared as it comes.

    Args:
        path: of the file.
        choose: which frames, from what is known about the video; it may raise.
        prepare: what to make of one (H, W, 3) frame, so that large frames needn't all be kept.
        backend: "auto" (which is PyAV), "pyav" or "decord".
        timeout: seconds for all of it.
        limits: that the file must keep.
        fetch: gives the bytes of the video, where the path only names it; it may raise.
    Returns:
        what is known about the video, the (T,) indices of the frames, and T prepared frames.
    Raises:
        UnusableVideo: if the file isn't a video, or the frames can't be read.
    """
    name = _check_file(path, backend, timeout, fetch)
    return run_with_timeout(
        name,
        timeout,
        lambda deadline: _read(name, choose, prepare, backend, deadline, limits, fetch),
    )


def read_frames(
    path: str | Path,
    indices: Sequence[int] | None = None,
    *,
    backend: str = "auto",
    timeout: float = 30.0,
    limits: Limits = LIMITS,
) -> Frame:
    """Frames of a video.

    Args:
        path: of the file.
        indices: which frames, in any order; None for all: not for long videos, see
            `iter_frames`.
        backend: "auto" (which is PyAV), "pyav" or "decord".
        timeout: seconds for all of it.
        limits: that the file must keep.
    Returns:
        (T, H, W, 3) uint8 RGB.
    Raises:
        UnusableVideo: if the file isn't a video, or a frame can't be read.
        ValueError: if an index is not in the video.
    """

    def choose(info: VideoInfo) -> NDArray[np.intp]:
        if indices is None:
            return np.arange(info.num_frames)
        chosen = np.asarray(indices, dtype=np.intp)
        if chosen.size == 0 or chosen.min() < 0 or chosen.max() >= info.num_frames:
            raise ValueError(
                f"indices must be in [0, {info.num_frames}) of {path}, got {list(indices)}"
            )
        return chosen

    _, _, frames = read_clip(
        path, choose, np.array, backend=backend, timeout=timeout, limits=limits
    )
    return np.stack(frames)


def read_video_info(
    path: str | Path,
    *,
    timeout: float = 30.0,
    limits: Limits = LIMITS,
    fetch: Callable[[], bytes] | None = None,
) -> VideoInfo:
    """What is known about a video from its packets and its first frame.

    Args:
        path: of the file.
        timeout: seconds for all of it.
        limits: that the file must keep.
        fetch: as of `read_clip`.

    Raises:
        UnusableVideo: if the file isn't a video.
    """
    name = _check_file(path, "auto", timeout, fetch)

    def work(deadline: Deadline) -> VideoInfo:
        content = None if fetch is None else fetch()
        with PyavReader(name, deadline, limits, content=content) as reader:
            return reader.info

    return run_with_timeout(name, timeout, work)


def iter_frames(
    path: str | Path,
    start: int = 0,
    stop: int | None = None,
    *,
    timeout: float = 30.0,
    limits: Limits = LIMITS,
) -> Iterator[Frame]:
    """The frames of a video one after the other, decoded by PyAV; a few are held at a time.

    Args:
        path: of the file.
        start: the first frame to give.
        stop: the frame to end before; None for the end of the video.
        timeout: seconds that one frame may take.
        limits: that the file must keep.
    Returns:
        (H, W, 3) uint8 RGB frames.
    Raises:
        UnusableVideo: where the video can't be decoded further.
    """
    if start < 0 or (stop is not None and stop < start):
        raise ValueError(f"start and stop must be 0 <= start <= stop, got {start} and {stop}")
    name = _check_file(path, "pyav", timeout)
    return _stream(name, start, stop, timeout, limits)


def _stream(
    path: str, start: int, stop: int | None, timeout: float, limits: Limits
) -> Iterator[Frame]:
    items: queue.Queue[Frame | BaseException | None] = queue.Queue(maxsize=QUEUED_FRAMES)
    closed = threading.Event()
    # The consumer may be slow itself: its limit is on each frame, and ends the reader as well.
    deadline = Deadline(path, None)

    def put(item: Frame | BaseException | None) -> bool:
        while not closed.is_set():
            try:
                items.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue  # the reader of the frames is busy with earlier ones
        return False

    def produce() -> None:
        try:
            with PyavReader(path, deadline, limits) as reader:
                for frame in reader.read_all(start, stop):
                    if not put(frame):
                        return
            put(None)
        # Handed over to the caller's thread, which raises it.
        except BaseException as error:
            put(error)

    threading.Thread(target=produce, name="video reader", daemon=True).start()
    try:
        while True:
            try:
                item = items.get(timeout=timeout)
            except queue.Empty:
                raise Deadline(path, timeout).expired() from None
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        closed.set()
        deadline.seconds = deadline.end = 0.0
