"""Every command of the documentation is one that its script takes.

`test_recipe_ucf101.py` runs those of its page. Here those of docs/own_videos.md are run too, on
tiny clips; of the others each script reads its words, config and paths, and would begin its work.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import lerobot_folders
import pytest
from docs_commands import DOCS, Command, commands_of, lines_of, parse, shell_words
from script_runs import ROOT, read_json, records, run
from scripts_in_process import SCRIPTS, Script, answer_of

from vidtwin_lab.studio import command as studio
from vidtwin_lab.studio import plot

WORKS = {script.words[0]: script.works for script in SCRIPTS.values()}
PARSED = {"studio": studio.parse_arguments, "plot": plot.parse_arguments}
# Whatever these pages name is there, or stands in `world`; of the others, files may be missing.
WHOLE = ("index.md", "concepts.md", "recipes/robots.md", "troubleshooting.md", "studio.md")
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
MISSING = re.compile(
    r"does not exist|is not a (file|folder)|is no latent cache|holds no autoencoder|there is no '"
    r"|is neither a checkpoint|expected a folder with|is no folder|no checkpoint file at"
    r"|no file matches|no such file"
)
# Not to be typed as they stand: an ellipsis, a choice, a name that a text before them explains.
SKETCHES = re.compile(r"\.\.\.$|\.\.\. |\[--|\$|NAME|MOTIONS_|=MODE|STAGE|camera_size|shuffled")


@pytest.fixture(scope="module")
def named(tmp_path_factory: Any, write_clips: Any) -> Path:
    """A folder with what the pages call FOLDER, RUN and so on, and the repository's files."""
    folder: Path = tmp_path_factory.mktemp("named")
    shipped = ROOT / "checkpoints" / "shapes"
    for name in ("configs", "checkpoints", "benchmarks", "tools"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("waves", "wind"):
        write_clips(folder / "FOLDER" / name, [20] * 3, captions=True)
    for name in ("a.mp4", "b.mp4", "clip.mp4"):
        shutil.copy(folder / "FOLDER" / "waves" / "clip00.mp4", folder / name)
    for name in ("CLASSES", "CLIPS", "clips", "more_clips"):
        (folder / name).symlink_to(folder / "FOLDER")
    for name in ("RUN", *(f"outputs/{name}" for name in ("clips_64", "shapes", "robot", "a", "b"))):
        (folder / name).mkdir(parents=True)
        (folder / name / "autoencoder_ema").symlink_to(shipped / "autoencoder")
        (folder / name / "pipeline").symlink_to(shipped)
        (folder / name / "metrics.jsonl").write_text('{"step": 1, "loss/total": 1.0}\n')
    (folder / "PIPELINE").symlink_to(shipped)
    (folder / "outputs" / "physics_paired").symlink_to(folder / "RUN")
    (folder / "i3d_torchscript.pt").touch()
    return folder


@pytest.fixture
def world(named: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, the current one."""
    folder = tmp_path / "world"
    shutil.copytree(named, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


def refusal(command: Command) -> str:
    """What a script says against its words; "" if it would begin, or has done what it is to do."""
    if command.script in PARSED:
        PARSED[command.script](command.words)
        return ""
    if command.script not in WORKS:  # a tool of the repository
        return "" if (ROOT / f"{command.script}.py").is_file() else f"no script {command.script}"
    answer = answer_of(Script((command.script,), WORKS[command.script]), list(command.words))
    return answer.err if answer.code else ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_each_script_takes_its_words(page: Path, world: Path) -> None:
    name = page.relative_to(DOCS).as_posix() if page.is_relative_to(DOCS) else page.name
    if name == "recipes/robots.md":
        shutil.rmtree(world / "FOLDER")
        lerobot_folders.version_3(world / "FOLDER")
        (world / "vidtwin_structure_7_7_8_dynamics_7_8.ckpt").touch()
    for line in lines_of(page.read_text(encoding="utf-8")):
        if SKETCHES.search(line):
            continue
        told = refusal(parse(line))
        assert not told or (name not in WHOLE and MISSING.search(told)), f"{line}\n{told}"


def test_the_first_command_is_the_readmes() -> None:
    first, *_ = commands_of(DOCS / "index.md")
    assert first == commands_of(ROOT / "README.md")[0]
    assert first == Command("sample", ("--prompt", "a red circle moving left"))


def test_a_wrong_word_would_be_found(world: Path) -> None:
    right = "vidtwin train-ae --config ae/clips_64.yaml data.path=FOLDER"
    assert lines_of(f"Text\n\n    {right} \\\n        steps=7\n\n```bash\nls\n{right}\n```\n") == [
        f"{right}          steps=7",
        right,
    ]
    assert not refusal(parse(right))
    for wrong in ("stepz=7", "--confg x", "data.fsp=3"):
        told = refusal(parse(f"{right} {wrong}"))
        assert told and not MISSING.search(told)
    assert "no script" in refusal(parse("python tools/nothing.py now"))


def test_extras_that_are_named_exist() -> None:
    known = set(re.findall(r"^(\w+) =$", (ROOT / "setup.cfg").read_text(), re.MULTILINE))
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    named = {extra for text in texts for found in re.findall(r"\[(all[\w,]*)\]", text)
             for extra in found.split(",")}  # fmt: skip
    assert {"all", "physics", "studio"} <= named <= known


def test_robots_from_the_vector_to_its_probes(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lerobot_folders, "LENGTHS", (20,) * 14)
    monkeypatch.setattr(lerobot_folders, "TASKS", (["pick the cube"],) * 14)
    shutil.rmtree(world / "FOLDER")
    lerobot_folders.version_2(world / "FOLDER")
    page = (DOCS / "recipes" / "robots.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    exec(example, {})
    assert capsys.readouterr().out == "torch.Size([1, 768]) torch.Size([16, 3])\n"
    commands = [parse(line) for line in lines_of(page)]
    command = next(each for each in commands if "data.part=all" in each.words)
    small = ("train_clips=12", "test_clips=2", "probes.steps=2", "networks.steps=2")
    words = [f"{ROOT}/configs/{w}" if w.endswith(".yaml") else w for w in command.words]
    run(command.script, *words, *small, folder=world).done()
    found = read_json(world / "outputs" / "evaluation" / "robot" / "actions.json")["found"]
    assert {"dynamics", "structure", "pixels"} <= found["probes"].keys()


# docs/own_videos.md, command by command: what makes each a matter of seconds.
SMALL = {
    "doctor": ("--files", "2", "--no-steps"),
    "train_ae": ("steps=2", "validate_every=2", "save_every=2", "optimizer.warmup_steps=1",
                 "validation_samples=1", "num_workers=0", "data.validation_fraction=0.4"),
    "reconstruct": ("--max-frames", "16", "--part", "both"),
    "encode": ("variants=1", "num_workers=0", "data.validation_fraction=0.4"),
    "train_diffusion": ("steps=2", "validate_every=2", "save_every=2", "batch_size=2",
                        "optimizer.warmup_steps=1", "validation_samples=1", "model.depth=1",
                        "sample_steps=1"),
    "sample": ("--steps", "2", "--num-videos", "1", "--device", "cpu"),
}  # fmt: skip


def test_own_videos_from_a_folder_to_samples(
    tmp_path: Path, write_clips: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = DOCS / "own_videos.md"
    scripts = [command.script for command in commands_of(page)]
    assert [*SMALL, "studio"] == scripts
    for name in ("waves", "wind"):
        write_clips(tmp_path / "FOLDER" / name, [20] * 4, size=(64, 64))
    monkeypatch.chdir(tmp_path)
    for line in lines_of(page.read_text(encoding="utf-8")):
        words = shell_words(line.removeprefix("vidtwin ").replace(" NAME ", " waves "), tmp_path)
        script, rest = words[0].replace("-", "_"), words[1:]
        if script == "studio":
            assert not refusal(Command(script, tuple(rest)))
        elif script == "doctor":
            assert not answer_of(Script(("doctor",), ()), [*rest, *SMALL[script]]).code
        else:
            shipped = [w.replace("=checkpoints/", f"={ROOT}/checkpoints/") for w in rest]
            config = [f"{ROOT}/configs/{w}" if w.endswith(".yaml") else w for w in shipped]
            run(script, *config, *SMALL[script], folder=tmp_path).done()
    outputs = tmp_path / "outputs"
    assert any("validation/psnr" in record for record in records(outputs / "clips_64"))
    told = [set(record) for record in records(outputs / "diffusion_clips")]
    assert {"loss/structure", "loss/dynamics"} <= set().union(*told)
    assert {"validation/structure", "validation/dynamics"} <= set().union(*told)
    samples = read_json(outputs / "samples" / "sample.json")["samples"]
    assert [sample["asked"] for sample in samples] == ["waves"]
