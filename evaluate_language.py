"""Evaluates text encoders on GLUE and SQuAD, and by linear probes of captions.

    python evaluate_language.py glue --config configs/language/tasks/glue_minilm.yaml
    python evaluate_language.py squad --config configs/language/tasks/squad_minilm.yaml
    python evaluate_language.py probe --config configs/language/tasks/probe.yaml
    accelerate launch evaluate_language.py glue --config ... "data.tasks=[mrpc,rte]"

glue and squad fine-tune a copy of the text encoder for every task and seed. Run the same command
again, or with more of them: what is finished is kept. --dry-run reads all files, trains nothing.
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

# What is heavy is imported where it is used: a wrong word or key is answered at once.
from vidtwin import nearest_name
from vidtwin.files import check_folder, software_versions
from vidtwin_lab import runtime
from vidtwin_lab.language.tasks.config import CaptionProbesConfig, GlueConfig, SquadConfig

if TYPE_CHECKING:
    from diffusion.text_encoder import TextEncoder
    from vidtwin_lab.evaluation.report import Report
    from vidtwin_lab.language.tasks.prepared import PreparedTask, TaskResult

Config = GlueConfig | SquadConfig
CONFIGS: dict[str, Any] = {
    "glue": GlueConfig,
    "squad": SquadConfig,
    "probe": CaptionProbesConfig,
}


def main() -> None:
    """Reads the command line, then describes the measurement or makes it."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    runtime.configure_logging()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(__doc__)
        return
    if name not in CONFIGS:
        near = nearest_name(name, CONFIGS)
        raise ValueError(f"unknown word {name!r}; the nearest is {near!r} ({', '.join(CONFIGS)})")
    arguments = runtime.parse_arguments(__doc__ or "", sys.argv[2:], training=False)
    config = runtime.read_config(CONFIGS[name], arguments)
    check_folder(Path(config.output), "output=FOLDER")
    config.check_files()
    measure(config, name, arguments.dry_run)


def measure(config: Any, name: str, dry_run: bool) -> None:
    """Makes the measurement, or prints what it would be."""
    from accelerate import PartialState

    from vidtwin_lab.evaluation.report import markdown_table, write_report
    from vidtwin_lab.language.tasks import probes

    if name == "probe":
        report = None if dry_run else measure_probes(config)
        told = probes.describe(config)
    else:
        report, told = finetune_all(config, name, dry_run)
    if dry_run:
        print(runtime.format_config(config), yaml.safe_dump(told, sort_keys=False), sep="\n")
    if report is not None and PartialState().is_main_process:
        write_report(report, config.output)
        print(markdown_table([report.markdown]), end="")


def measure_probes(config: CaptionProbesConfig) -> Report:
    """Probes of a frozen text encoder, shared among the processes."""
    from vidtwin_lab.evaluation.report import Processes
    from vidtwin_lab.language.tasks import probes

    accelerator = runtime.start_accelerator()
    processes = Processes(
        rank=accelerator.process_index,
        count=accelerator.num_processes,
        device=accelerator.device,
        gather=lambda rows: runtime.gather_rows(accelerator, rows),
    )
    return probes.measure(config, processes)


def finetune_all(config: Config, name: str, dry_run: bool) -> tuple[Report | None, dict[str, Any]]:
    """Every task and seed that is not finished, and the report of all."""
    from vidtwin_lab.language.tasks.prepared import prepare_glue, prepare_squad
    from vidtwin_lab.language.tasks.results import fine_tuning_report

    encoder, length = config.text_encoder.load(), config.text_encoder.max_length
    config.text_encoder.pooling_of(encoder)  # refuses what the text encoder can't have
    absent: list[dict[str, str]] = []
    if isinstance(config, GlueConfig):
        tasks, absent = prepare_glue(config.data, encoder, length)
    else:
        tasks = [prepare_squad(config.data, encoder, length)]
    if dry_run:
        return None, {task.name: task.describe(config.steps(len(task.train))) for task in tasks}
    run = Run(config, encoder, tasks)
    for task, seed in itertools.product(tasks, config.seeds):
        if (task.name, seed) not in run.finished:
            result = finetune(run, task, seed)
            if run.accelerator.is_main_process:
                run.keep(task, seed, result)
    run.trackers.finish()
    if not run.accelerator.is_main_process:
        return None, {}
    finished = [run.finished[task.name, seed] for task in tasks for seed in config.seeds]
    protocol = {**run.identity(None), "seeds": list(config.seeds)}
    if name == "glue":
        protocol["submitted_seeds"] = run.runs.submit(tasks, finished)
    return fine_tuning_report(name, tasks, finished, absent, protocol), {}


