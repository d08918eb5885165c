"""The captions of clips that a list does not tell: from a JSON file, or the `.txt` beside each."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vidtwin.data.clips import Clip
from vidtwin.text_files import read_json, read_text

__all__ = ["captions_of", "with_captions"]

logger = logging.getLogger(__name__)


def captions_of(value: Any, where: str) -> list[str]:
    """A text or a list of texts as the captions of one clip, without empty ones and repeats.

    Args:
        where: the file and the place in it, for the message.
    Raises:
        ValueError: if it is something else.
    """
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: a caption must be a text or a list of texts, got {value!r:.80}")
    return list(dict.fromkeys(filter(None, (text.strip() for text in texts))))


def captioned(clip: Clip, captions: Sequence[str]) -> Clip:
    """The clip with these captions, of which there may be none."""
    first, *others = captions or ("",)
    return replace(clip, caption=first, other_captions=tuple(others))


def with_captions(clips: list[Clip], captions: str | None, root: Path) -> list[Clip]:
    """The clips with their captions.

    Args:
        captions: a JSON file of path -> caption or list of captions, its own path absolute or from
            `root`; None for the `.txt` beside each clip, where there is one.
        root: folder of the data set.
    Raises:
        ValueError: if a file can't be read, or fits none of the clips.
    """
    if captions is None:
        beside = [Path(clip.path).with_suffix(".txt") for clip in clips]
        return [
            replace(clip, caption=read_text(text).strip()) if os.path.isfile(text) else clip
            for clip, text in zip(clips, beside, strict=True)
        ]
    given = Path(os.path.expanduser(captions))
    file = given if given.is_absolute() or os.path.isfile(given) else root / given
    table = _read_captions(file)
    # A key is the clip's path from the data set's folder or from the JSON's own; or its bare name.
    by_path = {_real(file.parent / key.replace("\\", "/")): each for key, each in table.items()}
    by_path |= {_real(file.parent / key): texts for key, texts in table.items()}
    found = []
    for clip in clips:
        texts = table.get(clip.name, by_path.get(_real(clip.path)))
        texts = table.get(Path(clip.name).name, []) if texts is None else texts
        found.append(captioned(clip, texts))
    without = [clip.name for clip in found if not clip.caption]
    if len(without) == len(clips):
        raise ValueError(
            f"{file} has no caption for any of the {len(clips)} videos; its keys must be paths "
            f"such as {clips[0].name!r}, got {next(iter(table), None)!r}"
        )
    if without:
        count = f"{len(without)} of {len(clips)}"
        logger.warning("%s has no caption for %s videos, such as %s", file, count, without[0])
    return found


def _read_captions(path: Path) -> dict[str, list[str]]:
    """Path -> captions from a JSON file.

    Raises:
        ValueError: if it isn't an object of strings, or of lists of strings.
    """
    if not os.path.isfile(path):
        raise ValueError(f"data.captions must name a JSON file, but {str(path)!r} is not a file")
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} must hold one JSON object of path -> caption, got a {type(content).__name__}; "
            "a list of clips is read by data.source=list"
        )
    return {key: captions_of(value, f"{path}, {key!r}") for key, value in content.items()}


def _real(path: str | Path) -> str:
    """The file behind a path, or the path itself if no file could be called so."""
    try:
        return os.path.realpath(path)
    except ValueError:
        return str(path)
