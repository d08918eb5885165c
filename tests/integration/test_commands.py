"""Every command answers a wrong command line at once: before torch and its like are imported."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from script_runs import run_python

HEAVY = ("torch", "transformers", "diffusers", "accelerate", "datasets", "tokenizers")
# Runs a script as `python SCRIPT ...` does, and in the end says on stderr what it has imported.
# (Not `-X importtime`: that does not tell of what a lazy package imports.)
PROBE = f"""
import atexit, runpy, sys
heavy = {HEAVY!r}
found = lambda: [name for name in heavy if name in sys.modules]
atexit.register(lambda: print("imported:", found(), file=sys.stderr))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Script(NamedTuple):
    """A script and what to say to it.

    start: its first words.
    wrong: (key=value that is refused, what the error says).
    paths: the same of paths where nothing lies.
    """

    start: tuple[str, ...]
    wrong: tuple[tuple[str, str], ...]
    paths: tuple[tuple[str, str], ...]


SCRIPTS = {
    "train_ae": Script(
        ("train_ae.py", "--config", "configs/ae/shapes.yaml"),
        (
            ("model.hiden_size=8", "model.hidden_size"),
            ("steps=9", "`optimizer.warmup_steps` must be less"),
        ),
        (
            ("init_from=nowhere", "no checkpoint file at nowhere"),
            ("data.source=folder data.path=nowhere", "'nowhere' does not exist"),
            ("--resume nowhere", "checkpoint nowhere does not exist"),
            ("output=README.md/run", "can't write to the folder"),
        ),
    ),
    "train_diffusion": Script(
        ("train_diffusion.py", "--config", "configs/diffusion/shapes_debug.yaml"),
        (("flow.shift=1", "flow.shift"), ("class_dropout=2", "`class_dropout` must lie in")),
        (
            ("autoencoder=nowhere", "nowhere does not exist"),
            ("autoencoder=nowhere --dry-run", "nowhere does not exist"),
            ("autoencoder=configs/ae/small.yaml", "only --dry-run takes"),
            ("cache=nowhere", "nowhere/train is no latent cache"),
            ("text_encoder=./nowhere", "no text encoder in ./nowhere"),
            ("init_from=nowhere", "init_from=nowhere holds no transformer"),
            ("data.source=csv data.path=nowhere.csv", "'nowhere.csv' does not exist"),
            ("--resume nowhere", "checkpoint nowhere does not exist"),
        ),
    ),
    "train_language": Script(
        ("train_language.py", "--config", "configs/language/shapes_bert.yaml"),
        (("model.famly=bert", "model.family"), ("model.family=ber", "`family` must be one of")),
        (
            ("corpus.source=text corpus.path=nowhere", "corpus nowhere does not exist"),
            ("init_from=./nowhere", "no language model in ./nowhere"),
            ("tokenizer.path=./nowhere", "no tokenizer in ./nowhere"),
            ("--resume nowhere", "checkpoint nowhere does not exist"),
        ),
    ),
    "encode": Script(
        ("encode.py", "--config", "configs/encode/shapes.yaml"),
        (("stores=mode", "store"), ("store=all", "`store` must be one of")),
        (
            ("autoencoder=nowhere", "nowhere does not exist"),
            ("data.source=sprites data.path=nowhere", "'nowhere' is not a folder"),
            ("data.source=glob data.path=nowhere/*.mp4", "no file matches"),
            ("output=README.md/latents", "can't write to the folder"),
        ),
    ),
    "evaluate reconstruction": Script(
        ("evaluate.py", "reconstruction"),
        (("windos=one", "windows"), ("windows=two", "windows")),
        (
            ("autoencoder=nowhere", "nowhere does not exist"),
            ("data.source=classes data.path=nowhere", "'nowhere' does not exist"),
            ("output=README.md/report", "can't write to the folder"),
        ),
    ),
    "evaluate adherence": Script(
        ("evaluate.py", "adherence"),
        (
            ("sampels=4", "samples"),
            ("step=3", "steps"),
            ("held_guidance_scale=2", "is now `given_guidance_scale`"),
        ),
        (("pipeline=./nowhere", "no pipeline in ./nowhere"),),
    ),
    "evaluate generation": Script(
        ("evaluate.py", "generation"),
        (("num_video=3", "num_videos"), ("seed=-1", "seed")),
        (
            ("generated.path=./nowhere", "no pipeline in ./nowhere: the folder does not exist"),
            ("generated.scheduler=ddim", "got 'ddim'"),
            ("generated.kind=videos generated.path=nowhere", "generated.path=nowhere is no folder"),
        ),
    ),
    "evaluate disentanglement": Script(
        ("evaluate.py", "disentanglement"),
        (
            ("sample=3", "samples"),
            ("pairs=-1", "pairs"),
            ("sampling.held_guidance_scale=2", "is now `sampling.given_guidance_scale`"),
        ),
        (("autoencoder=nowhere", "nowhere does not exist"),),
    ),
    "evaluate_language glue": Script(
        ("evaluate_language.py", "glue"),
        (("data.task=[rte]", "data.tasks"), ("data.tasks=[rtf]", "the nearest is 'rte'")),
        (
            ("data.path=nowhere", "nowhere, does not exist"),
            ("data.path=docs text_encoder.name=./nowhere", "no text encoder in ./nowhere"),
        ),
    ),
    "evaluate_language squad": Script(
        ("evaluate_language.py", "squad"),
        (("data.strid=3", "data.stride"), ("epochs=0", "`epochs` must be above 0")),
        (("data.dev=nowhere.json", "json does not exist"),),
    ),
    "evaluate_language probe": Script(
        ("evaluate_language.py", "probe"),
        (("question=[color]", "questions"), ("questions=[colour]", "the nearest is 'color'")),
        (("text_encoder.name=./nowhere", "no text encoder in ./nowhere"),),
    ),
}
# Those without a config.
PLAIN = {
    "sample": (
        ("--steps 0", "--steps must be at least 1, got 0"),
        ("--guidance-scale 0.5", "--guidance-scale must be at least 1.0"),
        ("--pipeline ./nowhere/at/all", "no pipeline in ./nowhere/at/all: the folder"),
        ("--scheduler foo", "--scheduler must be one of euler, heun, dpm++, unipc for"),
        (
            "--class-label Wave",
            "not trained with classes: leave out --class-label; ask",
        ),
        ("--pipeline docs", "docs holds no pipeline"),
        ("--prompts-file nowhere.txt", "nowhere.txt"),
        ("--structure-from nowhere.mp4", "--structure-from nowhere.mp4 is not a file"),
        ("--output README.md/out", "can't write to the folder"),
    ),
    "reconstruct": (
        ("", "name a video, a folder or a pattern"),
        ("README.md --max-frames 0", "--max-frames must be at least 1"),
        ("nowhere.mp4", "nowhere.mp4: no such file"),
        ("README.md --model nowhere", "the model nowhere does not exist"),
        ("README.md --swap nowhere.mp4", "--swap nowhere.mp4: no such file"),
    ),
}
WRONG_FLAG = ("--outptu 1", "there is no flag --outptu; the nearest is --")
COMMON = (WRONG_FLAG, ("--config nowhere.yaml", "config file nowhere.yaml does not exist"))
CASES = [
    ((*script.start, *line.split()), said)
    for script in SCRIPTS.values()
    for line, said in (*COMMON, *script.wrong, *script.paths)
] + [
    ((f"{name}.py", *line.split()), said)
    for name, lines in PLAIN.items()
    for line, said in (WRONG_FLAG, *lines)
]
CASES += [
    (("evaluate.py", "nothing"), "invalid choice: 'nothing'"),
    (("train_ae.py", "steps=3"), "say which config: --config FILE"),
    (("train_diffusion.py",), "configs/diffusion/shapes_debug.yaml"),
    (("train_language.py", "--dry-run"), "configs/language/shapes_bert_debug.yaml"),
    (("encode.py", "output=latents"), "configs/encode/shapes_debug.yaml"),
    (("evaluate_language.py", "nothing"), "unknown word 'nothing'"),
]
HELP = [(f"{name}.py", "--help") for name in PLAIN] + [
    (*script.start, "--help") for script in SCRIPTS.values()
]


def answer(*words: object) -> tuple[int, str, str]:
    """Exit code, output and errors of a command that must not import anything heavy."""
    ended = run_python("-c", PROBE, *words)
    *told, imported = ended.err.splitlines()
    assert imported == "imported: []", ended.err
    return ended.code, ended.out, "\n".join(told)


@pytest.mark.parametrize("words", HELP, ids=" ".join)
def test_help_is_shown_without_torch(words) -> None:
    code, out, err = answer(*words)
    assert (code, err) == (0, "")
    assert "config" in out or "--model" in out or "--pipeline" in out


@pytest.mark.parametrize(
    ("words", "said"), CASES, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_a_wrong_command_line_is_refused_without_torch(words, said) -> None:
    code, out, err = answer(*words)
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ")
    assert err.count("\n") == 0
    assert said in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "train-diffusion"),
        (("--help",), "train-diffusion"),
        (("--version",), "vidtwin "),
        (("completion", "bash"), "complete -F _vidtwin vidtwin"),
        (("sample", "--help"), "--prompt"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_command_answers_without_torch(words, said) -> None:
    code, out, err = answer("vidtwin_lab/cli.py", *words)
    assert (code, err) == (0, "")
    assert said in out
