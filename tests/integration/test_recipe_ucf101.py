"""docs/recipes/ucf101.md: every command of the page, on a folder like UCF-101's with tiny clips."""

from __future__ import annotations

import re
import shlex
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from docs_commands import shell_words
from script_runs import ROOT, read_json, records, run

from diffusion import VidTwinPipeline

PAGE = (ROOT / "docs/recipes/ucf101.md").read_text(encoding="utf-8")
COMMANDS = [
    line.removeprefix("python ")
    for block in re.findall(r"^```bash\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]
CLASSES = ["ApplyEyeMakeup", "Archery", "YoYo"]
FEW = ("num_videos=5", "num_real=5", "allow_few=true", "bootstrap=5", "batch_size=2", "cache=null")
FEATURES = ("features.name=vidtwin_lab.evaluation.features:random_convolutions", "features.path=8")
# What makes a command of the page a matter of seconds; the last word on a key counts.
SMALL = {
    "train_ae.py": ("steps=4", "save_every=4", "validate_every=4", "output=outputs/paper"),
    "encode.py": ("variants=1", "num_workers=0", "batch_size=4", "mixed_precision=no"),
    "train_diffusion.py": ("steps=4", "sample_classes=[Archery]"),
    "sample.py": ("--num-samples", "5", "--steps", "2", "--device", "cpu"),
    "evaluate.py reconstruction": ("lpips=null", "codec.crfs=[20,40]", "num_workers=0", *FEATURES),
    "evaluate.py generation": ("generated.num_inference_steps=2", *FEW, *FEATURES),
}
OUTPUTS = {"configs/diffusion/paper": ("output=outputs/diffusion_paper",)}


def write_avi(path: Path, rng: np.random.Generator) -> None:
    """Twelve frames of noise in a colour, as UCF-101 stores them: MPEG-4 in an AVI, 25 a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    low = rng.integers(0, 200, 3)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(12):
            frame = rng.integers(low, low + 50, (48, 64, 3)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with DATA in it: two videos of each class to train on, one to test on."""
    folder, rng = tmp_path_factory.mktemp("ucf101"), np.random.default_rng(0)
    lists = folder / "DATA" / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    index, train, test = [], [], []
    for number, name in enumerate(CLASSES, start=1):
        index.append(f"{number} {name}\r\n")
        for group in ("g08_c01", "g09_c02", "g01_c01"):
            video = f"{name}/v_{name}_{group}.avi"
            write_avi(folder / "DATA" / "UCF-101" / video, rng)
            if group == "g01_c01":
                test.append(f"{video}\r\n")
            else:
                train.append(f"{video} {number}\r\n")
    for name, lines in (("classInd", index), ("trainlist01", train), ("testlist01", test)):
        (lists / f"{name}.txt").write_text("".join(lines), newline="")
    return folder


def run_small(command: str, folder: Path) -> None:
    script, *words = shell_words(command, folder)
    kind = f"{script} {words[0]}" if script == "evaluate.py" else script
    small = [word.replace("/ae/paper.", "/ae/paper_debug.") for word in words]
    small = [re.sub(r"(/diffusion/\w+)\.yaml", r"\1_debug.yaml", word) for word in small]
    outputs = [word for key, found in OUTPUTS.items() if key in command for word in found]
    run(script.removesuffix(".py"), *small, *SMALL[kind], *outputs, folder=folder).done()


def test_every_command_in_turn_on_tiny_clips(folder: Path) -> None:
    assert {shlex.split(command)[0] for command in COMMANDS} == {
        "train_ae.py", "encode.py", "train_diffusion.py", "sample.py", "evaluate.py",
    }  # fmt: skip
    for command in COMMANDS:
        run_small(command, folder)
    outputs = folder / "outputs"
    assert read_json(outputs / "ucf101_latents" / "train" / "manifest.json")
    for name, prediction in (("diffusion_paper", "sample"), ("diffusion_ucf101", "velocity")):
        pipeline = VidTwinPipeline.from_pretrained(outputs / name / "pipeline")
        assert pipeline.config["class_names"] == CLASSES
        assert pipeline.config["prediction"] == prediction
        assert any("validation/structure_q1" in record for record in records(outputs / name))
    assert pipeline.transformer.sizes.class_conditioning == "adaln"
    samples = read_json(outputs / "ucf101_samples" / "sample.json")["samples"]
    assert [sample["asked"] for sample in samples] == [*CLASSES, *CLASSES[:2]]
    for number, differs in (("2048", "data.height is"), ("10000", "num_videos is 5")):
        report = read_json(outputs / f"ucf101_fvd_{number}" / "generation.json")
        assert any(name.startswith("FVD@5[") for name in report["found"])
        assert report["protocol"]["real"]["n"] == 5
        told = report["protocol"]["compared_with"]["differences"]
        assert any(line.startswith(differs) for line in told), told


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("train_")])
def test_the_trainings_at_full_size_describe_themselves(command: str, folder: Path) -> None:
    script, *words = shell_words(command, folder)
    words = [
        f"autoencoder={ROOT}/configs/ae/paper.yaml" if word.startswith("autoencoder=") else word
        for word in words
    ]
    out = run(script.removesuffix(".py"), *words, "--dry-run", folder=folder).done()
    tokens = {"diffusion/paper": "504 tokens", "diffusion/clips_224": "1,008 tokens"}
    expected = next((n for key, n in tokens.items() if key in command), "4,928 latent values")
    assert expected in out
