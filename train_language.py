"""Trains a text encoder: to predict masked tokens (BERT and its heirs) or the next token (GPT).

    python train_language.py --config configs/language/shapes_bert.yaml output=outputs/bert
    accelerate launch train_language.py --config ... corpus.source=text corpus.path=texts
    python train_language.py --config ... init_from=outputs/bert/language_model

Run the same command again and it resumes where it stopped.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from diffusion.text_loading import load_tokenizer
from vidtwin.data.loading import GlobalBatchSampler, worker_arguments
from vidtwin.media import write_video
from vidtwin_lab import runtime
from vidtwin_lab.language.config import TEXTS_MAY_CHANGE, TrainConfig
from vidtwin_lab.language.corpus import Corpus, build_corpus
from vidtwin_lab.language.models import LanguageModelFiles, describe_language_model
from vidtwin_lab.language.training import (
    build_model,
    build_samples,
    build_tokenizer,
    mean_measures,
    measure_language_model,
)


def main() -> None:
    """Reads the command line, then describes the run or trains."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # threads would outlive a fork
    runtime.configure_logging()
    # It warns of the tied weights of every checkpoint, which loading ties again.
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
    arguments = runtime.parse_arguments("Trains a small language model.")
    config = runtime.load_config(TrainConfig, arguments.config, arguments.overrides)
    if arguments.overfit:
        config = dataclasses.replace(config, overfit=arguments.overfit)
    if arguments.dry_run:
        print(runtime.format_config(config))
        corpus = build_corpus(config, "train")
        tokenizer = build_tokenizer(config, corpus)
        model, objective = build_model(config, tokenizer)
        print(describe_language_model(model, tokenizer))
        samples = build_samples(config, corpus, tokenizer)
        print(f"{' + '.join(objective.weights)} on {len(samples):,} samples an epoch")
        return
    accelerator, folder = runtime.start_run(config, TEXTS_MAY_CHANGE)
    torch.manual_seed(config.seed)
    train(Run(config, accelerator, folder, arguments.resume))


class Run:
    """Everything of a run that is made before its first step, and what happens beside the steps."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        folder: runtime.RunFolder,
        resume: str | None,
    ) -> None:
        self.config, self.accelerator, self.folder = config, accelerator, folder
        corpus = build_corpus(config, "train")
        self.tokenizer = self.own_tokenizer(corpus)
        self.unwrapped, self.objective = build_model(config, self.tokenizer)
        self.objective.to(accelerator.device)
        if config.gradient_checkpointing:
            self.unwrapped.gradient_checkpointing_enable()
        self.unwrapped.to(accelerator.device)
        self.model = runtime.prepare_model(accelerator, self.unwrapped, config.compile)
        optimizer = runtime.build_optimizer(self.unwrapped.parameters(), config.optimizer)
        self.optimizer = accelerator.prepare(optimizer)
        self.scheduler = runtime.build_scheduler(self.optimizer, config.optimizer, config.steps)
        self.ema = runtime.build_ema(self.unwrapped, config.ema)
        self.guard = runtime.NonFiniteGuard(config.max_nonfinite_steps)
        accelerator.register_for_checkpointing(
            self.guard, self.scheduler, *([] if self.ema is None else [self.ema])
        )
        self.start = runtime.resume(accelerator, folder, resume)
        self.loader = self.build_loader(corpus)
        self.validation = None
        if config.validation_samples:
            part = "train" if config.overfit else "validation"
            self.validation = build_samples(config, build_corpus(config, part), self.tokenizer)
        self.trackers = runtime.start_trackers(
            accelerator, config, folder, start_step=self.start, video_writer=write_video
        )

    def own_tokenizer(self, corpus: Corpus) -> Any:
        """The run's tokenizer: made before the first checkpoint, and read back after it."""
        path = self.folder.path / "tokenizer"
        begun = path.exists() and self.folder.checkpoints.latest() is not None
        if self.accelerator.is_main_process and not begun:
            writing = path.with_name(".tokenizer.writing")
            shutil.rmtree(path, ignore_errors=True)
            build_tokenizer(self.config, corpus).save_pretrained(writing)
            writing.rename(path)
        self.accelerator.wait_for_everyone()
        return load_tokenizer(str(path))

    def build_loader(self, corpus: Corpus) -> DataLoader[Any]:
        """The endless stream of this process's samples, masked as the objective asks."""
        config, accelerator = self.config, self.accelerator
        samples = build_samples(config, corpus, self.tokenizer)
        place = (accelerator.process_index, accelerator.num_processes, self.start)
        sampler = GlobalBatchSampler(len(samples), config.batch_size, config.seed, *place)
        return DataLoader(
            samples,
            batch_sampler=sampler,
            collate_fn=self.objective.hide_all,
            **worker_arguments(config.num_workers),
        )

    def save(self, step: int) -> None:
        """Writes a checkpoint, and the model for use."""
        self.folder.checkpoints.save(self.accelerator, step, {})
        self.export()

    def export(self) -> None:
        """Writes model and tokenizer for `TextEncoder.from_pretrained`."""
        runtime.export_weights(
            *(self.accelerator, self.folder, "language_model", self.unwrapped, self.ema),
            lambda model: LanguageModelFiles(model, self.tokenizer),
        )

    def validate(self, step: int) -> None:
        """Measures the averaged weights on texts that are not trained on."""
        if self.validation is None:
            return
        accelerator = self.accelerator
        count = min(self.config.validation_samples, len(self.validation))
        # Whole batches go to each process: "contrastive" compares the texts of a batch.
        size = self.config.validation_batch_size
        batches = [range(start, min(start + size, count)) for start in range(0, count, size)]
        with runtime.ema_weights(self.ema, self.unwrapped) as model:
            rows = measure_language_model(
                model,
                self.objective,
                self.validation,
                batches[accelerator.process_index :: accelerator.num_processes],
                autocast=accelerator.autocast,
            )
        means = mean_measures(runtime.gather_rows(accelerator, rows))
        self.trackers.log_validation(means, step)


