"""The comparison of text encoders: its jobs, its table, and the published figures beside it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vidtwin_lab.language.comparison import collect, write_comparison
from vidtwin_lab.language.comparison_config import CompareConfig, DiffusionStage
from vidtwin_lab.language.published import PUBLISHED, read_published, read_tables
from vidtwin_lab.runtime import jobs as jobs_module
from vidtwin_lab.runtime.jobs import Job, Jobs

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "results" / "published_language.md"
# Writes its own name; stays for a while, or fails, if it is told so.
SCRIPT = """
import sys, time
from pathlib import Path
target = Path(sys.argv[1])
if "fail" in sys.argv:
    print("working"); print("error: no such task"); print("bye"); sys.exit(2)
(target.parent / "begun").touch()
time.sleep(60 if "stay" in sys.argv else 0)
with target.open("a") as stream:
    stream.write("done ")
"""


@pytest.fixture
def script(tmp_path) -> str:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return str(path)


def job(folder: Path, script: str, name: str, *fixed: str, **more: Any) -> Job:
    """A job that writes a file of its name."""
    target = folder / f"{name.replace('/', '_')}.txt"
    return Job(name=name, script=(script, str(target)), fixed=fixed, files=(target,), **more)


def quietly(text: str) -> None:
    """Tells nobody."""


class TestJobs:
    def test_what_is_finished_is_kept(self, script, tmp_path):
        told: list[str] = []
        first, second = (job(tmp_path, script, f"stage/{name}", "steps=3") for name in "ab")
        Jobs(tmp_path, [first, second], ROOT).run(["stage/a"], told.append)
        Jobs(tmp_path, [first, second], ROOT).run(["stage/a", "stage/b"], told.append)
        assert [line.split()[1] for line in told] == ["stage/a", "stage/b"]
        assert first.files[0].read_text() == second.files[0].read_text() == "done "
        described = Jobs(tmp_path, [first, second], ROOT).describe(["stage/a"])
        assert described.startswith("finished stage/a")
        first.files[0].unlink()  # what is lost is made again
        Jobs(tmp_path, [first, second], ROOT).run(["stage/a"], told.append)
        assert first.files[0].read_text() == "done "

    def test_other_settings_are_refused_and_other_places_are_not(self, script, tmp_path):
        Jobs(tmp_path, [job(tmp_path, script, "stage/a", "steps=3")], ROOT).run(
            ["stage/a"], quietly
        )
        moved = job(tmp_path, script, "stage/a", "steps=3", free=("path=elsewhere",))
        assert Jobs(tmp_path, [moved], ROOT).finished(moved)
        changed = job(tmp_path, script, "stage/a", "steps=4")
        with pytest.raises(ValueError, match="differs in steps=3, steps=4"):
            Jobs(tmp_path, [changed], ROOT).run(["stage/a"], quietly)

    def test_a_failure_says_what_the_script_said_and_can_be_mended(self, script, tmp_path):
        failing = job(tmp_path, script, "stage/a", free=("fail",))
        with pytest.raises(ValueError, match=r"stage/a failed \(error: no such task\); see"):
            Jobs(tmp_path, [failing], ROOT).run(["stage/a"], quietly)
        assert "to do" in Jobs(tmp_path, [failing], ROOT).describe(["stage/a"])
        Jobs(tmp_path, [job(tmp_path, script, "stage/a")], ROOT).run(["stage/a"], quietly)

    def test_what_is_needed_comes_first_or_is_asked_for(self, script, tmp_path):
        needed = job(tmp_path, script, "one/a")
        needing = job(tmp_path, script, "two/a", needs=("one/a",))
        both = Jobs(tmp_path, [needed, needing], ROOT)
        with pytest.raises(ValueError, match="two/a needs one/a, not finished"):
            both.run(["two/a"], quietly)
        told: list[str] = []
        both.run(["two/a", "one/a"], told.append)  # in any order
        assert [line.split()[1] for line in told] == ["one/a", "two/a"]

    def test_a_job_without_its_files_is_an_error(self, tmp_path):
        nothing = Job(name="stage/a", make=lambda: None, files=(tmp_path / "absent",))
        with pytest.raises(ValueError, match=r"stage/a ended and left no .*absent"):
            Jobs(tmp_path, [nothing], ROOT).run(["stage/a"], quietly)

    def test_a_job_of_another_terminal_is_waited_for_and_others_are_done(
        self, script, tmp_path, monkeypatch
    ):
        first, second = (job(tmp_path, script, f"stage/{name}") for name in "ab")
        done: list[str] = []
        (tmp_path / "jobs").mkdir()
        with (tmp_path / "jobs" / "stage_a.lock").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)

            def release(seconds: float) -> None:
                done.append(second.files[0].read_text())  # it was done meanwhile
                fcntl.flock(held, fcntl.LOCK_UN)

            monkeypatch.setattr(jobs_module.time, "sleep", release)
            Jobs(tmp_path, [first, second], ROOT).run(["stage/a", "stage/b"], quietly)
        assert done == ["done "]
        assert first.files[0].read_text() == "done "

    @pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "end"])
    def test_a_stopped_terminal_leaves_nothing_that_is_begun_twice(self, script, tmp_path, stop):
        """A script is ended with it; one that outlives it holds the lock, until it ends too."""
        terminal_code = (
            "import signal, sys; from pathlib import Path; sys.path.insert(0, sys.argv[3]);"
            "signal.signal(signal.SIGTERM, signal.default_int_handler);"  # as the script has it
            "from jobs import Job, Jobs; folder, script = Path(sys.argv[1]), sys.argv[2];"
            "job = Job(name='stage/a', script=(script, str(folder / 'a.txt'), 'stay'));"
            "Jobs(folder, [job], Path('.')).run(['stage/a'])"
        )
        # Without the rest of the package, which takes seconds to import.
        place = str(Path(jobs_module.__file__).parent)
        command = [sys.executable, "-c", terminal_code, str(tmp_path), script, place]
        terminal = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            deadline = time.monotonic() + 120
            while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            os.kill(terminal.pid, stop)
            terminal.wait(60)
            with (tmp_path / "jobs" / "stage_a.lock").open("w") as lock:
                if stop == signal.SIGKILL:
                    with pytest.raises(BlockingIOError):
                        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.killpg(terminal.pid, signal.SIGKILL)  # the script
                    fcntl.flock(lock, fcntl.LOCK_EX)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            record = tmp_path / "jobs" / "stage_a.json"
            begun = json.loads(record.read_text()) if record.exists() else {"finished": False}
            assert not begun["finished"]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(terminal.pid, signal.SIGKILL)


class TestPublished:
    def test_every_figure_is_found_on_the_page(self):
        found = read_published(PAGE)
        assert set(found) == set(PUBLISHED)
        assert found["GPT (test)"]["glue/stsb/spearman"] == "80.0"
        assert found["BERT base (test; SQuAD dev)"]["squad/squad1/exact"] == "80.8"
        assert found["BERT base (test; SQuAD dev)"]["squad/squad1/f1"] == "88.5"
        assert found["BERT base, left to right (dev)"]["squad/squad1/f1"] == "77.8"
        assert found["ELECTRA small (dev)"]["squad/squad1/exact"] == "75.8"
        for title, sources in PUBLISHED.items():
            named = {name for each in sources for names in each.columns.values() for name in names}
            assert set(found[title]) == named, title
            assert all(10 < float(figure) < 100 for figure in found[title].values()), title

    def test_a_page_without_a_row_is_refused(self, tmp_path):
        page = tmp_path / "page.md"
        page.write_text(PAGE.read_text().replace("| left to right |", "| gone |"))
        with pytest.raises(ValueError, match="no row 'left to right' in a table 'BERT, Table 5"):
            read_published(page)
        with pytest.raises(ValueError, match="the published figures can't be read"):
            read_published(tmp_path / "absent.md")

    def test_tables_are_told_apart(self):
        text = "## 1. One\n| a | b |\n|-|-|\n| x | 1 |\n\n| c | d |\n|-|-|\n| y | – |\n## 2. Two\n"
        first, second = read_tables(text)
        assert first.header == ("a", "b")
        assert first.rows == {"x": ("x", "1")}
        assert (second.section, second.rows["y"][1]) == (1, "–")


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))  # YAML reads it too


@pytest.fixture
def compared(tmp_path) -> Path:
    """What the stages leave: GLUE with three seeds of one text encoder, one of the other."""
    for encoder, family in (("mlm", "bert"), ("clm", "gpt2")):
        pretrained = tmp_path / "pretrain" / encoder
        write(pretrained / "language_model" / "tokenizer.json", {"vocab": 1})
        model = {"family": family, "max_positions": 8}
        config = {
            "batch_size": 4,
            "output": encoder,
            "objective": {"name": encoder},
            "model": model,
        }
        write(pretrained / "config.yaml", config)
        lines = [{"step": 10, "samples_per_second": 2.0, "tokens_per_sample": 6.0},
                 {"step": 10, "validation/loss": 2.0},
                 {"step": 30, "samples_per_second": 4.0, "tokens_per_sample": 8.0}]  # fmt: skip
        (pretrained / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for encoder, seed, value in (
        ("mlm", 0, 0.9),
        ("mlm", 1, 0.5),
        ("mlm", 2, 0.6),
        ("clm", 0, 0.4),
    ):
        glue(tmp_path, encoder, seed, value)
    return tmp_path


def glue(folder: Path, encoder: str, seed: int, value: float, **settings: Any) -> None:
    own = {"name": f"{folder}/{encoder}", "parameters": 5_000_000, "causal": encoder == "clm"}
    task = {
        "trained_on": 10,
        "texts": {"tokens": seed},
        "files": {"dev": {"path": encoder, "n": 3}},
    }
    identity = {"text_encoder": own, "settings": {"epochs": 2, **settings}, "task": task}
    write(
        folder / "glue" / f"{encoder}_seed{seed}" / "finished" / f"sst2_seed{seed}.json",
        {"measures": {"accuracy": value}, "identity": identity, "made_by": {"processes": 1}},
    )


def config(*stages: str, **changes: Any) -> CompareConfig:
    """What is compared: the stages' results of tiny text encoders, and of one random baseline."""
    return CompareConfig(**{
        "stages": stages, "objectives": ("mlm", "clm"), "random_baselines": ("mlm",),
        "tasks": ("sst2",), "diffusion": DiffusionStage(random_baselines=False), **changes,
    })  # fmt: skip


