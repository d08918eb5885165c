"""Files that can't be used: the error, their count, and the limit that stops a run."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import NamedTuple, NoReturn

logger = logging.getLogger(__name__)


class UnusableVideo(ValueError):  # noqa: N818
    """A file that can't be used as a video, or not for the clip that was asked for.

    Args:
        path: of the file.
        reason: why, in a few words.
    """

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class SkippedFile(NamedTuple):
    """A file that was not used, and why."""

    path: str
    reason: str


FEW_FILES = 3  # that may be bad of a small data set, whatever their share


class TooManyBadFiles(RuntimeError):  # noqa: N818
    """More files could not be used than `max_bad_fraction` allows; the message lists them."""

    def __init__(self, message: str, files: Sequence[SkippedFile] = ()):
        super().__init__(message)
        self.files = list(files)


class BadFileLog:
    """Counts the files that could not be used, logs each once, and stops at too many.

    Args:
        total_files: files in the data set.
        max_bad_fraction: share of them that may be bad; above 0, up to three files may be as long
            as they are at most a quarter of all, so that one does not stop a run on few.
    """

    def __init__(self, total_files: int, max_bad_fraction: float):
        self.total_files = total_files
        self.max_bad_fraction = max_bad_fraction
        self.files: dict[str, str] = {}

    def record(self, skipped: Iterable[SkippedFile]) -> None:
        """Count files without ever stopping."""
        for path, reason in skipped:
            if path not in self.files:
                self.files[path] = reason
                # Workers stay silent: their samples carry the list to the main process.
                from torch.utils.data import get_worker_info

                if get_worker_info() is None:
                    logger.warning("skipped %s: %s", path, reason)

    @property
    def too_many(self) -> bool:
        """Whether more files are bad than may be."""
        few = min(FEW_FILES, self.total_files // 4) if self.max_bad_fraction else 0
        return len(self.files) > max(few, self.max_bad_fraction * self.total_files)

    def add(self, skipped: Iterable[SkippedFile]) -> None:
        """Count files.

        Args:
            skipped: files of a sample or a batch, `batch["skipped"]`; the same file counts once.
        Raises:
            TooManyBadFiles: when more than `max_bad_fraction` of the files are bad.
        """
        self.record(skipped)
        if self.files and self.too_many:
            listing = "\n".join(f"  {path}: {reason}" for path, reason in self.files.items())
            raise TooManyBadFiles(
                f"{len(self.files)} of {self.total_files} files can't be used, more than the "
                f"{self.max_bad_fraction:.1%} of data.max_bad_fraction; repair or remove them, or "
                f"raise the limit:\n{listing}",
                [SkippedFile(*item) for item in self.files.items()],
            )

    def fail(self, skipped: Sequence[SkippedFile]) -> NoReturn:
        """Stop because no usable file was found for a sample.

        Args:
            skipped: the files that were tried.
        Raises:
            TooManyBadFiles: always.
        """
        self.add(skipped)
        raise TooManyBadFiles(
            f"{len(skipped)} clips drawn one after the other can't be used, the last one "
            f"{skipped[-1].path}: {skipped[-1].reason}",
            skipped,
        )
