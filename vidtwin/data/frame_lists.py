"""What is known about a video's frames before they are decoded, and stays known.

Listing the frames of a file reads all of it; a process does so once for the files it read last.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["KEPT", "FrameList", "KeptLists", "VideoInfo"]

# Bytes of frame lists that a process keeps: those of some 50 hours of video.
KEPT_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What is known about a video before its frames are read.

    Args:
        path: of the file.
        num_frames: that are shown; packets cut away by an edit list don't count.
        fps: average frames per second.
        duration: seconds from the first frame to the end of the last.
        height: in pixels, upright.
        width: in pixels, upright.
        rotation: degrees by which stored frames are turned counterclockwise to be upright.
        codec: ffmpeg's name of it.
        backend: that reads the frames.
        timestamps: (num_frames,) seconds from the first frame, increasing.
    """

    path: str
    num_frames: int
    fps: float
    duration: float
    height: int
    width: int
    rotation: int
    codec: str
    backend: str
    timestamps: NDArray[np.float64] = field(repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class FrameList:
    """Which frames a file has, and where decoding may start.

    Args:
        pts: presentation times, increasing, in units of the stream's time base.
        key_pts: those of key frames.
        gaps: places of frames that were listed by decoding before which one could not be decoded.
        timed: whether frames are known by their times; else by their place in the order of
            decoding.
        info: what they say about the video.
    """

    pts: array[int]
    key_pts: array[int]
    gaps: array[int]
    timed: bool
    info: VideoInfo

    @property
    def nbytes(self) -> int:
        """Of all of it, roughly."""
        return 1024 + 8 * (2 * len(self.pts) + len(self.key_pts) + len(self.gaps))

    def index_of(self, pts: int | None) -> int:
        """Which frame is shown at this time; -1 for none."""
        if pts is None:
            return -1
        index = bisect_left(self.pts, pts)
        return index if index < len(self.pts) and self.pts[index] == pts else -1


class KeptLists:
    """The frame lists of the files that this process read last.

    Args:
        most: bytes of all of them.
    """

    def __init__(self, most: int = KEPT_BYTES) -> None:
        self.most = most
        self._lists: OrderedDict[Hashable, FrameList] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()  # readers that ran out of time go on in their threads

    def get(self, key: Hashable) -> FrameList | None:
        """A list that was kept."""
        with self._lock:
            if key in self._lists:
                self._lists.move_to_end(key)
            return self._lists.get(key)

    def keep(self, key: Hashable, frames: FrameList) -> None:
        """Keeps a list, and forgets those that were not asked for longest."""
        with self._lock:
            old = self._lists.pop(key, None)
            self._bytes += frames.nbytes - (old.nbytes if old else 0)
            self._lists[key] = frames
            while self._bytes > self.most:
                self._bytes -= self._lists.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        """Forgets all."""
        with self._lock:
            self._lists.clear()
            self._bytes = 0


KEPT = KeptLists()
