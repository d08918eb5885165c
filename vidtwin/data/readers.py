"""Frames of a video file, each read once by decord or by PyAV, within a time limit.

PyAV first lists the packets: their timestamps are the one truth for both backends about how many
frames there are and when. decord then decodes, unless a check says that it can't be trusted:

* containers other than MP4 and Matroska: of MPEG streams and AVI it repeats and shifts frames;
* another number of frames than PyAV's, another first frame (rotation, stream) or shape (it gives 4
  or 6 channels at some widths), or a first frame that is damaged;
* another key frame than PyAV's at any place it had to seek to: it can miss it by some frames;
* any frame that it recovered from a neighbour, or two equal frames in a row.

What is left PyAV reads, and it is strict: a frame that comes after a decoding error, or that the
decoder marks as damaged, is never given. (Damage between key frames that decord conceals within a
frame can't be seen from outside; backend "pyav" sees it, and takes no more processor time.) Both
turn frames upright by the rotation in the file, take the stream that ffmpeg calls best (never a
cover picture), and leave pixels that aren't square.

Axes: T frames, H W pixels, C colour channels.
"""

from __future__ import annotations

import logging
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
from vidtwin.data.pyav_reader import (
    INDEXED_FORMATS,
    Deadline,
    FrameListIsWrong,
    PyavReader,
    VideoInfo,
)

__all__ = [
    "UnusableVideo",
    "VideoInfo",
    "iter_frames",
    "read_clip",
    "read_frames",
    "read_video_info",
]

logger = logging.getLogger(__name__)

Frame = NDArray[np.uint8]
Result = TypeVar("Result")
Prepared = TypeVar("Prepared")

BACKENDS = ("auto", "decord", "pyav")
# Share of the frames that may be key frames for decord to be worth a check of each.
MAX_KEY_FRAMES = 0.25
# Frames decord may hold at once, in bytes: a clip of 4K frames is read in parts.
CHUNK_BYTES = 64 * 2**20
QUEUED_FRAMES = 4


class DecordDeclined(Exception):  # noqa: N818
    """decord can't read this file, or not reliably."""


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


