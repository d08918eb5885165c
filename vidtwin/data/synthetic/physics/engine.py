"""A process of its own that simulates and draws MJCF scenes with MuJoCo, and its client.

Apart from the caller's process, since Mesa's software renderer and PyTorch bring libraries that
crash each other, and since a graphics context can't survive the fork of a loader's worker. A
request is a line of JSON; the answer a line of JSON with the arrays' shapes, then their bytes.
Run as a script, this file imports NumPy and MuJoCo alone.

Axes: T frames, H W pixels.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

import numpy as np

__all__ = ["Camera", "Recording", "simulate"]

INSTALL = "pip install 'vidtwin[physics]'"
NO_RENDERER = (
    "MuJoCo finds no renderer that works without a display (tried {tried}: {reason}); install "
    "Mesa's EGL (on Debian: libegl1 libgl1-mesa-dri), or set MUJOCO_GL to one that is there"
)
# Array of an answer -> dtype; in this order.
ARRAYS = {"qpos": "float64", "qvel": "float64", "sites": "float64", "video": "uint8"}


@dataclass(frozen=True, kw_only=True)
class Camera:
    """Where a scene is seen from: looks at a point, angles in degrees, distance in metres."""

    lookat: tuple[float, float, float]
    azimuth: float
    elevation: float
    distance: float


@dataclass(frozen=True, eq=False)
class Recording:
    """What a simulation gave.

    Args:
        qpos, qvel: (T, nq), (T, nv), MuJoCo's coordinates and their velocities at each frame.
        sites: (T, sites, 3) places of the model's sites in metres.
        video: (T, H, W, 3) uint8, or None where none was asked for.
    """

    qpos: np.ndarray
    qvel: np.ndarray
    sites: np.ndarray
    video: np.ndarray | None


def simulate(
    mjcf: str,
    start: tuple[np.ndarray, np.ndarray],
    controls: np.ndarray,
    gravity: np.ndarray,
    substeps: int,
    view: tuple[Camera, int, int] | None = None,
) -> Recording:
    """Plays controls on a scene; each is held from its frame to the next.

    Args:
        mjcf: the scene, with the time step.
        start: qpos and qvel of the first frame.
        controls: (T, actuators).
        gravity: (T, 3) in m/s², held likewise.
        substeps: time steps from frame to frame.
        view: camera, height and width to draw each frame, or None to draw none.
    Raises:
        ValueError: if MuJoCo or a renderer is missing, or the scene can't be used.
    """
    camera, height, width = view or (None, 0, 0)
    request = {
        "mjcf": mjcf,
        "qpos": start[0].tolist(),
        "qvel": start[1].tolist(),
        "controls": controls.tolist(),
        "gravity": gravity.tolist(),
        "substeps": substeps,
        "camera": None if camera is None else vars(camera),
        "size": [height, width],
    }
    with _LOCK:  # threads of a process share its engine
        engine = _engine()
        try:
            return engine.ask(request)
        except BaseException:
            # Half an answer may be left in the pipe: the next one must not begin with it.
            engine.process.kill()
            engine.close()
            raise


class Engine:
    """The process; it ends when its standard input is closed, so never later than its parent."""

    def __init__(self) -> None:
        # A file, since nobody reads a pipe of warnings.
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        # A session of its own: a signal to the training's group must not end it before its step.
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            start_new_session=True,
            cwd=tempfile.gettempdir(),  # where MuJoCo may leave its log
            # Few pixels: threads of the software renderer would only cost.
            env={"LP_NUM_THREADS": "0", **os.environ},
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self._header()

    def ask(self, request: Mapping[str, Any]) -> Recording:
        """The answer to a request."""
        with contextlib.suppress(BrokenPipeError):  # the reason is found where the answer lacks
            self.stdin.write(json.dumps(request).encode() + b"\n")
            self.stdin.flush()
        shapes = self._header()["shapes"]
        arrays: dict[str, Any] = {"video": None}
        for name, shape in shapes.items():
            count = int(np.prod(shape)) * np.dtype(ARRAYS[name]).itemsize
            data = self.stdout.read(count)
            if len(data) < count:
                self._ended()
            arrays[name] = np.frombuffer(data, ARRAYS[name]).reshape(shape).copy()
        return Recording(**arrays)

    def _header(self) -> dict[str, Any]:
        line = self.stdout.readline()
        if not line:
            self._ended()
        header: dict[str, Any] = json.loads(line)
        if "error" in header:
            raise ValueError(header["error"])
        return header

    def _ended(self) -> NoReturn:
        code = self.process.wait()
        self.errors.seek(0)
        last = self.errors.read().decode(errors="replace").strip().splitlines()[-1:]
        raise ValueError(f"the process that draws physics ended with {code}: {''.join(last)}")

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()
        self.process.wait()


_ENGINES: dict[int, Engine] = {}  # by process: a forked worker starts its own
_LOCK = threading.Lock()


def _new_lock() -> None:
    global _LOCK
    _LOCK = threading.Lock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


def _engine() -> Engine:
    process = os.getpid()
    if process not in _ENGINES or _ENGINES[process].process.poll() is not None:
        _ENGINES[process] = Engine()
        atexit.register(_ENGINES[process].close)
    return _ENGINES[process]


class Drawer:
    """Draws scenes of primitive bodies; one graphics context serves all of them."""

    def __init__(self, mujoco: Any) -> None:
        self.mujoco = mujoco
        self.context_of_gl = mujoco.GLContext(16, 16)
        self.context_of_gl.make_current()
        self.contexts: dict[tuple[int, int], Any] = {}

    def context(self, model: Any, height: int, width: int) -> Any:
        """The context for a size; it holds no bodies but MuJoCo's primitives."""
        if (height, width) not in self.contexts:
            model.vis.global_.offheight, model.vis.global_.offwidth = height, width
            scale = self.mujoco.mjtFontScale.mjFONTSCALE_50
            self.contexts[height, width] = self.mujoco.MjrContext(model, scale)
        context = self.contexts[height, width]
        self.mujoco.mjr_setBuffer(self.mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
        return context

    def frames(self, model: Any, view: Mapping[str, Any], size: tuple[int, int]) -> Any:
        """A function of the simulation's data that gives (H, W, 3) uint8 as seen from `view`."""
        mujoco = self.mujoco
        context, scene = self.context(model, *size), mujoco.MjvScene(model, 200)
        # Shadows and reflections cost two hundred times the rest.
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            scene.flags[flag] = 0
        camera, options = mujoco.MjvCamera(), mujoco.MjvOption()
        options.sitegroup[:] = 0
        camera.lookat[:] = view["lookat"]
        camera.azimuth, camera.elevation = view["azimuth"], view["elevation"]
        camera.distance = view["distance"]
        area = mujoco.MjrRect(0, 0, size[1], size[0])

        def draw(data: Any) -> np.ndarray:
            everything = mujoco.mjtCatBit.mjCAT_ALL
            mujoco.mjv_updateScene(model, data, options, None, camera, everything, scene)
            mujoco.mjr_render(area, scene, context)
            frame = np.empty((*size, 3), np.uint8)
            mujoco.mjr_readPixels(frame, None, area, context)
            return frame[::-1]

        return draw


def play(mujoco: Any, drawer: Drawer, request: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of the answer to a request."""
    model = mujoco.MjModel.from_xml_string(request["mjcf"])
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = request["qpos"], request["qvel"]
    view, size = request["camera"], tuple(request["size"])
    draw = None if view is None else drawer.frames(model, view, size)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in ARRAYS}
    for control, gravity in zip(request["controls"], request["gravity"], strict=True):
        mujoco.mj_forward(model, data)
        rows["qpos"].append(data.qpos.copy())
        rows["qvel"].append(data.qvel.copy())
        rows["sites"].append(data.site_xpos.copy())
        if draw is not None:
            rows["video"].append(draw(data))
        data.ctrl[:], model.opt.gravity[:] = control, gravity
        mujoco.mj_step(model, data, nstep=request["substeps"])
    return {name: np.stack(row) for name, row in rows.items() if row}


def answer(stdout: BinaryIO, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a line of JSON, and arrays."""
    stdout.write(json.dumps(header).encode() + b"\n")
    for name, array in arrays.items():
        stdout.write(np.ascontiguousarray(array, ARRAYS[name]).tobytes())
    stdout.flush()


def serve() -> None:
    """Answers requests from standard input until it is closed."""
    # What libraries print must not fall between the answers.
    stdout = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # As a script it begins with this folder, whose modules must not hide others.
    del sys.path[0]
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        import mujoco
    except ModuleNotFoundError:
        answer(stdout, {"error": f"data.source=physics needs the package mujoco: {INSTALL}"}, {})
        return
    try:
        drawer = Drawer(mujoco)
    except Exception as error:
        # Anything may go wrong in a graphics driver; what did is in the message.
        reason = " ".join(str(error).split())[:200]
        names = os.environ.get("MUJOCO_GL", "the display")
        answer(stdout, {"error": NO_RENDERER.format(tried=names, reason=reason)}, {})
        return
    answer(stdout, {"ready": mujoco.__version__}, {})
    for line in sys.stdin.buffer:
        try:
            arrays = play(mujoco, drawer, json.loads(line))
        except (ValueError, mujoco.FatalError) as error:
            answer(stdout, {"error": f"MuJoCo refuses the scene: {error}"}, {})
        else:
            answer(stdout, {"shapes": {name: each.shape for name, each in arrays.items()}}, arrays)


if __name__ == "__main__":
    serve()
