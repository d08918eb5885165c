"""encode.py as its users run it: on small models, on the CPU."""

from __future__ import annotations

import functools
import json
import random
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from script_runs import ROOT, contents, run, run_apart, run_until

from diffusion import LatentCache, LatentStats
from vidtwin import VidTwinAutoencoder, draw_noise
from vidtwin.data import DataConfig, build_dataset
from vidtwin.data.synthetic.shapes import LABELS
from vidtwin.reconstruction import weights_digest

CONFIGS = sorted((ROOT / "configs" / "encode").glob("*.yaml"))
DEBUG = "configs/encode/shapes_debug.yaml"
NAMES = ("structure", "dynamics_x", "dynamics_y")

encode = functools.partial(run, "encode")


@pytest.fixture(scope="module")
def clips(write_clips, tmp_path_factory) -> Path:
    """Ten clips with captions, and one file that is none."""
    return write_clips(
        tmp_path_factory.mktemp("clips"), [12] * 10, bad="clip05b.mp4", captions=True
    )


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_describes_itself(config, autoencoder, clips, sheets, tmp_path):
    paths = {"clips": clips, "sprites": sheets}
    data = [f"data.path={path}" for name, path in paths.items() if name in config.stem]
    out = encode(
        "--config", config, "--dry-run", f"autoencoder={autoencoder}", *data,
        f"output={tmp_path / 'run'}",
    ).done()  # fmt: skip
    told = "the data can't be read: data.path must name" if "ucf101" in config.stem else "to do"
    assert told in out
    channels = 6 if config.stem in ("clips", "ucf101") else 3  # means and log-variances, or modes
    assert f"'structure': [{channels}, 2, 2, 2]" in out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("store", ["moments", "mode"])
def test_a_sample_is_what_encoding_it_anew_gives(autoencoder, tmp_path, store):
    out = encode(
        "--config", DEBUG, f"autoencoder={autoencoder}", f"output={tmp_path}", "dtype=float32",
        f"store={store}",
    ).done()  # fmt: skip
    assert "train: 16 clips, 16 encodings, 48 captions" in out
    model = VidTwinAutoencoder.from_pretrained(autoencoder)
    sized: dict[str, Any] = {"num_frames": 4, "height": 16, "width": 16, "shapes": {"size": 200000}}
    for part, count in (("train", 16), ("validation", 4)):
        cache = LatentCache(tmp_path / part)
        assert len(cache) == count
        assert cache.label_names == list(LABELS)
        dataset = build_dataset(DataConfig.from_dict(cache.manifest["data"]))
        digest = weights_digest(model.encoder_parts())
        cache.check(digest, model.sizes, {"part": part, **sized})
        for epoch in range(3):
            for index in range(count):
                expected, came = dataset.get(index, epoch), cache[epoch, index]
                for name in ("caption", "label", "index", "noise_seed", "path"):
                    assert came[name] == expected[name]
                with torch.no_grad():
                    posterior = model.encode(expected["video"][None])
                noise = draw_noise(model.sizes, [expected["noise_seed"]])
                drawn = posterior.sample(noise=noise) if store == "moments" else posterior.mode()
                for name in NAMES:
                    assert torch.allclose(came[name], getattr(drawn, name)[0], atol=1e-5)
        everything = [model.encode(dataset.get(i)["video"][None]) for i in range(count)]
        stats = LatentStats.measure(everything).state_dict()
        saved = LatentStats.from_pretrained(tmp_path / part / "latent_stats").state_dict()
        assert all(torch.allclose(value, saved[key], rtol=1e-4) for key, value in stats.items())


def test_variants_of_files_and_bad_files(autoencoder, clips, tmp_path, caplog):
    out = encode(
        "--config", "configs/encode/clips.yaml", f"autoencoder={autoencoder}",
        f"data.path={clips}", f"output={tmp_path}", "variants=3", "parts=[all]", "shard_size=4",
        "batch_size=5", "num_workers=1", "data.validation_fraction=0", "data.flip=true",
        "data.max_bad_fraction=0.1", "dtype=float32",
    ).done()  # fmt: skip
    assert "10 clips, 30 encodings, 10 captions" in out
    assert "1 files skipped" in out
    assert "clip05b.mp4" in caplog.text
    cache = LatentCache(tmp_path / "all", sample_posterior=False)
    (skipped,) = cache.manifest["skipped"]
    assert skipped["path"].endswith("clip05b.mp4")
    assert skipped["reason"]
    assert not any("clip05b" in path for path in cache.paths)
    model = VidTwinAutoencoder.from_pretrained(autoencoder)
    dataset = build_dataset(
        DataConfig(
            source="folder", path=str(clips), part="all", num_frames=4, height=16, width=16,
            flip=True,
        )
    )  # fmt: skip
    seen = set()
    for position in range(len(cache)):
        for epoch in range(3):
            came = cache[epoch, position]
            expected = dataset.get(came["index"], epoch)
            assert came["path"] == expected["path"]
            assert came["caption"] == expected["caption"] != ""
            with torch.no_grad():
                latents = model.encode(expected["video"][None]).mode()
            for name in NAMES:
                assert torch.allclose(came[name], getattr(latents, name)[0], atol=1e-4)
            seen.add(np.asarray(came["structure"]).tobytes())
    assert len(seen) > 20  # of 30: a window may be drawn twice, and some shapes stay still


