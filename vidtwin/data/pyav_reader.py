"""The frames of a video file as PyAV lists and decodes them.

Axes: H W pixels, C colour channels.
"""

from __future__ import annotations

import contextlib
import io
import os
from array import array
from bisect import bisect_right
from collections.abc import Hashable, Iterator
from types import TracebackType

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from vidtwin.data.bad_files import UnusableVideo
from vidtwin.data.frame_lists import KEPT, FrameList, VideoInfo
from vidtwin.data.limits import DAMAGE, OPEN_OPTIONS, PLAYLISTS, Deadline, Limits

Frame = NDArray[np.uint8]

# Containers whose packets have no presentation times: ffmpeg's guesses are wrong with B-frames.
UNTIMED_FORMATS = frozenset({"avi", "h264", "hevc", "m4v", "mjpeg", "mpegvideo", "rawvideo"})
# Containers with an index and a time for every packet. In others frames are told apart by decoding
# from the start: after a seek in an MPEG stream, every frame may have its neighbour's time.
INDEXED_FORMATS = frozenset({"mov", "mp4", "matroska", "webm"})
# A share by which the rate that a file states may miss the one of its timestamps.
RATE_TOLERANCE = 0.02
DEFAULT_RATE = 25.0


class FrameListIsWrong(Exception):  # noqa: N818
    """The packets don't tell which frames there are."""


def upright(frame: av.VideoFrame, reformatter: VideoReformatter) -> Frame:
    """(H, W, 3) RGB pixels, turned by the frame's rotation; odd angles stay as they are.

    Args:
        reformatter: of all frames: a new one has tables to fill. It works in this thread alone:
            starting others takes longer than their work.
    """
    picture = reformatter.reformat(frame, format="rgb24", threads=1)
    pixels = np.asarray(picture.to_ndarray(), dtype=np.uint8)
    turns, rest = divmod(frame.rotation, 90)
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns % 4 and not rest else pixels


class OpenBytes(io.BytesIO):
    """A file in memory, with the name by which ffmpeg also guesses its format."""

    def __init__(self, content: bytes, name: str):
        super().__init__(content)
        self.name = name


