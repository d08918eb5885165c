"""Logs of a run: always metrics.jsonl, and tensorboard or wandb through accelerate."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import secrets
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

import numpy
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker
from einops import rearrange
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from vidtwin.files import disk_failures_told, written_whole
from vidtwin_lab.runtime.checkpoints import RunFolder
from vidtwin_lab.runtime.config import config_to_dict, flatten, format_config
from vidtwin_lab.runtime.run_config import TRACKERS

logger = logging.getLogger(__name__)

VideoWriter = Callable[[Path, numpy.ndarray, float], Any]

_OFFLINE = (
    "set WANDB_MODE=offline to keep its logs in the run folder, or choose the tracker "
    "tensorboard or none"
)


class Trackers:
    """One place to log to; does nothing on other processes than the main one."""

    def __init__(
        self,
        accelerator: Accelerator,
        run_folder: RunFolder,
        tracker: GeneralTracker | None,
        video_writer: VideoWriter | None = None,
    ) -> None:
        self._accelerator = accelerator
        self._tracker = tracker
        self._write_video = video_writer
        self._path, self._videos = run_folder.log, run_folder.path / "videos"
        self._file: FileIO | None = None
        if accelerator.is_main_process:
            # Unbuffered: of a line that a full disk refuses nothing is tried again at the end.
            self._file = self._path.open("ab", buffering=0)

    def log(self, values: Mapping[str, Tensor | float | int | str], step: int) -> None:
        """Log values under their names; a tensor must hold one number."""
        if self._file is None:
            return
        plain = {name: _plain(value) for name, value in values.items()}
        line = {"step": step, **{name: _jsonable(value) for name, value in plain.items()}}
        with disk_failures_told(self._path.parent):
            self._file.write((json.dumps(line, allow_nan=False) + "\n").encode())
        if self._tracker is not None:
            self._tracker.log(plain, step=step)

    def log_validation(self, measures: Mapping[str, float], step: int) -> None:
        """Log the measures of a validation, and tell them beside the progress bar."""
        self.log({f"validation/{name}": value for name, value in measures.items()}, step)
        if self._accelerator.is_main_process:
            told = ", ".join(f"{name} {value:.4g}" for name, value in measures.items())
            tqdm.write(f"step {step}: {told}")

    def log_video(self, name: str, frames: numpy.ndarray, step: int, fps: float) -> Path | None:
        """Write a video into the run folder, and show it where the tracker can.

        Args:
            name: such as "validation/first"; slashes make folders.
            frames: (T, H, W, 3) uint8.
        Returns:
            Path: the file; None on other processes than the main one.
        """
        if self._file is None:
            return None
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != numpy.uint8:
            raise ValueError(
                f"frames must be (T, H, W, 3) uint8, got {frames.shape} {frames.dtype}"
            )
        safe = "/".join(re.sub(r"[^\w.-]+", "_", part) for part in name.split("/"))
        suffix = "gif" if self._write_video is None else "mp4"
        path = self._videos / f"{safe}_{step:09d}.{suffix}"
        with disk_failures_told(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            (self._write_video or _write_gif)(path, frames, fps)
        try:
            self._show(name, path, frames, step)
        except Exception as error:  # whatever a foreign tracker raises must not end the run
            logger.warning("tracker can't show %s (%s: %s)", path, type(error).__name__, error)
        return path

    def _show(self, name: str, path: Path, frames: numpy.ndarray, step: int) -> None:
        if isinstance(self._tracker, WandBTracker):
            import wandb

            # A file, not an array: wandb encodes arrays only where moviepy is installed.
            video = wandb.Video(str(path), format=path.suffix[1:])  # type: ignore[arg-type]
            self._tracker.log({name: video}, step=step)  # type: ignore[dict-item]
        elif isinstance(self._tracker, TensorBoardTracker):
            # tensorboard's add_video needs moviepy: up to eight frames side by side instead.
            chosen = numpy.linspace(0, len(frames) - 1, min(8, len(frames))).round().astype(int)
            strip = rearrange(frames[chosen], "T H W C -> H (T W) C")
            self._tracker.writer.add_image(name, strip, global_step=step, dataformats="HWC")

    def finish(self) -> None:
        """Close the logs and the tracker, and leave the process group."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._accelerator.end_training()


