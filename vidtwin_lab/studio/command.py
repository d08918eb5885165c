"""A page in the browser: prompt, animate, re-skin, swap, look inside, compare, watch runs.

    vidtwin studio
    vidtwin studio --pipeline outputs/diffusion_clips --runs outputs

Only this machine can open the page, unless --host says otherwise. It needs gradio:
`pip install "vidtwin[all,studio]"`.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from diffusion.pipeline_files import find_pipeline
from vidtwin.files import check_folder
from vidtwin_lab import runtime

SHIPPED = "checkpoints/shapes"
MEGABYTES = 64


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = runtime.ArgumentParser(__doc__ or "")
    parser.prog = "vidtwin studio"
    add = parser.add_argument
    add("--pipeline", action="append", metavar="RUN", help="or pipeline, or hub id (repeatable)")
    add("--runs", type=Path, default=Path("outputs"), help="folder of run folders (%(default)s)")
    add("--output", type=Path, default=Path("outputs/studio"), help="for results (%(default)s)")
    add(
        "--host", default="127.0.0.1", help="address to listen at (%(default)s: this machine alone)"
    )
    add("--port", type=int, help="(default: the first free one from 7860)")
    add("--device", help="cpu, cuda, ... (default: the accelerator, if there is one)")
    add("--max-upload", type=float, default=MEGABYTES, metavar="MB", help="(%(default)s)")
    add("--no-browser", action="store_true", help="don't open the page")
    arguments = parser.read(argv)
    if arguments.port is not None and not 0 < arguments.port < 65536:
        raise ValueError(f"--port must be from 1 to 65535, got {arguments.port}")
    if not 0 < arguments.max_upload < float("inf"):
        raise ValueError(f"--max-upload must be a positive number, got {arguments.max_upload}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    check_folder(arguments.output)
    paths = arguments.pipeline or [SHIPPED]
    for path in paths:
        runtime.tell_progress(find_pipeline(path))
    if importlib.util.find_spec("gradio") is None:
        raise ValueError('the studio needs gradio: pip install "vidtwin[all,studio]"')

    import torch

    from vidtwin_lab.studio.page import CSS, build_page, theme
    from vidtwin_lab.studio.workbench import Limits, Workbench

    found = torch.accelerator.current_accelerator(check_available=True)
    device = runtime.usable_device(arguments.device, found or "cpu")
    # Labels by the folder's name; two of one name keep their whole path.
    names = [Path(path).name for path in paths]
    labels = [
        name if names.count(name) == 1 else path for name, path in zip(names, paths, strict=True)
    ]
    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    pipelines = dict(zip(labels, paths, strict=True))
    workbench = Workbench(pipelines, output, device, Limits(megabytes=arguments.max_upload))
    page = build_page(workbench, arguments.runs.resolve())
    page.queue(api_open=False).launch(
        server_name=arguments.host,
        server_port=arguments.port,
        inbrowser=not arguments.no_browser,
        allowed_paths=[str(output)],
        max_file_size=f"{arguments.max_upload:g}mb",
        footer_links=[],
        theme=theme(),
        css=CSS,
        share=False,
    )
    return 0
