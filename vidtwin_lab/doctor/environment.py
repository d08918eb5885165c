"""The machine and its software: versions, devices, decoders, disk and memory."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from vidtwin.files import check_folder
from vidtwin_lab.doctor.page import Page

GIB = 2**30
PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "accelerate", "av", "decord")
LEAST_FREE, LEAST_MEMORY, LEAST_SHARED = 1 * GIB, 2 * GIB, 256 * 2**20
SIDE, CHANNELS = 1024, 256  # of the matrices and images that are multiplied and convolved
SLOW_PATH = 1.4  # oneDNN's rate over MKL's, beyond what noise explains
CLIP_SHAPE = (8, 48, 64, 3)  # T H W C


def check_environment(page: Page, output: Path) -> None:
    """All parts of it; `output` is where results will be written."""
    _check_versions(page)
    _check_devices(page)
    _check_decoders(page)
    _check_room(page, output)


def _check_versions(page: Page) -> None:
    from packaging.requirements import Requirement

    page.begin("Software")
    page.tell("python", platform.python_version())
    try:
        wanted = [Requirement(line) for line in importlib.metadata.requires("vidtwin") or ()]
    except importlib.metadata.PackageNotFoundError:
        wanted = []  # a checkout that was not installed names no versions
    needed = {each.name: each for each in wanted if not each.marker or each.marker.evaluate()}
    for name in dict.fromkeys((*PACKAGES, *needed)):
        requirement = needed.get(name)
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if requirement is not None or name in ("torch", "diffusers", "transformers"):
                page.fault(name, "not installed", f'pip install "{requirement or name}"')
            continue
        if requirement is not None and not requirement.specifier.contains(version, True):
            page.fault(name, version, f'pip install "{requirement}"')
        elif name in PACKAGES:
            page.tell(name, version + _libraries(name), version=version)


def _libraries(name: str) -> str:
    """What of ffmpeg a decoder brings along."""
    if name == "av":
        import av

        numbers = av.library_versions["libavcodec"]
        return f", with libavcodec {'.'.join(map(str, numbers))}"
    if name == "decord" and (spec := importlib.util.find_spec(name)) and spec.origin:
        folder = Path(spec.origin).parents[1] / "decord.libs"
        for file in folder.glob("libavcodec-*.so.*"):
            return f", with libavcodec {file.name.partition('.so.')[2]}"
    return ""


def _check_devices(page: Page) -> None:
    import torch

    page.begin("Devices")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    page.tell("cpu", f"{cores} cores, {torch.get_num_threads()} threads of torch", cores=cores)
    if torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available():
        page.tell("products", _matrix_products())
    built = torch.version.cuda or torch.version.hip
    driver = _nvidia_driver()
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            free, total = torch.cuda.mem_get_info(index)
            text = f"{about.name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
            name = f"gpu {index}"
            if free < total / 2:
                page.fault(
                    name,
                    text,
                    "another process uses it: see nvidia-smi, or choose another "
                    "with CUDA_VISIBLE_DEVICES",
                )
            else:
                page.tell(name, text, free=free, total=total)
            torch.ones(8, device=f"cuda:{index}").sum().item()
        page.tell("driver", f"{driver or 'not known'}; torch is built for {built}", built=built)
    elif driver and os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        page.tell("gpu", "hidden by CUDA_VISIBLE_DEVICES")
    elif driver and not built:
        page.fault(
            "gpu",
            f"there is one (driver {driver}), and this torch is built without it",
            "install a torch build for CUDA, see https://pytorch.org",
        )
    elif driver:
        page.fault(
            "gpu",
            f"torch is built for {built} and can't use driver {driver}",
            "update the driver, or install a torch build for an older CUDA",
        )
    elif torch.backends.mps.is_available():
        page.tell("gpu", "mps, of which nothing here was tested")
    else:
        page.tell("gpu", "none: everything runs on the CPU")


def _matrix_products() -> str:
    """How fast the CPU's are, and that they could be faster where MKL doesn't know the processor.

    On processors that Intel did not make, MKL takes a path without their widest instructions;
    oneDNN, which torch uses for convolutions, takes the same on all.
    """
    import torch

    squares, images = torch.randn(2, SIDE, SIDE), torch.randn(8, CHANNELS, 32, 32)
    convolution = torch.nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
    calls = {
        2 * SIDE**3: lambda: squares[0] @ squares[1],
        2 * 9 * CHANNELS * images.numel(): lambda: convolution(images),
    }
    times: dict[int, list[float]] = {work: [] for work in calls}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        for _ in range(6):
            for work, call in calls.items():
                start = time.process_time()
                call()
                times[work].append(time.process_time() - start)
    torch.set_num_threads(threads)
    usual, possible = (work / min(taken) / 1e9 for work, taken in times.items())
    text = f"{usual:.0f} GFLOP/s a thread in float32"
    if possible > SLOW_PATH * usual:
        text += (
            f", where convolutions reach {possible:.0f}: MKL takes a slow path on this processor, "
            "and training and sampling on it can be up to twice as fast, see 'Processors of AMD' "
            "in docs/performance.md"
        )
    return text


def _nvidia_driver() -> str | None:
    """The version of NVIDIA's driver; None if there is none."""
    file = Path("/proc/driver/nvidia/version")
    if file.is_file():
        found = re.search(r"Module\D*?([\d.]+)", file.read_text(encoding="utf-8"))
        return found[1] if found else "of unknown version"
    if (tool := shutil.which("nvidia-smi")) is None:
        return None
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    told = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    return told.stdout.split("\n")[0].strip() or None if told.returncode == 0 else None


