"""Whether a name is that of a folder or an id on the hub, told without asking the hub.

Without a network, asking takes half a minute: a typo in a folder's name is refused before.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from vidtwin.files import root_folder, shipped_path

__all__ = ["check_local_path"]

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
# What the first models on the hub, which have no owner, are called.
WITHOUT_OWNER = re.compile(
    r"(albert|bert|camembert|distil\w+|flaubert|gpt2|roberta|t5|xlm|xlnet)\b"
)
# First folders of paths that the configs and docs name; they may not be there yet.
OUR_FOLDERS = frozenset({"checkpoints", "configs", "outputs"})


def check_local_path(name: str | os.PathLike[str], what: str) -> None:
    """Refuses a name that looks like that of a folder, where nothing lies.

    It looks like one if it can't be an id on the hub (NAME or OWNER/NAME), if a folder OWNER lies
    here, or if a folder here has almost the same name.

    Args:
        name: of a folder, or an id on the hub.
        what: is looked for in it, for the message.
    Raises:
        ValueError: for such a name, with the nearest name that is there.
    """
    text = os.fspath(name)
    path = shipped_path(text)
    if os.path.exists(path):
        return
    parent, _, last = text.rstrip("/").rpartition("/")
    folder = Path(os.path.expanduser(parent)) if parent or text.startswith("/") else Path()
    siblings = [entry.name for entry in os.scandir(folder)] if os.path.isdir(folder) else []
    near = difflib.get_close_matches(last, siblings, n=1, cutoff=0.85)
    owner = text.partition("/")[0]
    is_a_path = (
        HUB_ID.fullmatch(text) is None
        or ("/" in text and (owner in OUR_FOLDERS or os.path.isdir(owner)))
        or ("/" in text and (root_folder() / owner).is_dir())
        or (bool(near) and "/" not in text and WITHOUT_OWNER.match(text) is None)
    )
    if is_a_path:
        nearest = f"; did you mean {str(folder / near[0])!r}?" if near else ""
        raise ValueError(
            f"no {what} in {text}: the folder does not exist; expected one, or an id on the hub"
            f"{nearest}"
        )
