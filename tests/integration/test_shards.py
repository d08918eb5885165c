"""shards.py as its users run it, and training and encoding from what it makes."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from script_runs import (
    assert_same_records,
    assert_same_weights,
    contents,
    read_json,
    run,
    run_until,
    train_killed_and_again,
    train_on_one_and_two,
)

DEBUG = ("--config", "configs/ae/shards_debug.yaml", "validation_samples=0", "log_every=1")
# Four to a shard, and one that is no video.
NUMBER = 21


@pytest.fixture(scope="module")
def clips(write_clips, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    lengths = [17 + index % 5 for index in range(NUMBER)]
    return write_clips(folder, lengths, size=(32, 32), bad="clip05b.mp4", captions=True)


@pytest.fixture(scope="module")
def shards(clips, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "shards"
    ended = run("shards", f"data.path={clips}", f"output={folder}", "shard_size=4")
    out = ended.done()
    assert "left out clip05b.mp4: can't be opened: Invalid data found" in out
    assert "21 clips in 6 shards" in out and "1 files left out" in out
    return folder


def test_the_report_names_the_bad_files(shards):
    report = read_json(shards / "bad_files.json")
    assert report["files"] == NUMBER + 1
    assert [item["path"] for item in report["bad"]] == ["clip05b.mp4"]
    header, *lines = map(json.loads, (shards / "index.jsonl").read_text().splitlines())
    assert header["clips"] == len(lines) == NUMBER


def test_killed_at_any_moment_and_run_again_it_ends_with_the_same_bytes(clips, shards, tmp_path):
    arguments = (f"data.path={clips}", f"output={tmp_path / 's'}", "shard_size=4", "num_workers=2")
    stop_at = random.randint(1, 5)
    run_until(lambda: len(list((tmp_path / "s").glob("*.tar"))) >= stop_at, "shards", *arguments)
    assert not (tmp_path / "s" / "index.jsonl").exists()
    out = run("shards", *arguments).done()
    assert "21 clips in 6 shards" in out
    assert contents(tmp_path / "s") == contents(shards)
    assert "is complete: 22 videos" in run("shards", *arguments).done()
    assert contents(tmp_path / "s") == contents(shards)


def test_what_it_cannot_do_takes_one_line(clips, shards, tmp_path):
    packing = (f"data.path={clips}", f"output={shards}")
    error = run("shards", *packing, "shard_size=5").refused()
    assert "holds shards of other clips, or made with other settings" in error
    assert "`shard_size` must be at least 1" in run("shards", "shard_size=0").refused()
    assert "data.source must be one of files" in run("shards", "data.source=shapes").refused()
    assert "does not exist" in run("shards", f"data.path={tmp_path / 'gone'}").refused()
    out = run("shards", "--dry-run", packing[0], f"output={tmp_path / 's'}").done()
    assert "22 videos in 1 shards" in out and not (tmp_path / "s").exists()
    out = run("shards", packing[0], "shard_megabytes=0.01", f"output={tmp_path / 's'}").done()
    sizes = [file.stat().st_size for file in (tmp_path / "s").glob("*.tar")]
    assert len(sizes) > 2 and max(sizes) < 40_000


def test_several_processes_are_refused(clips, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    line = run("shards", f"data.path={clips}", f"output={tmp_path / 'out'}").refused()
    assert "shards.py is one process, 2 were started" in line
    assert not (tmp_path / "out").exists()


def test_shards_without_an_index_are_refused_until_it_is_made(shards, tmp_path):
    for shard in shards.glob("*.tar"):
        (tmp_path / shard.name).write_bytes(shard.read_bytes())
    path = f"data.path={tmp_path}"
    train = ("train_ae", *DEBUG, path, f"output={tmp_path / 'run'}")
    command = f"make the index with `vidtwin shards index={tmp_path}`"
    assert command in run(*train, "steps=3").refused()
    assert f"{tmp_path / 'index.jsonl'}: 21 clips" in run("shards", f"index={tmp_path}").done()
    run(*train, "steps=3").done()
    with (tmp_path / "shard-000003.tar").open("ab") as file:
        file.write(b"x")
    assert "shard-000003.tar was changed since" in run(*train, "steps=4").refused()


def test_training_on_shards_is_training_on_the_files(clips, shards, tmp_path):
    options = (*DEBUG, "steps=4", "data.max_bad_fraction=0.2")
    folders = {"files": clips, "shards": shards}
    # The files without the one that is no video, so that both lists are the same.
    table = tmp_path / "clips.jsonl"
    names = sorted(file.name for file in clips.glob("clip??.mp4"))
    table.write_text("".join(json.dumps({"videos": name}) + "\n" for name in names))
    sources = {
        "files": ("data.source=jsonl", f"data.path={table}", f"data.root={clips}"),
        "shards": (f"data.path={shards}", "data.shards.shuffle_shards=null"),
    }
    for name in folders:
        run("train_ae", *options, *sources[name], f"output={tmp_path / name}").done()
    assert_same_records(tmp_path / "files", tmp_path / "shards")
    weights = [tmp_path / name / "autoencoder" for name in folders]
    assert_same_weights(*weights)


def test_training_killed_and_run_again_equals_uninterrupted(shards, tmp_path):
    options = (*DEBUG, "save_every=2", "num_workers=1", f"data.path=file://{shards}",
               "loss.discriminator_weight=0")  # fmt: skip
    whole, killed = train_killed_and_again("train_ae", tmp_path, *options, steps=8)
    assert_same_weights(whole / "autoencoder", killed / "autoencoder")


def test_two_processes_equal_one(shards, tmp_path):
    options = (*DEBUG, f"data.path={shards}", "steps=4", "batch_size=4", "num_workers=2",
               "loss.discriminator_weight=0", "model.query_dropout=0")  # fmt: skip
    train_on_one_and_two("train_ae", tmp_path, *options)


def test_a_cache_of_shards_holds_what_one_of_the_files_does(autoencoder, clips, shards, tmp_path):
    (tmp_path / "empty.yaml").touch()
    options = ("--config", tmp_path / "empty.yaml", f"autoencoder={autoencoder}",
               "batch_size=4", "num_workers=0", "parts=[train]")  # fmt: skip
    sources = {
        "files": ("data.source=folder", f"data.path={clips}", "data.max_bad_fraction=0.2"),
        "shards": ("data.source=shards", f"data.path={shards}"),
    }
    clips_of = {}
    for name, source in sources.items():
        run("encode", *options, *source, f"output={tmp_path / name}").done()
        records = sorted((tmp_path / name).rglob("shard.json"))
        found = [clip for record in records for clip in read_json(record)["clips"]]
        clips_of[name] = [(clip["captions"], clip["label"]) for clip in found]
    assert clips_of["files"] == clips_of["shards"]
    assert len(clips_of["files"]) == NUMBER