def build_trackers(
    accelerator: Accelerator,
    name: str,
    project: str,
    run_folder: RunFolder,
    config: Any,
    *,
    start_step: int | None = None,
    validation_pending: bool = False,
    video_writer: VideoWriter | None = None,
) -> Trackers:
    """The logs of a run; every process calls it.

    Args:
        name: "none", "tensorboard" or "wandb"; none of them asks for an account.
        project: the tracker's name for runs of this kind.
        config: the run's resolved config, shown with it.
        start_step: the step a resumed run goes on from; what was logged after it is dropped.
        validation_pending: the validation of that step is still to come, and is dropped as well.
        video_writer: writes (path.mp4, frames, fps); without it videos become gif files.
    Raises:
        ValueError: unknown name, or a tracker that can't start; says how to go on.
    """
    if name not in TRACKERS:
        raise ValueError(f"tracker must be one of {', '.join(TRACKERS)}; got {name!r}")
    if accelerator.is_main_process:
        _trim(run_folder.log, start_step, validation_pending)
    tracker: GeneralTracker | None = None
    if name == "tensorboard":
        tracker = TensorBoardTracker(project, run_folder.path / "tensorboard")
    elif name == "wandb":
        tracker = _wandb_tracker(project, run_folder, accelerator.is_main_process)
    if tracker is not None:
        accelerator.log_with = [tracker]
        _start(accelerator, project, tracker, config)
    return Trackers(accelerator, run_folder, tracker, video_writer)


def _start(accelerator: Accelerator, project: str, tracker: GeneralTracker, config: Any) -> None:
    if isinstance(tracker, TensorBoardTracker):
        accelerator.init_trackers(project)
        if accelerator.is_main_process:
            # accelerate's own way, add_hparams, opens another run in the board at every start.
            tracker.writer.add_text("config", f"```yaml\n{format_config(config)}```", 0)
        return
    try:
        accelerator.init_trackers(project, config=flatten(config_to_dict(config)))
    except Exception as error:  # wandb raises several kinds for an account or a network
        reason = " ".join(str(error).split())
        raise ValueError(f"wandb did not start ({reason}); {_OFFLINE}") from error


def _wandb_tracker(project: str, run_folder: RunFolder, main: bool) -> WandBTracker:
    try:
        import wandb
    except ImportError:
        raise ValueError("tracker wandb needs its package: pip install wandb") from None
    mode = os.environ.get("WANDB_MODE", "online")
    online = mode not in ("offline", "dryrun", "disabled")
    # Asked without a prompt: wandb.init would wait at the terminal for an answer.
    if online and not wandb.login(prompt=False, verify=False):
        raise ValueError(f"tracker wandb has no login here: run `wandb login`, or {_OFFLINE}")
    # The folder's own id, so that a resumed run goes on in the same chart. Only the main process
    # starts a wandb run, so it does not matter that the others may not see the file yet.
    file = run_folder.path / "wandb_id.txt"
    if main and not file.exists():
        with written_whole(file) as partial:
            partial.write_text(secrets.token_hex(4), encoding="utf-8")
    identifier = file.read_text(encoding="utf-8").strip() if file.exists() else None
    return WandBTracker(
        project,
        dir=str(run_folder.path),
        name=run_folder.path.resolve().name,
        id=identifier,
        resume="allow",
    )


def _trim(log: Path, start_step: int | None, validation_pending: bool) -> None:
    """Drop a last line cut by a kill, and the lines of what is still to come."""
    if not log.exists():
        return
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    if start_step is not None:
        records = ((line, json.loads(line)) for line in lines)
        lines = [
            line
            for line, record in records
            if record["step"] < start_step
            or (
                record["step"] == start_step
                and not (
                    validation_pending and any(key.startswith("validation/") for key in record)
                )
            )
        ]
    with written_whole(log) as partial:
        partial.write_text("".join(lines), encoding="utf-8")


def _plain(value: Tensor | float | int | str) -> float | int | str:
    return value.item() if isinstance(value, Tensor) else value


def _jsonable(value: float | int | str) -> float | int | str:
    """JSON has no nan and no infinity: those become text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _write_gif(path: Path, frames: numpy.ndarray, fps: float) -> None:
    first, *rest = (Image.fromarray(frame) for frame in frames)
    first.save(path, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)
