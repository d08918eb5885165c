"""Chooses the length of a diffusion run's weight average after the run, by held-out losses.

    python train_diffusion.py --config ... ema.kind=power ema.snapshot_every=2000 output=outputs/run
    python tools/posthoc_ema.py --run outputs/run --stds 0.02 0.05 0.1 0.15 0.2

For each length the average is put together from those that the run wrote, and measured as the run's
own validation does: the same clips, noise and levels, so that they differ by their weights alone.
Writes posthoc_ema.json with all of them, and `pipeline` with the best. The losses of the best are a
little too good, having been chosen: measure it on other clips. Overrides are keys of the run's
inputs, such as cache=FOLDER for one that has moved.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.config import InputsConfig
from vidtwin.files import check_folder, software_versions, write_json
from vidtwin_lab import runtime
from vidtwin_lab.runtime.run_config import EMAConfig

if TYPE_CHECKING:
    from diffusion.training import TrainingInputs

STDS = (0.02, 0.035, 0.05, 0.07, 0.1, 0.14, 0.2)


def parse_arguments() -> argparse.Namespace:
    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=about)
    add = parser.add_argument
    add("--run", type=Path, required=True, metavar="FOLDER", help="of train_diffusion.py")
    add("--stds", type=float, nargs="+", default=STDS, help="lengths, as shares of the run")
    add("--step", type=int, help="whose average is wanted (default: the last that was written)")
    add("--samples", type=int, help="held-out clips (default: the run's validation_samples)")
    add("--batch-size", type=int, default=16, help="(%(default)s)")
    add("--device", help="(default: the accelerator, if there is one)")
    add("--output", type=Path, help="(default: RUN/posthoc_ema)")
    add("overrides", nargs="*", metavar="key=value", help="of the run's inputs")
    arguments = parser.parse_intermixed_args()
    EMAConfig(stds=tuple(arguments.stds))  # which says what is wrong with them
    for name in ("step", "samples", "batch_size"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if not (arguments.run / "config.yaml").is_file():
        raise ValueError(f"--run {arguments.run} is no run folder: it has no config.yaml")
    arguments.output = arguments.output or arguments.run / "posthoc_ema"
    check_folder(arguments.output)
    return arguments


def main() -> None:
    arguments = parse_arguments()
    runtime.configure_logging()
    values = runtime.read_yaml(arguments.run / "config.yaml")
    samples = arguments.samples or values["validation_samples"]
    if not samples:
        raise ValueError("the run has validation_samples=0; say --samples N")
    overrides = [f"autoencoder={arguments.run / 'pipeline' / 'autoencoder'}", *arguments.overrides]
    config = inputs_of(values, overrides)

    from diffusion import VidTwinPipeline
    from diffusion.training import build_inputs
    from vidtwin_lab.runtime.posthoc_ema import combine, find_snapshots, least_squares

    snapshots = find_snapshots(arguments.run, arguments.step)
    device = runtime.usable_device(arguments.device, runtime.start_accelerator().device)
    pipeline = VidTwinPipeline.from_pretrained(arguments.run / "pipeline").to(device)
    inputs = build_inputs(config, device)
    inputs.stats.load_state_dict(pipeline.latent_stats.state_dict())
    found: list[dict[str, Any]] = []
    for std in arguments.stds:
        factors = least_squares(snapshots, std, snapshots[-1].updates)
        pipeline.transformer.load_state_dict(combine(snapshots, factors))
        losses = measure(pipeline.transformer, inputs, samples, arguments.batch_size)
        found.append({"std": std, **losses})
        print(f"std {std:g}: {losses['total']:.5f}")
        if losses["total"] <= min(each["total"] for each in found):
            runtime.replace_weights(arguments.output / "pipeline", pipeline)
    best = min(found, key=lambda each: float(each["total"]))["std"]
    record = {
        "best": best,
        "lengths": found,
        "run": str(arguments.run),
        "updates": snapshots[-1].updates,
        "averages": len(snapshots),
        "held_out_clips": samples,
        "inputs": runtime.config_to_dict(config),
        "software": software_versions(),
    }
    write_json(arguments.output / "posthoc_ema.json", record)
    print(f"best of them: {best:g}, in {arguments.output / 'pipeline'}")


def inputs_of(values: dict[str, Any], overrides: list[str]) -> InputsConfig:
    """What a run learned from and how, of its whole config."""
    own = {name: values[name] for name in InputsConfig.__dataclass_fields__ if name in values}
    words = [f"{key}={json.dumps(value)}" for key, value in runtime.flatten(own).items()]
    return runtime.load_config(InputsConfig, None, [*words, *overrides])


def measure(model: Any, inputs: TrainingInputs, samples: int, batch_size: int) -> dict[str, float]:
    """The held-out losses of a model, and their weighted sum as "total"."""
    from diffusion.training import measure_losses
    from vidtwin.metrics import mean_measures

    batches = inputs.source.held_out_batches(batch_size=batch_size, max_samples=samples)
    means = mean_measures(measure_losses(model, inputs, batches))
    flow = inputs.objective.config
    total = flow.structure_weight * means["structure"] + flow.dynamics_weight * means["dynamics"]
    return {"total": total, **means}


if __name__ == "__main__":
    runtime.run_main(main)