def train(run: Run) -> None:
    """The steps that are left."""
    config, accelerator = run.config, run.accelerator
    mean = runtime.mean_over_processes(accelerator)
    timer = runtime.StepTimer()
    hidden = not accelerator.is_main_process
    bar = runtime.progress_bar(config.steps, run.start, hidden, config.model.family)
    batches = iter(run.loader)
    run.model.train()
    if run.start >= config.steps:
        run.export()  # a kill may have come between the last checkpoint and its export

    for step in range(run.start, config.steps):
        with timer.data():
            samples = next(batches)
        # After the loader, whose start draws a number.
        runtime.seed_step(config.seed, accelerator.process_index, step)
        logs: dict[str, Any] = {"learning_rate": run.optimizer.param_groups[0]["lr"]}
        # Of alike length, so that little is padded. The loss is the mean over the tokens of the
        # whole batch, however they are spread over micro-batches and processes.
        samples.sort(key=lambda sample: len(sample["input_ids"]))
        logs["tokens_per_sample"] = float(np.mean([len(each["input_ids"]) for each in samples]))
        counts = {
            name: mean(torch.tensor(float(count), device=accelerator.device)).clamp_min(1)
            for name, count in run.objective.counts(samples).items()
        }
        size = len(samples) // config.accumulation
        for index in range(config.accumulation):
            batch = run.objective.batch(samples[index * size : (index + 1) * size])
            batch = {name: value.to(accelerator.device) for name, value in batch.items()}
            with runtime.sync_on_last(accelerator, run.model, index, config.accumulation):
                with accelerator.autocast():
                    terms = run.objective.terms(run.model, batch)
                loss, means = run.objective.loss(terms, counts)
                accelerator.backward(loss)
            runtime.add_share(logs, "loss", {"total": loss.detach(), **means}, 1)
            runtime.add_share(logs, "training", run.objective.accuracies(terms, counts), 1)
        max_norm = config.optimizer.max_grad_norm
        norm = runtime.clip_gradients(accelerator, run.unwrapped.parameters(), max_norm)
        if run.guard.ok(accelerator, logs["loss/total"], norm):
            run.optimizer.step()
            if run.ema is not None:
                run.ema.step(run.unwrapped.parameters())
        run.optimizer.zero_grad()
        run.scheduler.step()
        timer.step(config.batch_size)
        bar.update()
        done = step + 1
        last = done == config.steps
        if last or done % config.log_every == 0:
            logs = {name: mean(value) for name, value in (logs | {"gradient_norm": norm}).items()}
            logs["nonfinite_steps"] = run.guard.total
            run.trackers.log(logs | timer.report(), done)
            bar.set_postfix(loss=f"{float(logs['loss/total']):.4g}")
        if last or done % config.save_every == 0:
            run.save(done)
        if last or done % config.validate_every == 0:
            run.validate(done)
    bar.close()
    run.trackers.finish()


if __name__ == "__main__":
    runtime.run_main(main)