class PyavReader:
    """An open video file.

    Args:
        path: of the file.
        deadline: looked at between packets.
        limits: that the file must keep.
        list_by_decoding: find the frames by decoding all of them, instead of from the packets.
        content: the bytes of the file, where it is no file of its own.
    Raises:
        UnusableVideo: if the file can't be opened, is beyond a limit, has no moving picture, or no
            frame decodes.
    """

    def __init__(
        self,
        path: str,
        deadline: Deadline,
        limits: Limits,
        list_by_decoding: bool = False,
        content: bytes | None = None,
    ):
        self.path = path
        self.content = content
        self.deadline = deadline
        self.limits = limits
        self.listed_by_decoding = list_by_decoding
        self.failures = 0  # packets that could not be decoded since the start
        self.reformatter = VideoReformatter()
        self.cut_off = False  # whether reading ended by an error
        # Before the file is opened: one that is exchanged meanwhile is not taken for this one.
        key = self._key() if content is None else None
        self._open()
        try:
            kept = None if key is None else KEPT.get(key)
            self.frames = kept or self._listed()
            self._check_count(len(self.frames.pts))
            if key is not None and not self.cut_off:
                KEPT.keep(key, self.frames)
        except BaseException:
            self.close()
            raise

    @property
    def info(self) -> VideoInfo:
        """What is known about the video."""
        return self.frames.info

    def __enter__(self) -> PyavReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _key(self) -> Hashable:
        """Of the file as it is now: another one under its name has another key."""
        try:
            file = os.stat(self.path)
        except OSError as error:
            raise UnusableVideo(self.path, f"can't be opened: {_reason(error)}") from error
        state = (file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns)
        return self.path, self.listed_by_decoding, *state

    def source(self) -> str | OpenBytes:
        """What a decoder opens: the path, or a file in memory."""
        return self.path if self.content is None else OpenBytes(self.content, self.path)

    def close(self) -> None:
        """Let the file go."""
        self.container.close()

    def format_is_one_of(self, names: frozenset[str]) -> bool:
        """Whether the container goes by one of these names of ffmpeg."""
        return not names.isdisjoint(self.format_name.split(","))

    def _open(self) -> None:
        bounded = {"max_pixels": str(self.limits.pixels)}
        try:
            self.container: InputContainer = av.open(
                self.source(), "r", options=OPEN_OPTIONS | bounded
            )
        except (av.FFmpegError, OSError, ValueError) as error:
            raise UnusableVideo(self.path, self._why_unopened(error)) from error
        self.format_name = self.container.format.name
        try:
            if self.format_name.endswith("_pipe") or self.format_name == "image2":
                raise UnusableVideo(self.path, f"a still picture ({self.format_name})")
            self.stream = self._best_stream()
            self._check_limits()
            self.stream.codec_context.thread_count = 1
            self.stream.codec_context.thread_type = "NONE"
            self.stream.codec_context.options = {"err_detect": DAMAGE} | bounded
        except BaseException:
            self.close()
            raise

    def _why_unopened(self, error: Exception) -> str:
        start = self.content or b""
        if self.content is None:
            with open(self.path, "rb") as file:
                start = file.read(1024)
        if any(mark in start[:1024] for mark in PLAYLISTS):
            return "a list of other files, which is never followed"
        if isinstance(error, av.ArgumentError):
            return "its container is none of those that are read, see docs/data.md; convert it"
        return f"can't be opened: {_reason(error)}"

    def _check_limits(self) -> None:
        """Refuses what the file's header says is too large."""
        width, height = self.stream.codec_context.width, self.stream.codec_context.height
        if width * height > self.limits.pixels or not (width and height):
            # ffmpeg forgets a size that is too large for it.
            size = f"{width}x{height} pixels" if width else "unknown or immense size"
            raise UnusableVideo(
                self.path,
                f"frames of {size}, expected at most data.max_pixels={self.limits.pixels:,}",
            )
        self._check_count(self.stream.frames)

    def _check_count(self, frames: int) -> None:
        if frames > self.limits.frames:
            raise UnusableVideo(
                self.path,
                f"{frames:,} frames or more, expected at most data.max_frames="
                f"{self.limits.frames:,}",
            )

    def _best_stream(self) -> av.VideoStream:
        """ffmpeg's choice among the video streams, cover pictures left out."""
        moving = [
            stream
            for stream in self.container.streams.video
            if not stream.disposition & Disposition.attached_pic
        ]
        best = self.container.streams.best("video")
        if not moving:
            raise UnusableVideo(
                self.path, "no video stream" if best is None else "only a cover picture"
            )
        # An unknown codec has a stream, but no context to decode it with.
        chosen = next((stream for stream in moving if best and stream.index == best.index), None)
        chosen = chosen or moving[0]
        if chosen.codec_context is None:
            raise UnusableVideo(self.path, "its codec is unknown")
        return chosen

    def _listed(self) -> FrameList:
        """The frames that there are."""
        self.timed = not self.format_is_one_of(UNTIMED_FORMATS)
        self.pts, self.key_pts, self.gaps = array("q"), array("q"), array("q")
        first, duration = self._list_by_decoding() if self.listed_by_decoding else self._list()
        if not self.pts or first is None:
            raise UnusableVideo(self.path, "not one frame can be decoded")
        return FrameList(
            pts=self.pts,
            key_pts=self.key_pts,
            gaps=self.gaps,
            timed=self.timed,
            info=self._describe(first, duration),
        )

    def _list(self) -> tuple[av.VideoFrame | None, int]:
        """Lists the frames by their packets; gives the first and how long the last is shown."""
        first: av.VideoFrame | None = None
        durations: dict[int, int] = {}
        for packet in self._packets():
            if first is None:
                with contextlib.suppress(av.FFmpegError):  # noticed when its frame is needed
                    first = next(iter(packet.decode()), None)
            if not packet.size:
                continue  # the end, which only asks the decoder for what it still has
            if packet.pts is None:
                self.timed = False
                packet.pts = len(self.pts)
            if packet.is_keyframe:
                self.key_pts.append(packet.pts)
            # Cut away by an edit list: decoded, but never shown.
            if not packet.is_discard:
                self.pts.append(packet.pts)
                self._check_count(len(self.pts))
                durations[packet.pts] = packet.duration or 0
        if len(set(self.pts)) < len(self.pts):
            self.timed = False
        self.pts, self.key_pts = array("q", sorted(self.pts)), array("q", sorted(self.key_pts))
        return first, durations[self.pts[-1]] if self.pts else 0

    def _list_by_decoding(self) -> tuple[av.VideoFrame | None, int]:
        """The same by decoding all of them."""
        first, duration, failures = None, 0, 0
        for frame, _ in self._decode(None):
            if first is None:
                first, failures = frame, self.failures
            elif self.failures > failures:
                failures = self.failures
                self.gaps.append(len(self.pts))
            if frame.pts is None or (self.pts and frame.pts <= self.pts[-1]):
                self.timed = False
            self.pts.append(len(self.pts) if frame.pts is None else frame.pts)
            self._check_count(len(self.pts))
            duration = frame.duration or 0
        return first, duration

    def _describe(self, first: av.VideoFrame, last_duration: int) -> VideoInfo:
        stated = float(self.stream.average_rate or self.stream.guessed_rate or 0)
        if self.timed and len(self.pts) > 1:
            assert self.stream.time_base is not None
            unit = float(self.stream.time_base)
            timestamps = (np.array(self.pts, dtype=np.float64) - self.pts[0]) * unit
            fps = (len(self.pts) - 1) / timestamps[-1]
            if abs(stated - fps) <= RATE_TOLERANCE * fps:
                fps = stated  # as the file says: timestamps may be rounded
            typical = float(np.median(np.diff(timestamps)))
            # A last frame may state no duration, or one that reaches over what was cut away.
            last = last_duration * unit
            last = last if 0 < last < 2 * typical else typical
        else:
            fps = stated or DEFAULT_RATE
            timestamps, last = np.arange(len(self.pts)) / fps, 1 / fps
        height, width, _ = upright(first, self.reformatter).shape
        return VideoInfo(
            path=self.path,
            num_frames=len(self.pts),
            fps=float(fps),
            duration=float(timestamps[-1] + last),
            height=height,
            width=width,
            rotation=int(first.rotation) % 360,
            codec=self.stream.codec_context.name,
            backend="pyav",
            timestamps=timestamps,
        )

    def _packets(self) -> Iterator[av.Packet]:
        """The packets from here on, as far as the file can be read."""
        packets = self.container.demux(self.stream)
        while True:
            self.deadline.check()
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.FFmpegError:
                self.cut_off = True
                return  # the frames that are then missing are noticed when they are needed
            yield packet

    def _decode(self, key_pts: int | None) -> Iterator[tuple[av.VideoFrame, bool]]:
        """The frames from a key frame on, or from the start, and whether each is sound.

        A frame isn't sound if the decoder marks it as damaged, or if it comes after one that is, or
        after an error, and before the next key frame: it may be made from what was lost.
        """
        if key_pts is None:
            self.close()
            self._open()
        else:
            try:
                self.container.seek(key_pts, stream=self.stream, backward=True, any_frame=False)
            except av.FFmpegError:
                return  # no frame from here: the caller starts at the beginning instead
        sound, self.failures = True, 0
        for packet in self._packets():
            if packet.is_corrupt:  # by the container's own checksum
                sound = False
                self.failures += 1
            try:
                frames = packet.decode()
            except av.FFmpegError:
                sound = False
                self.failures += 1
                continue
            for frame in frames:
                self.deadline.check()
                sound = not frame.is_corrupt and (sound or bool(frame.key_frame))
                yield frame, sound

    def _numbered(self, key_pts: int | None) -> Iterator[tuple[int, av.VideoFrame, bool]]:
        """The same with the index of each frame, in front; -1 for a frame that isn't listed."""
        for count, (frame, sound) in enumerate(self._decode(key_pts)):
            if self.frames.timed:
                count = self.frames.index_of(frame.pts)
            yield count, frame, sound

    def _places_to_start(self, index: int) -> list[int | None]:
        """Where decoding may start for this frame: the last key frame before it, then the start."""
        frames = self.frames
        if not (frames.timed and self.format_is_one_of(INDEXED_FORMATS)):
            return [None]
        before = bisect_right(frames.key_pts, frames.pts[index])
        return [frames.key_pts[before - 1], None] if before > 1 else [None]

    def _problem(self, index: int, sound: bool) -> Exception:
        if sound and not self.listed_by_decoding:
            return FrameListIsWrong(f"frame {index} is not where its packet says")
        return UnusableVideo(
            self.path, f"damaged: frame {index} of {self.info.num_frames} can't be decoded"
        )

    def read(self, indices: NDArray[np.intp]) -> Iterator[Frame]:
        """The upright frames of these indices.

        Args:
            indices: increasing, each once.
        Raises:
            UnusableVideo: if one of them can't be decoded.
            FrameListIsWrong: if it isn't there; to be listed by decoding.
        """
        if any(indices[0] < gap <= indices[-1] for gap in self.frames.gaps):
            raise UnusableVideo(self.path, "damaged: frames in between can't be decoded")
        position = 0
        for key_pts in self._places_to_start(int(indices[0])):
            sound = True
            for number, frame, sound in self._numbered(key_pts):
                if number < indices[position]:
                    continue
                if number > indices[position] or not sound:
                    break
                yield self._upright(frame)
                position += 1
                if position == len(indices):
                    return
        raise self._problem(int(indices[position]), sound)

    def read_all(self, start: int, stop: int | None) -> Iterator[Frame]:
        """The upright frames from `start` to before `stop`, as decoding them all gives them.

        Raises:
            UnusableVideo: where they can't be decoded further.
        """
        before = 0
        for number, (frame, sound) in enumerate(self._decode(None)):
            before = before if number else self.failures
            if number == stop:
                return
            if not sound or self.failures > before:
                raise UnusableVideo(self.path, f"damaged: frame {number} can't be decoded")
            if number >= start:
                yield self._upright(frame)

    def _upright(self, frame: av.VideoFrame) -> Frame:
        pixels, size = upright(frame, self.reformatter), (self.info.height, self.info.width)
        if pixels.shape[:2] != size:
            raise UnusableVideo(
                self.path, f"frames change their size from {size} to {pixels.shape[:2]}"
            )
        return pixels


def _reason(error: Exception) -> str:
    """What ffmpeg says, without the path."""
    return str(getattr(error, "strerror", None) or error)
