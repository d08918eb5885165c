"""Compares autoencoders that differ in a few keys alone, trained at equal steps with several seeds.

    python tools/compare_autoencoders.py --config configs/compare/ablations.yaml
    python tools/compare_autoencoders.py --config configs/compare/ablations.yaml --dry-run

Every seed of all variants is trained (train_ae.py) before the next seed; the figures are those of
its last validation: held-out clips, averaged weights. With `diffusion.config` a transformer is
trained on the latents of each too (train_diffusion.py), and its held-out loss stands in the table:
on latents scaled to a deviation of 1, and of autoencoders that keep different things of a clip.
Stop it at any time: the same command goes on, and keeps what is finished. The table, as
compare_autoencoders.md, .json and .csv, is written anew after each run.
"""

from __future__ import annotations

import json
import signal
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidtwin.files import check_folder
from vidtwin_lab import runtime
from vidtwin_lab.runtime.jobs import Job, Jobs

ROOT = Path(__file__).resolve().parents[1]
NAME = "compare_autoencoders"
# 97.5 % quantiles of Student's t: degrees of freedom -> quantile.
T_QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306}
MEASURES = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "loss_structure": "transformer's loss of the structure",
    "loss_dynamics": "of the dynamics",
}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """An autoencoder of the comparison.

    Args:
        name: of its folders.
        title: of its row; the name by default.
        settings: key=value of train_ae.py in which it differs.
        paper: PSNR and SSIM of the paper, to stand beside it.
    """

    name: str
    title: str | None = None
    settings: tuple[str, ...] = ()
    paper: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class DiffusionStage:
    """The transformer on each autoencoder's latents.

    Args:
        config: of train_diffusion.py; None trains none.
        settings: further key=value.
    """

    config: str | None = None
    settings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """A comparison.

    Args:
        output: folder of all runs and of the table.
        config: of train_ae.py, for all variants.
        variants: the first is what the others are compared with.
        seeds: each variant is trained with each.
        settings: further key=value of train_ae.py, for all variants.
        diffusion: a transformer on the latents, too.
    """

    output: str
    config: str
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    settings: tuple[str, ...] = ()
    diffusion: DiffusionStage = field(default=DiffusionStage())

    def __post_init__(self) -> None:
        for key, values in (
            ("variants", [variant.name for variant in self.variants]),
            ("seeds", self.seeds),
        ):
            if not values or len(set(values)) < len(values):
                raise ValueError(f"`{key}` must be one or more, all different, got {values}")
        if len(self.seeds) > max(T_QUANTILES) + 1:
            raise ValueError(f"`seeds` must be at most {max(T_QUANTILES) + 1}, got {self.seeds}")


def plan(config: CompareConfig) -> Iterator[Job]:
    """The jobs: all variants with the first seed, then with the next."""
    output = Path(config.output)
    for seed in config.seeds:
        for variant in config.variants:
            run = f"{variant.name}_seed{seed}"
            trained = output / "train" / run
            yield Job(
                name=f"train/{run}",
                script=script("train_ae.py", "--config", config.config),
                fixed=(f"seed={seed}", *config.settings, *variant.settings),
                free=(f"output={trained}",),
                files=(trained / "autoencoder_ema" / "config.json",),
            )
            if config.diffusion.config is not None:
                generator = output / "diffusion" / run
                yield Job(
                    name=f"diffusion/{run}",
                    script=script("train_diffusion.py", "--config", config.diffusion.config),
                    fixed=(f"seed={seed}", *config.diffusion.settings),
                    free=(f"autoencoder={trained}", f"output={generator}"),
                    files=(generator / "metrics.jsonl",),
                    needs=(f"train/{run}",),
                )


def script(name: str, *words: str) -> tuple[str, ...]:
    """A script of the repository and its first words."""
    return (str(ROOT / name), *words)


def collect(config: CompareConfig, jobs: Jobs) -> dict[str, dict[str, dict[int, float]]]:
    """measure -> variant -> seed -> value, of what is finished."""
    output = Path(config.output)
    found: dict[str, dict[str, dict[int, float]]] = {}
    for variant in config.variants:
        for seed in config.seeds:
            run = f"{variant.name}_seed{seed}"
            values: dict[str, float] = {}
            if jobs.record(f"train/{run}").get("finished"):
                measured = last_validation(output / "train" / run)
                values |= {name: measured[name] for name in ("psnr", "ssim")}
            if jobs.record(f"diffusion/{run}").get("finished"):
                losses = last_validation(output / "diffusion" / run)
                values |= {f"loss_{name}": losses[name] for name in ("structure", "dynamics")}
            for name, value in values.items():
                found.setdefault(name, {}).setdefault(variant.name, {})[seed] = value
    return found