WANTED = config("glue", "adherence")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bidirectional": ("mlm",)}, r"`bidirectional` must be different names of clm; got"),
        (
            {"bidirectional": ("clm",), "objectives": ("prefix",)},
            r"`bidirectional` must be of objectives=\['prefix'\], .*; got \['clm'\]",
        ),
        ({"objectives": ("prefix_lm",)}, "`objectives` must be .* mlm, span, rtd, clm, prefix;"),
    ],
)
def test_what_can_not_be_compared(changes, message):
    with pytest.raises(ValueError, match=message):
        config("glue", **changes)


class TestTable:
    def test_medians_spreads_and_what_is_missing(self, compared):
        text = write_comparison(compared, WANTED, PAGE)
        rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:5]]
                for line in text.splitlines() if line.startswith("|")}  # fmt: skip
        assert rows["SST-2 accuracy"] == [
            "60.0 (50.0 to 90.0)", "40.0, 1 of 3 seeds", "not run"]  # fmt: skip
        # Nothing was asked of the random baseline there, and nothing was done by the others.
        assert rows["prompt: shape"] == ["not run", "not run", ""]
        assert rows["attention"] == ["bidirectional", "causal", ""]
        assert rows["parameters, million"] == ["5", "5", ""]
        assert rows["steps"] == ["30", "30", "0"]
        # 30 steps of 4 samples of 7 tokens; 10 steps at 2 samples a second and 20 at 4.
        content = json.loads((compared / "compare_text_encoders.json").read_text())
        own = content["protocol"]["pretraining"]["mlm"]
        assert (own["tokens"], own["seconds"]) == (840, 40)
        assert own["validation"] == {"validation/loss": 2.0}
        found = content["found"]
        assert found["text_encoders"]["mlm"]["glue/sst2/accuracy"] == {
            "median": 0.6, "low": 0.5, "high": 0.9, "values": [0.9, 0.5, 0.6],
            "seeds": [0, 1, 2]}  # fmt: skip
        assert found["text_encoders"]["random_mlm"]["glue/sst2/accuracy"] is None
        assert "clm_seed1 glue/sst2/accuracy" in found["missing"]
        assert "random_mlm_seed0 adherence/prompt/shape" not in found["missing"]
        assert len(found["missing"]) == 2 + 3 + 2 * 3 * 5
        assert f"{len(found['missing'])} measurements are not finished" in text
        assert found["published"]["GPT (test)"] == {"glue/sst2/accuracy": "91.3"}
        assert (compared / "compare_text_encoders.png").stat().st_size > 1000
        lines = (compared / "compare_text_encoders.csv").read_text().splitlines()
        assert lines[1] == "glue/sst2/accuracy,mlm,0,0.9"
        assert len(lines) == 1 + 4

    def test_a_bidirectional_reading_stands_beside_its_text_encoder(self, compared):
        asked = ("clm", "prefix")
        wanted = config("glue", objectives=asked, bidirectional=("clm",), random_baselines=())
        assert wanted.encoders == wanted.conditioning == ("clm", "bidirectional_clm", "prefix")
        write(compared / "pretrain/bidirectional_clm/language_model/tokenizer.json", {"vocab": 1})
        text = write_comparison(compared, wanted, PAGE)
        assert (
            "| next token (clm) | next token, read bidirectionally (clm) "
            "| next token after a prefix (prefix) |"
        ) in text
        assert "| steps | 30 | 30 | 0 |" in text  # it was pretrained as the other

    def test_words_alone_are_a_median_too(self, compared):
        for seed, alone in enumerate((0.9, 0.3, 0.5)):
            found = {"accuracy": {"median": 0.7}, "words_alone": {"median": alone}}
            content = {"protocol": {}, "found": {"color": found}}
            write(compared / "probe" / f"mlm_seed{seed}" / "probe.json", content)
        assert "(words alone: 50.0)" in write_comparison(compared, WANTED, PAGE)

    def test_nothing_finished_is_a_table_too(self, tmp_path):
        text = write_comparison(tmp_path, WANTED, PAGE)
        assert "| SST-2 accuracy | not run | not run | not run |" in text

    def test_seeds_that_are_not_asked_for_are_not_counted(self, compared):
        wanted = config("glue", objectives=("mlm",), random_baselines=(), seeds=(0, 2))
        assert "75.0 (60.0 to 90.0)" in write_comparison(compared, wanted, PAGE)

    def test_readers_that_were_treated_unlike_are_refused(self, compared):
        glue(compared, "clm", 0, 0.4, epochs=3)
        with pytest.raises(ValueError, match="glue of mlm_seed0 and of clm_seed0 differ in settin"):
            collect(compared, WANTED)
        glue(compared, "clm", 0, 0.4)
        write(compared / "pretrain" / "clm" / "language_model" / "tokenizer.json", {"vocab": 2})
        with pytest.raises(ValueError, match="pretrain of mlm and of clm differ in tokenizer"):
            collect(compared, WANTED)

    def test_what_is_there_is_shown_without_being_asked_for(self, compared):
        wanted = config("table", objectives=("mlm",), random_baselines=())
        text = write_comparison(compared, wanted, PAGE)
        assert "| SST-2 accuracy | 60.0 (50.0 to 90.0) |" in text
        assert "not finished" not in text