def test_too_many_bad_files_stop_it(autoencoder, clips, tmp_path):
    options = ("--config", "configs/encode/clips.yaml", f"autoencoder={autoencoder}",
               f"data.path={clips}", f"output={tmp_path}", "parts=[all]", "num_workers=1",
               "data.validation_fraction=0", "shard_size=4")  # fmt: skip
    for _ in range(2):  # again: what was skipped before is known before the work begins
        start = time.monotonic()
        told = encode(*options, "data.max_bad_fraction=0").refused()
        assert "1 of 11 files can't be used" in told
        assert "clip05b.mp4" in told
        assert time.monotonic() - start < 60
        assert not (tmp_path / "all" / "manifest.json").exists()
    encode(*options, "data.max_bad_fraction=0.5").done()


def test_killed_and_run_again_equals_uninterrupted(autoencoder, tmp_path):
    options = ("--config", DEBUG, f"autoencoder={autoencoder}", "shard_size=1", "max_samples=60",
               "num_workers=1")  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_apart("encode", *options, f"output={whole}").done()
    stop_at, shards = random.randint(1, 50), killed / "train" / "shards"
    run_until(
        lambda: len(list(shards.glob("shard-*"))) >= stop_at,
        *("encode", *options, f"output={killed}"),
    )
    assert not (killed / "train" / "manifest.json").exists()
    run_apart("encode", *options, f"output={killed}").done()
    assert contents(killed) == contents(whole), f"killed after {stop_at} shards"


def test_two_processes_equal_one(autoencoder, clips, tmp_path):
    # With a bad file, which moves the clips behind it, and several parts.
    options = ("--config", "configs/encode/clips.yaml", f"autoencoder={autoencoder}",
               f"data.path={clips}", "variants=2", "shard_size=2", "batch_size=3", "num_workers=1",
               "data.validation_fraction=0.3", "data.max_bad_fraction=0.5")  # fmt: skip
    encode(*options, f"output={tmp_path / 'one'}").done()
    run_apart("encode", *options, f"output={tmp_path / 'two'}", processes=2).done()
    expected = contents(tmp_path / "one")
    assert len([name for name in expected if name.endswith("shard.json")]) >= 6
    assert contents(tmp_path / "two") == expected


def test_run_again_does_nothing_and_more_clips_extend_it(autoencoder, tmp_path):
    options = ("--config", DEBUG, f"autoencoder={autoencoder}", "parts=[train]")
    encode(*options, "max_samples=6", f"output={tmp_path / 'a'}").done()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    out = encode(*options, "max_samples=6", f"output={tmp_path / 'a'}").done()
    assert "is complete: 6 clips" in out
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    for name in ("a", "b"):
        encode(*options, "max_samples=10", f"output={tmp_path / name}").done()
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_the_batch_size_changes_next_to_nothing(autoencoder, tmp_path):
    options = ("--config", DEBUG, f"autoencoder={autoencoder}", "parts=[train]", "dtype=float32")
    for size in (1, 3):
        encode(*options, f"batch_size={size}", f"output={tmp_path / str(size)}").done()
    one, three = (LatentCache(tmp_path / str(size) / "train") for size in (1, 3))
    for index in range(len(one)):
        for name in NAMES:
            assert torch.allclose(one[index][name], three[index][name], atol=1e-5)