class Run:
    """What is made before the first step, and what is kept of finished tasks and seeds."""

    def __init__(self, config: Config, encoder: TextEncoder, tasks: list[PreparedTask]) -> None:

        from vidtwin_lab.language.tasks.results import FinishedRuns

        self.config = config
        self.accelerator = runtime.start_accelerator(mixed_precision=config.mixed_precision)
        runtime.check_launched_precision(self.accelerator)
        count = self.accelerator.num_processes
        if config.batch_size % count:
            raise ValueError(f"`batch_size` must be a multiple of {count}, got {config.batch_size}")
        self.encoder = encoder.to(self.accelerator.device)
        chosen = config.text_encoder
        self.text_encoder = chosen.protocol(encoder, chosen.pooling_of(encoder))
        self.runs = FinishedRuns(config.output)
        keys = [(task, seed) for task in tasks for seed in config.seeds]
        kept = [self.runs.read(task.name, seed, self.identity(task)) for task, seed in keys]
        self.finished = {(run.task, run.seed): run for run in kept if run is not None}
        self.accelerator.wait_for_everyone()  # before anything new is kept
        (folder := runtime.RunFolder(config.output)).claim(config)
        self.trackers = runtime.build_trackers(
            self.accelerator, config.tracker, config.project, folder, config
        )

    def identity(self, task: PreparedTask | None) -> dict[str, Any]:
        """Everything that a task's measures follow from, but for the seed; None for no task."""
        values = runtime.config_to_dict(self.config)
        for name in ("output", "seeds", "log_every", "tracker", "project", "text_encoder"):
            del values[name]
        if isinstance(self.config, GlueConfig):
            del values["data"]["tasks"]
        identity = {"text_encoder": self.text_encoder, "settings": values}
        return identity if task is None else {**identity, "task": task.protocol}

    def keep(self, task: PreparedTask, seed: int, result: TaskResult) -> None:
        """Writes a finished task and seed."""
        made_by = {
            "software": software_versions(),
            "processes": self.accelerator.num_processes,
            "device": self.accelerator.device.type,
            "precision": self.accelerator.mixed_precision,
        }
        self.finished[task.name, seed] = self.runs.write(
            task.name, seed, result, self.identity(task), made_by
        )


def finetune(run: Run, task: PreparedTask, seed: int) -> TaskResult:
    """Trains a copy of the text encoder on one task, and measures it."""
    import torch

    from vidtwin_lab.language.tasks.finetuning import TaskModel, predict, summed_task_loss

    config, accelerator = run.config, run.accelerator
    rank, count = accelerator.process_index, accelerator.num_processes
    steps, name = config.steps(len(task.train)), f"{task.name}/seed{seed}"
    torch.manual_seed(seed)
    pooling, random_weights = run.text_encoder["pooling"], config.text_encoder.random_weights
    unwrapped = TaskModel(
        run.encoder, task.kind, task.outputs, pooling, config.dropout, random_weights
    )
    unwrapped.to(accelerator.device).train()
    schedule = config.schedule(steps)
    optimizer = runtime.build_optimizer(unwrapped, schedule)
    model, optimizer = accelerator.prepare(unwrapped, optimizer)
    learning_rate = runtime.learning_rate_schedule(schedule, steps)
    guard, timer = runtime.NonFiniteGuard(), runtime.StepTimer()
    mean = runtime.mean_over_processes(accelerator)
    batches = task.batches(config.batch_size, seed, processes=count)
    bar = runtime.progress_bar(steps, 0, not accelerator.is_main_process, name)
    for step in range(steps):
        places = next(batches)
        runtime.seed_step(seed, rank, step)
        runtime.set_learning_rate(optimizer, learning_rate(step))
        samples = [task.train[place] for place in places[rank::count]]
        tokens, mask, types = unwrapped.batch(samples, accelerator.device)
        labels = unwrapped.labels(samples, accelerator.device)
        with accelerator.autocast():
            outputs = model(tokens, mask, types)
        # The mean over the whole batch: processes are averaged, and may have one sample more.
        loss = summed_task_loss(task.kind, outputs, labels, mask) * count / len(places)
        accelerator.backward(loss)
        norm = runtime.clip_gradients(unwrapped.parameters(), schedule.max_grad_norm)
        if guard.ok(accelerator, loss.detach(), norm):
            optimizer.step()
        optimizer.zero_grad()
        timer.step(len(places))
        bar.update()
        if step + 1 == steps or (step + 1) % config.log_every == 0:
            logs: dict[str, Any] = {
                "loss": mean(loss.detach()),
                "learning_rate": learning_rate(step),
            }
            logs |= {"gradient_norm": norm, "nonfinite_steps": guard.total, **timer.report()}
            run.trackers.log({f"{name}/{key}": value for key, value in logs.items()}, step + 1)
            bar.set_postfix(loss=f"{float(logs['loss']):.4g}")
    bar.close()
    predicted = {}
    for part, part_samples in task.parts.items():
        rows = predict(unwrapped, part_samples, batch_size=config.evaluation_batch_size, rank=rank,
                       count=count, max_answer=task.max_answer, n_best=task.n_best,
                       autocast=accelerator.autocast)  # fmt: skip
        predicted[part] = [output for _, output in sorted(
            runtime.gather_rows(accelerator, rows), key=lambda row: row[0])]  # fmt: skip
    result = task.measure(predicted)
    run.trackers.log({f"{name}/{key}": value for key, value in result.measures.items()}, steps)
    accelerator.free_memory()
    return result


if __name__ == "__main__":
    runtime.run_main(main)
