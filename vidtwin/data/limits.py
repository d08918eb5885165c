"""What a video file may be and may ask for, before and while it is read."""

from __future__ import annotations

import time
from dataclasses import dataclass

from vidtwin.data.bad_files import UnusableVideo

# The containers that are opened, by ffmpeg's names: files of moving pictures, and pictures so that
# the refusal can name them. ffmpeg knows some 350 more, among them playlists and lists of files,
# which point anywhere, patterns of file names, captured screens, and text drawn as video.
CONTAINERS = (
    *("mov", "mp4", "matroska", "webm", "avi", "mpeg", "mpegts", "mpegvideo", "flv", "asf", "ogg"),
    *("gif", "apng", "jpegxl_anim", "mxf", "nut", "ivf", "obu", "av1", "h264", "hevc", "vvc"),
    *("h261", "h263", "m4v", "mjpeg", "vc1", "dv", "rm", "wtv", "yuv4mpegpipe", "mp3"),
    *("png_pipe", "jpeg_pipe", "webp_pipe", "bmp_pipe", "tiff_pipe", "gif_pipe"),
)
# An error of a checksum or of the bitstream is an error, not something to be painted over.
DAMAGE = "crccheck+explode"
# Of a file that is no list of others, no other file is opened, over no other protocol.
OPEN_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": ",".join(CONTAINERS),
    "err_detect": "crccheck",
}
# How lists of other files begin.
PLAYLISTS = (b"ffconcat", b"#EXTM3U", b"[playlist]", b"<MPD", b"[Reference]", b"[InternetShortcut]")


class Deadline:
    """A moment after which reading a file is given up.

    Args:
        path: of the file.
        seconds: from now; None for never.
    """

    def __init__(self, path: str, seconds: float | None):
        self.path = path
        self.seconds = seconds
        self.end = None if seconds is None else time.monotonic() + seconds

    def expired(self) -> UnusableVideo:
        """The error that says so."""
        return UnusableVideo(self.path, f"reading took more than {self.seconds:g} seconds")

    def check(self) -> None:
        """Raise if the moment has passed.

        Raises:
            UnusableVideo: then.
        """
        if self.end is not None and time.monotonic() > self.end:
            raise self.expired()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a file may ask for; checked by what it says of itself, before anything is decoded.

    Args:
        pixels: of a frame; 8K as cinemas have it by default. ffmpeg holds frames that grow larger
            later on to the same limit.
        frames: of a file; more than nine hours at 30 a second by default.
    """

    pixels: int = 8192 * 4320
    frames: int = 1_000_000