def _decord_frames(reader: PyavReader, indices: NDArray[np.intp], insist: bool) -> Iterator[Frame]:
    """Frames by decord.

    Args:
        reader: PyAV's, of the same file.
        indices: increasing, each once.
        insist: whether no other backend may read them, so that what is only suspicious is fine.
    Raises:
        DecordDeclined: if decord can't read them, or what it gives looks wrong.
    """
    if not reader.format_is_one_of(INDEXED_FORMATS):
        raise DecordDeclined(f"not used for the container {reader.format_name}")
    if not reader.first_is_sound:
        raise DecordDeclined("the first frame is damaged")
    try:
        import decord
    except ImportError as error:
        raise DecordDeclined("decord is not installed") from error
    decord.logging.set_level(decord.logging.QUIET)
    try:
        # The smallest tolerance: one frame recovered from a neighbour is an error.
        video = decord.VideoReader(
            reader.source(), ctx=decord.cpu(0), num_threads=1, fault_tol=1e-9
        )
        # The first frame must be decoded first, also because decord repeats one wrong frame in some
        # good files when the first thing it does is to seek.
        first = video[0].asnumpy()
    # decord's errors have no base class of their own. PyAV goes on, or the file is reported.
    except Exception as error:
        raise DecordDeclined(_why(error)) from error
    if len(video) != reader.info.num_frames:
        raise DecordDeclined(f"{len(video)} frames, but there are {reader.info.num_frames}")
    if first.shape != reader.first_frame.shape:
        raise DecordDeclined(f"shape {first.shape} instead of {reader.first_frame.shape}")
    if not np.array_equal(first, reader.first_frame):
        raise DecordDeclined("another first frame")
    if not insist and reader.num_key_frames(indices) > 1 + len(indices) * MAX_KEY_FRAMES:
        raise DecordDeclined("many of the frames are key frames")
    # decord seeks to key frames and counts from there.
    try:
        keys = reader.key_frames(indices)
    except FrameListIsWrong as error:
        raise DecordDeclined(str(error)) from error
    wanted = np.union1d(indices, list(keys)).astype(np.intp)
    chunk = max(1, CHUNK_BYTES // first.nbytes)
    needed = set(indices.tolist())
    previous: Frame | None = None
    for start in range(0, len(wanted), chunk):
        part = wanted[start : start + chunk].tolist()
        try:
            batch = video.get_batch(part).asnumpy()
        except Exception as error:
            raise DecordDeclined(_why(error)) from error
        for index, frame in zip(part, batch, strict=True):
            if index in keys and not np.array_equal(frame, keys[index]):
                raise DecordDeclined(f"another frame {index} than PyAV's")
            if not insist and previous is not None and np.array_equal(frame, previous):
                raise DecordDeclined("equal frames in a row")
            if index in needed:
                yield frame
            previous = frame


def _read(
    path: str,
    choose: Callable[[VideoInfo], NDArray[np.intp]],
    prepare: Callable[[Frame], Prepared],
    backend: str,
    deadline: Deadline,
    fetch: Callable[[], bytes] | None,
) -> tuple[VideoInfo, NDArray[np.intp], list[Prepared]]:
    content = None if fetch is None else fetch()
    with PyavReader(path, deadline, content=content) as reader:
        indices = choose(reader.info)
        needed, places = np.unique(indices, return_inverse=True)
        if backend != "pyav":
            try:
                frames = _decord_frames(reader, needed, insist=backend == "decord")
                prepared = [prepare(frame) for frame in frames]
                info = replace(reader.info, backend="decord")
                return info, indices, [prepared[place] for place in places]
            except DecordDeclined as reason:
                if backend == "decord":
                    raise UnusableVideo(path, f"decord: {reason}") from reason
                logger.debug("%s is read by PyAV, decord: %s", path, reason)
        try:
            prepared = [prepare(frame) for frame in reader.read(needed)]
            return reader.info, indices, [prepared[place] for place in places]
        except FrameListIsWrong as error:
            logger.debug("%s: frames listed by decoding, %s", path, error)
    # Some streams have packets that show no frame, or timestamps out of order: only decoding all of
    # it tells which frames there are.
    with PyavReader(path, deadline, list_by_decoding=True, content=content) as reader:
        indices = choose(reader.info)
        needed, places = np.unique(indices, return_inverse=True)
        prepared = [prepare(frame) for frame in reader.read(needed)]
        return reader.info, indices, [prepared[place] for place in places]


def read_clip(
    path: str | Path,
    choose: Callable[[VideoInfo], NDArray[np.intp]],
    prepare: Callable[[Frame], Prepared],
    *,
    backend: str = "auto",
    timeout: float = 30.0,
    fetch: Callable[[], bytes] | None = None,
) -> tuple[VideoInfo, NDArray[np.intp], list[Prepared]]:
    """Some frames of a video, chosen once its timestamps are known, each prepared as it comes.

    Args:
        path: of the file.
        choose: which frames, from what is known about the video; it may raise.
        prepare: what to make of one (H, W, 3) frame, so that large frames needn't all be kept.
        backend: "auto" (decord, then PyAV), "decord" or "pyav".
        timeout: seconds for all of it.
        fetch: gives the bytes of the video, where the path only names it; it may raise.
    Returns:
        what is known about the video, the (T,) indices of the frames, and T prepared frames.
    Raises:
        UnusableVideo: if the file isn't a video, or the frames can't be read.
    """
    name = _check_file(path, backend, timeout, fetch)
    return run_with_timeout(
        name, timeout, lambda deadline: _read(name, choose, prepare, backend, deadline, fetch)
    )


def read_frames(
    path: str | Path,
    indices: Sequence[int] | None = None,
    *,
    backend: str = "auto",
    timeout: float = 30.0,
) -> Frame:
    """Frames of a video.

    Args:
        path: of the file.
        indices: which frames, in any order; None for all: not for long videos, see
            `iter_frames`.
        backend: "auto" (decord, then PyAV), "decord" or "pyav".
        timeout: seconds for all of it.
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

    _, _, frames = read_clip(path, choose, np.array, backend=backend, timeout=timeout)
    return np.stack(frames)


def read_video_info(
    path: str | Path, *, timeout: float = 30.0, fetch: Callable[[], bytes] | None = None
) -> VideoInfo:
    """What is known about a video from its packets and its first frame.

    Args:
        path: of the file.
        timeout: seconds for all of it.
        fetch: as of `read_clip`.

    Raises:
        UnusableVideo: if the file isn't a video.
    """
    name = _check_file(path, "auto", timeout, fetch)

    def work(deadline: Deadline) -> VideoInfo:
        content = None if fetch is None else fetch()
        with PyavReader(name, deadline, content=content) as reader:
            return reader.info

    return run_with_timeout(name, timeout, work)


def iter_frames(
    path: str | Path, start: int = 0, stop: int | None = None, *, timeout: float = 30.0
) -> Iterator[Frame]:
    """The frames of a video one after the other, decoded by PyAV; a few are held at a time.

    Args:
        path: of the file.
        start: the first frame to give.
        stop: the frame to end before; None for the end of the video.
        timeout: seconds that one frame may take.
    Returns:
        (H, W, 3) uint8 RGB frames.
    Raises:
        UnusableVideo: where the video can't be decoded further.
    """
    if start < 0 or (stop is not None and stop < start):
        raise ValueError(f"start and stop must be 0 <= start <= stop, got {start} and {stop}")
    name = _check_file(path, "pyav", timeout)
    return _stream(name, start, stop, timeout)


def _stream(path: str, start: int, stop: int | None, timeout: float) -> Iterator[Frame]:
    items: queue.Queue[Frame | BaseException | None] = queue.Queue(maxsize=QUEUED_FRAMES)
    closed = threading.Event()

    def put(item: Frame | BaseException | None) -> bool:
        while not closed.is_set():
            try:
                items.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue  # the reader of the frames is busy with earlier ones
        return False

    def produce() -> None:
        # Without a limit of its own: the consumer's is on each frame, and it may be slow itself.
        try:
            with PyavReader(path, Deadline(path, None)) as reader:
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