def _check_decoders(page: Page) -> None:
    from vidtwin.data.readers import read_frames

    page.begin("Video")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        try:
            shown = _write_clip(path)
        except (OSError, ValueError) as error:
            page.fault(
                "writing",
                f"an MP4 file can't be written: {error}",
                'pip install --force-reinstall "av"',
            )
            return
        page.tell("writing", "H.264 in MP4")
        for backend in ("pyav", "decord"):
            if importlib.util.find_spec("av" if backend == "pyav" else backend) is None:
                page.tell(backend, "not installed: clips are read by PyAV alone")
                continue
            try:
                frames = read_frames(path, backend=backend)
            except (ValueError, OSError, ImportError) as error:
                page.fault(
                    backend,
                    f"can't read a clip: {error}",
                    f"set data.backend={'decord' if backend == 'pyav' else 'pyav'}, or "
                    f"install {backend} again",
                )
                continue
            wrong = float(np.abs(frames.astype(float) - shown).mean())
            if frames.shape != shown.shape or wrong > 20:
                page.fault(
                    backend,
                    f"reads other frames than were written: {frames.shape}, {wrong:.0f} of 255 off",
                    f"install {backend} again",
                )
            else:
                page.tell(backend, f"reads {len(frames)} of {len(frames)} frames")


def _write_clip(path: Path) -> np.ndarray:
    """Writes a clip made here; returns its (T, H, W, 3) uint8 frames."""
    from vidtwin.media import write_video

    count, _, width, _ = CLIP_SHAPE
    columns = np.arange(width)[None, None, :, None] + 6 * np.arange(count)[:, None, None, None]
    frames = np.broadcast_to(columns * 2, CLIP_SHAPE).astype(np.uint8)
    write_video(path, frames, fps=8)
    return frames


def _check_room(page: Page, output: Path) -> None:
    page.begin("Room")
    try:
        check_folder(output)
    except ValueError as error:
        page.fault("disk", str(error), "name another folder: output=FOLDER")
    else:
        existing = next(each for each in (output, *output.absolute().parents) if each.exists())
        free = shutil.disk_usage(existing).free
        text = f"{free / GIB:,.1f} GiB free for {output}"
        if free < LEAST_FREE:
            page.fault("disk", text, "free some, or name another folder: output=FOLDER")
        else:
            page.tell("disk", text, free=free)
    memory = available_memory()
    text = f"{memory / GIB:,.1f} GiB available"
    if memory < LEAST_MEMORY:
        page.fault("memory", text, "end other programs: torch alone takes half a GiB")
    else:
        page.tell("memory", text, available=memory)
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        text = f"{free / GIB:,.2f} GiB free for what loaders hand over"
        if free < LEAST_SHARED:
            page.fault(
                "/dev/shm",
                text,
                "start the container with a larger one (--shm-size 8g), or set num_workers=0",
            )
        else:
            page.tell("/dev/shm", text, free=free)


def available_memory() -> int:
    """Bytes that this process may still take, also inside of a container with a limit."""
    available = int(psutil.virtual_memory().available)
    limit, used = (
        Path(f"/sys/fs/cgroup/memory.{name}").read_text(encoding="utf-8").strip()
        if Path(f"/sys/fs/cgroup/memory.{name}").is_file()
        else "max"
        for name in ("max", "current")
    )
    if limit.isdecimal() and used.isdecimal():
        available = min(available, int(limit) - int(used))
    return available
