"""Measures autoencoders and pipelines, and says how.

    python evaluate.py NAME --config configs/evaluation/X.yaml key=value ... [--dry-run]
    accelerate launch evaluate.py NAME --config configs/evaluation/X.yaml key=value ...

NAME:
    reconstruction   PSNR, SSIM, LPIPS, rFVD, bits, against H.264 at the same size
    generation       FVD, KVD, IS of a pipeline, samples or latents against a data set
    disentanglement  what a split into structure and dynamics is worth
    adherence        how much of a prompt a pipeline shows, on the moving shapes
    classifier       trains the judge of content and motion on real clips
    accuracy         classes of generated videos, by that judge
    actions          what the latents know of the actions behind a video
    policy           a cloned policy that is shown what to do by the dynamics vector
    world            how well a pipeline that takes actions foretells a simulation

Writes NAME.json (the numbers and their protocol), NAME.csv (a line for each video), NAME.png and
NAME.md (a row of a table) into the folder of `output`. Any number of processes writes the same.

Exit status: 0, or 2 with one line for an input that can't be used.
"""

from __future__ import annotations

import argparse
import functools
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from diffusion.pipeline_files import pipeline_folder
from vidtwin.data import TooManyBadFiles
from vidtwin.files import check_folder
from vidtwin.hub_names import check_local_path
from vidtwin.model_paths import find_autoencoder
from vidtwin_lab import runtime

# Name -> the module that has `describe` and `measure`, and the config, which loads no torch; both
# in vidtwin_lab.evaluation. Named, not imported: a wrong key is refused before torch is loaded.
MEASUREMENTS = {
    "reconstruction": ("reconstruction", "measurement_configs:ReconstructionConfig"),
    "generation": ("generation", "measurement_configs:GenerationConfig"),
    "disentanglement": (
        "disentanglement.scorecard",
        "disentanglement.config:DisentanglementConfig",
    ),
    "adherence": ("adherence", "measurement_configs:AdherenceConfig"),
    "classifier": ("classifier", "measurement_configs:ClassifierConfig"),
    "accuracy": ("accuracy", "measurement_configs:AccuracyConfig"),
    "actions": ("actions.scorecard", "actions.config:ActionsConfig"),
    "policy": ("actions.policy", "actions.config:PolicyConfig"),
    "world": ("actions.world", "actions.config:WorldConfig"),
}


def imported(name: str) -> Any:
    """A module of vidtwin_lab.evaluation, or with MODULE:NAME what stands in it."""
    return pkgutil.resolve_name(f"vidtwin_lab.evaluation.{name}")


def parse_arguments(argv: Sequence[str]) -> tuple[str, argparse.Namespace]:
    """The name of the measurement, and the arguments that every script with a config takes."""
    parser = runtime.ArgumentParser(__doc__ or "")
    parser.add_argument("name", choices=MEASUREMENTS, metavar="NAME", help="what to measure")
    name: str = parser.read(argv[:1]).name
    about = (__doc__ or "").partition("\n")[0]
    rest = runtime.parse_arguments(f"{about} ({name})", argv[1:], training=False)
    return name, rest


def main() -> None:
    """Reads the command line, then describes the measurement or makes it."""
    runtime.configure_logging()
    name, arguments = parse_arguments(sys.argv[1:])
    module, config_class = MEASUREMENTS[name]
    config = runtime.read_config(imported(config_class), arguments)
    check_paths(config, arguments.dry_run)
    measure(module, config, dry_run=arguments.dry_run)


def check_paths(config: Any, dry_run: bool) -> None:
    """Raises ValueError for a path that is not there, before torch is loaded."""
    check_folder(Path(config.output), "output=FOLDER")
    if autoencoder := getattr(config, "autoencoder", None):
        runtime.tell_progress(find_autoencoder(autoencoder))
    if pipeline := getattr(config, "pipeline", None):
        check_local_path(pipeline, "pipeline")
        runtime.tell_progress(pipeline_folder(pipeline))
    if not dry_run:
        for part in ("data", "generated"):
            if hasattr(config, part):
                getattr(config, part).check_files()
        generated = getattr(config, "generated", None)
        if generated is not None and generated.kind == "pipeline":
            runtime.tell_progress(pipeline_folder(generated.path))


def measure(name: str, config: Any, *, dry_run: bool) -> None:
    """Makes the measurement, or prints what it would be."""
    # Not before the command line and the config are known to be right: these take seconds.
    from vidtwin_lab.evaluation.report import Processes, markdown_table, rounded, write_report

    module = imported(name)
    accelerator = runtime.start_accelerator(mixed_precision="no")
    runtime.check_launched_precision(accelerator)
    if dry_run:
        plan = module.describe(config)
        if accelerator.is_main_process:
            print(runtime.format_config(config))
            print(yaml.safe_dump({"plan": rounded(plan)}, sort_keys=False, allow_unicode=True))
        return
    processes = Processes(
        rank=accelerator.process_index,
        count=accelerator.num_processes,
        device=accelerator.device,
        gather=functools.partial(runtime.gather_rows, accelerator),
    )
    report = module.measure(config, processes)
    if processes.main:
        written = write_report(report, config.output)
        for path in written:
            print(path)
        if report.skipped:
            print(f"{len(report.skipped)} files skipped, named in {written[0]}", file=sys.stderr)
        if report.markdown:
            print(markdown_table([report.markdown]), end="")
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    runtime.run_main(main, TooManyBadFiles)