def test_class_folders_without_captions(write_clips, autoencoder, tmp_path):
    """No caption is counted; a short clip of the validation part is left out and told."""
    for name in ("run", "walk"):
        write_clips(tmp_path / "clips" / name, [12] * 3)
    options = (
        "--config", DEBUG, f"autoencoder={autoencoder}", f"output={tmp_path / 'cache'}",
        "data.source=classes", f"data.path={tmp_path / 'clips'}", "data.validation_fraction=0.5",
        "max_samples=null", "max_validation_samples=null",
    )  # fmt: skip
    held_out = build_dataset(
        DataConfig(
            source="classes", path=str(tmp_path / "clips"), part="validation",
            validation_fraction=0.5,
        )
    ).clips  # fmt: skip
    short = Path(held_out[0].path)
    write_clips(tmp_path / "short", [12, 2])
    shutil.copy(tmp_path / "short" / "clip01.mp4", short)
    told = encode(*options, "--dry-run").done()
    assert f"0 of {6 - len(held_out)} files looked at can't be used" in told
    assert f"1 of {len(held_out)} files looked at can't be used; {short}: too short: 2" in told
    out = encode(*options).done()
    train = 6 - len(held_out)
    assert f"train: {train} clips, {train} encodings, 0 captions" in out
    left = len(held_out) - 1
    assert f"validation: {left} clips, {left} encodings, 0 captions" in out
    assert "1 files skipped" in out
    (skipped,) = LatentCache(tmp_path / "cache" / "validation").manifest["skipped"]
    assert skipped["path"] == str(short)
    assert "data.short=repeat_last" in skipped["reason"]
    # The cure that the message names takes what is there, and encodes the short clip alone.
    before = contents(tmp_path / "cache" / "train" / "shards")
    out = encode(*options, "data.short=repeat_last").done()
    assert f"validation: {len(held_out)} clips" in out
    assert contents(tmp_path / "cache" / "train" / "shards") == before
    LatentCache(tmp_path / "cache" / "validation")


class TestBadInput:
    """One clear line, exit code 2, and nothing written."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["stores=mode"], "stores.*store"),
            (["store=all"], "`store` must be one of moments, mode, got 'all'"),
            (["dtype=int8"], "`dtype` must be one of float16, float32, got 'int8'"),
            (["batch_size=0"], "`batch_size` must be at least 1, got 0"),
            (["max_samples=0"], "`max_samples` must be at least 1 or null, got 0"),
            (["parts=[test]"], r"`parts` must name some of train, validation, all"),
            (["parts=[]"], r"`parts` must name some of train, validation, all"),
            (["data.part=all"], r"set parts=\[all\]"),
            (["variants=4"], "variants=4 would store the same pixels again: the moving shapes"),
            (
                ["variants=2", "data.source=glob", "data.start=first", "data.crop=center"],
                "nothing is random in data.start, data.crop and data.flip",
            ),
            (["data.height=64"], "data.height=64 differs from model.height=16"),
            (["autoencoder=nowhere"], "nowhere does not exist"),
            (["mixed_precision=fp8"], "`mixed_precision` must be"),
            (["data.source=folder"], "data.path"),
            (["--config", "nowhere.yaml"], r"nowhere\.yaml"),
        ],
        ids=lambda value: value[-1] if isinstance(value, list) else "",
    )
    def test_message(self, autoencoder, tmp_path, arguments, message):
        config = [] if "--config" in arguments else ["--config", DEBUG]
        model = [] if "autoencoder" in arguments[0] else [f"autoencoder={autoencoder}"]
        told = encode(*config, *model, f"output={tmp_path / 'run'}", *arguments).refused()
        assert re.search(message, told), told
        assert not (tmp_path / "run").exists()

    def test_another_cache_in_the_folder(self, autoencoder, tmp_path):
        options = ("--config", DEBUG, f"autoencoder={autoencoder}", f"output={tmp_path}")
        encode(*options).done()
        before = contents(tmp_path)
        told = encode(*options, "data.shapes.seed=1", "store=moments").refused()
        assert "data.shapes.seed is 0 in the cache, now 1" in told
        assert "store is 'mode' in the cache, now 'moments'" in told
        model = VidTwinAutoencoder.from_pretrained(autoencoder)
        with torch.no_grad():
            next(model.head.parameters()).add_(1)
            model.save_pretrained(tmp_path / "decoder")
            encode(*options, f"autoencoder={tmp_path / 'decoder'}").done()
            shutil.rmtree(tmp_path / "decoder")
            next(model.parameters()).add_(1)
        model.save_pretrained(tmp_path / "other")
        told = encode(*options, f"autoencoder={tmp_path / 'other'}").refused()
        digest = json.loads(before["train/manifest.json"])["autoencoder_digest"]
        assert f"autoencoder_digest is '{digest}' in the cache, now '" in told
        shutil.rmtree(tmp_path / "other")
        assert contents(tmp_path) == before

    def test_an_output_that_can_not_be_written(self, autoencoder, tmp_path):
        (tmp_path / "file").write_text("")
        options = ("--config", DEBUG, f"autoencoder={autoencoder}")
        assert (
            "can't write to the folder" in encode(*options, f"output={tmp_path / 'file'}").refused()
        )