def last_validation(folder: Path) -> dict[str, float]:
    """What a run's last validation measured.

    Raises:
        ValueError: if it validated nothing.
    """
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    records = [record for line in lines if "validation" in str(record := json.loads(line))]
    if not records:
        raise ValueError(f"{folder} has no validation; set validation_samples and validate_every")
    return {key.removeprefix("validation/"): value for key, value in records[-1].items()}


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean and 95 % interval (Student's t) of what several seeds gave; no interval of one."""
    mean, n = statistics.fmean(values), len(values)
    if n == 1:
        return {"value": mean, "low": None, "high": None, "n": n}
    half = T_QUANTILES[n - 1] * statistics.stdev(values) / n**0.5
    return {"value": mean, "low": mean - half, "high": mean + half, "n": n}


def summarize(config: CompareConfig, own: dict[str, dict[int, float]]) -> dict[str, Any]:
    """variant -> mean over seeds, and the paired difference from the first variant."""
    reference = own.get(config.variants[0].name, {})
    found = {}
    for variant in config.variants:
        values = own.get(variant.name, {})
        shared = sorted(values.keys() & reference.keys())
        differences = [values[seed] - reference[seed] for seed in shared]
        found[variant.name] = {
            "mean": over_seeds(list(values.values())) if values else None,
            "difference": over_seeds(differences) if differences else None,
            "seeds": values,
        }
    return found


def write_table(config: CompareConfig, jobs: Jobs) -> str:
    """Writes the table of what is finished; returns its Markdown."""
    from vidtwin_lab.evaluation.intervals import interval_text
    from vidtwin_lab.evaluation.report import Report, markdown_table, write_report

    found = collect(config, jobs)
    summary = {measure: summarize(config, own) for measure, own in found.items()}
    rows = []
    for variant in config.variants:
        row = [("", variant.title or variant.name)]
        for measure, cells in summary.items():
            style = ".2f" if measure == "psnr" else ".4f"
            cell = cells[variant.name]
            row.append((MEASURES[measure], interval_text(cell["mean"], style)))
            row.append((f"{MEASURES[measure]}, difference", interval_text(
                cell["difference"] if variant is not config.variants[0] else None, style
            )))  # fmt: skip
        row.append(("seeds", str(len(found.get("psnr", {}).get(variant.name, {})))))
        if any(each.paper for each in config.variants):
            told = variant.paper and f"{variant.paper[0]:.3f} / {variant.paper[1]:.3f}"
            row.append(("paper: PSNR / SSIM", told or "-"))
        rows.append(row)
    text = markdown_table(rows)
    report = Report(
        name=NAME,
        protocol={
            "comparison": runtime.config_to_dict(config),
            "intervals": "95 %, Student's t over seeds; differences are paired by seed",
            "seconds_of_jobs": {name: jobs.record(name).get("seconds") for name in jobs.jobs},
        },
        found=summary,
        rows=[
            {"measure": measure, "variant": variant, "seed": seed, "value": value}
            for measure, own in found.items()
            for variant, values in own.items()
            for seed, value in values.items()
        ],
    )
    files = write_report(report, config.output)
    files[0].with_suffix(".md").write_text(text, encoding="utf-8")
    return text


def main() -> None:
    """Lists the jobs, or does them and writes the table."""
    runtime.configure_logging()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what was called, too
    about = (__doc__ or "").partition("\n")[0]
    arguments = runtime.parse_arguments(about, training=False)
    config = runtime.load_config(CompareConfig, arguments.config, arguments.overrides)
    jobs = Jobs(config.output, list(plan(config)), ROOT)
    if arguments.dry_run:
        print(runtime.format_config(config), jobs.describe(list(jobs.jobs)), sep="\n", end="")
        return
    check_folder(Path(config.output), "output=FOLDER")
    for name in jobs.jobs:
        jobs.run([name])
        write_table(config, jobs)
    print(write_table(config, jobs), end="")


if __name__ == "__main__":
    runtime.run_main(main)
