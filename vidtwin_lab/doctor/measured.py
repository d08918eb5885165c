"""Runs a script as `python SCRIPT ...` does, and writes what memory it took.

python -m vidtwin_lab.doctor.measured FILE.json SCRIPT ARGUMENTS...
"""

from __future__ import annotations

import json
import resource
import runpy
import sys
from pathlib import Path


def main() -> None:
    """Runs the script of the command line."""
    file, script = sys.argv[1:3]
    sys.argv = sys.argv[2:]
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        Path(file).write_text(json.dumps(peaks()), encoding="utf-8")


def peaks() -> dict[str, int]:
    """Most bytes ever: of this process's memory, of its largest child's, and of its GPU's."""
    unit = 1 if sys.platform == "darwin" else 1024
    found = {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    found["worker_memory"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["gpu_memory"] = torch.cuda.max_memory_reserved()
    return found


if __name__ == "__main__":
    main()
