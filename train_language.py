"""Trains a text encoder: by masked tokens (BERT and its heirs) or by the next token (GPT).

    python train_language.py --config configs/language/shapes_bert.yaml output=outputs/bert
    accelerate launch train_language.py --config ... corpus.source=text corpus.path=texts
    python train_language.py --config ... init_from=outputs/bert/language_model   # to train it on

Run the same command again and it goes on where it stopped.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from vidtwin.files import folder_written_whole
from vidtwin_lab import runtime
from vidtwin_lab.language.config import TEXTS_MAY_CHANGE, TrainConfig

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from vidtwin_lab.language.corpus import Corpus

    Run = runtime.TrainingRun[TrainConfig]

STARTERS = ("configs/language/shapes_bert_debug.yaml", "configs/language/shapes_bert.yaml")


def main() -> None:
    """Reads the command line, then describes the run or trains."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # threads would outlive a fork
    # It warns of the tied weights of every checkpoint, which loading ties again.
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
    config, arguments = runtime.read_training_config(__doc__ or "", TrainConfig, STARTERS)
    if arguments.dry_run:
        describe(config)
    else:
        train(config, arguments.resume)


def describe(config: TrainConfig) -> None:
    """Prints the config, and the sizes of model, tokenizer and corpus."""
    from vidtwin_lab.language.corpus import build_corpus
    from vidtwin_lab.language.models import describe_language_model
    from vidtwin_lab.language.training import build_model, build_samples, build_tokenizer

    print(runtime.format_config(config))
    corpus = build_corpus(config, "train")
    tokenizer = build_tokenizer(config, corpus)
    model, objective = build_model(config, tokenizer)
    print(describe_language_model(model, tokenizer))
    samples = build_samples(config, corpus, tokenizer)
    print(f"{' + '.join(objective.weights)} on {len(samples):,} samples an epoch")


def train(config: TrainConfig, resume: str | None) -> None:
    """Trains the steps that are left."""
    import torch

    from vidtwin_lab.language.corpus import build_corpus
    from vidtwin_lab.language.models import LanguageModelFiles
    from vidtwin_lab.language.training import build_model, build_samples

    run = runtime.TrainingRun(config, TEXTS_MAY_CHANGE)
    accelerator = run.accelerator
    corpus = build_corpus(config, "train")
    tokenizer = own_tokenizer(run, corpus)
    model, objective = build_model(config, tokenizer)
    objective.to(accelerator.device)
    run.prepare(model)
    run.resume(resume)
    loader = build_loader(run, corpus, tokenizer, objective)
    held_out = None
    if config.validation_samples:
        part = "train" if config.overfit else "validation"
        held_out = build_samples(config, build_corpus(config, part), tokenizer)

    def export() -> None:
        run.export("language_model", lambda model: LanguageModelFiles(model, tokenizer))

    run.model.train()
    if run.start_step:
        export()  # a kill may have come between the checkpoint and this, or damage after it
        if held_out is not None and run.validation_pending:
            validate(run, objective, held_out, run.start_step - 1)

    for step, samples in run.steps(loader, config.model.family):
        logs: dict[str, Any] = {"learning_rate": run.learning_rate}
        # Of alike length, so that little is padded. The loss is the mean over the tokens of the
        # whole batch, however they are spread over micro-batches and processes.
        samples.sort(key=lambda sample: len(sample["input_ids"]))
        logs["tokens_per_sample"] = float(np.mean([len(each["input_ids"]) for each in samples]))
        counts = {
            name: run.mean(torch.tensor(float(count), device=accelerator.device)).clamp_min(1)
            for name, count in objective.counts(samples).items()
        }
        size = len(samples) // config.accumulation
        for index in range(config.accumulation):
            batch = objective.batch(samples[index * size : (index + 1) * size])
            batch = {name: value.to(accelerator.device) for name, value in batch.items()}
            with runtime.sync_on_last(accelerator, run.model, index, config.accumulation):
                with accelerator.autocast():
                    terms = objective.terms(run.model, batch)
                loss, means = objective.loss(terms, counts)
                accelerator.backward(loss)
            runtime.add_share(logs, "loss", {"total": loss.detach(), **means}, 1)
            runtime.add_share(logs, "training", objective.accuracies(terms, counts), 1)
        logs["gradient_norm"] = norm = run.clip_gradients()
        if run.guard.ok(accelerator, logs["loss/total"], norm):
            run.optimizer.step()
            run.update_ema()
        run.optimizer.zero_grad()
        run.log(step, logs)
        if held_out is not None and run.validates(step):
            validate(run, objective, held_out, step)
        if run.due(step, config.save_every):
            run.save(step)
            export()


def own_tokenizer(run: Run, corpus: Corpus) -> Any:
    """The run's tokenizer: made before the first checkpoint, and read back after it."""
    from diffusion.text_loading import load_tokenizer
    from vidtwin_lab.language.training import build_tokenizer

    path = run.folder.path / "tokenizer"
    begun = path.exists() and run.folder.checkpoints.latest() is not None
    if run.accelerator.is_main_process and not begun:
        with folder_written_whole(path) as writing:
            build_tokenizer(run.config, corpus).save_pretrained(writing)
    run.accelerator.wait_for_everyone()
    return load_tokenizer(str(path))


def build_loader(run: Run, corpus: Corpus, tokenizer: Any, objective: Any) -> DataLoader[Any]:
    """The endless stream of this process's samples, masked as the objective asks."""
    from torch.utils.data import DataLoader

    from vidtwin.data.loading import GlobalBatchSampler, worker_arguments
    from vidtwin_lab.language.training import build_samples

    config = run.config
    samples = build_samples(config, corpus, tokenizer)
    rank, world_size = run.ranks.values()
    place = (rank, world_size, run.start_step)
    sampler = GlobalBatchSampler(len(samples), config.batch_size, config.seed, *place)
    return DataLoader(
        samples,
        batch_sampler=sampler,
        collate_fn=objective.hide_all,
        **worker_arguments(config.num_workers),
    )


def validate(run: Run, objective: Any, samples: Any, step: int) -> None:
    """Measures the averaged weights on texts that are not trained on."""
    from vidtwin_lab.language.training import measure_language_model, token_means

    config, accelerator = run.config, run.accelerator
    count = min(config.validation_samples, len(samples))
    # Whole batches go to each process: "contrastive" compares the texts of a batch.
    size = config.validation_batch_size
    batches = [range(start, min(start + size, count)) for start in range(0, count, size)]
    with run.validation(step) as model:
        rows = measure_language_model(
            model,
            objective,
            samples,
            batches[accelerator.process_index :: accelerator.num_processes],
            autocast=accelerator.autocast,
        )
    run.trackers.log_validation(token_means(runtime.gather_rows(accelerator, rows)), step + 1)


if __name__ == "__main__":
    runtime.run_main(main)
