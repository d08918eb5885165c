"""The latent cache: what is read is what was written, whenever the writing was killed."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion import LatentCache, build_latent_loader, iterate_latents
from diffusion.cache import MAX_OPEN_SHARDS
from diffusion.cache_writer import CacheWriter
from vidtwin import (
    AutoencoderConfig,
    DiagonalGaussian,
    VidTwinPosterior,
    draw_noise,
    file_digest,
    noise_seed_for,
)

NAMES = ("structure", "dynamics_x", "dynamics_y")
SIZES = AutoencoderConfig(
    num_frames=3,
    height=8,
    width=12,
    patch_size=(1, 2, 2),
    structure_channels=2,
    dynamics_channels=3,
    num_queries=2,
)
BAD = 4
CLIPS = 11
VARIANTS = 2


def posterior_of(
    index: int, variant: int = 0, sizes: AutoencoderConfig = SIZES
) -> VidTwinPosterior:
    """What an autoencoder would give for a clip: (1, ...)."""
    parts = []
    for number, shape in enumerate(
        (sizes.structure_shape, sizes.dynamics_x_shape, sizes.dynamics_y_shape)
    ):
        generator = torch.Generator().manual_seed(1000 * index + 10 * variant + number)
        mean, logvar = torch.randn(2, 1, *shape, generator=generator)
        parts.append(DiagonalGaussian(mean * 3 + 1, logvar - 2))
    return VidTwinPosterior(*parts)


def row_of(index: int, variant: int) -> dict[str, Any]:
    captions = [f"clip {index}, wording {epoch}" for epoch in range(3)]
    return {
        "index": index,
        "variant": variant,
        "path": f"clips/{index}.mp4",
        "label": index % 3 - 1,
        "captions": captions,
    }


def writer_for(folder: Path, **changes: Any) -> CacheWriter:
    options: dict[str, Any] = {
        "autoencoder_config": SIZES,
        "autoencoder_digest": "0123456789abcdef",
        "data": {"source": "folder", "path": "clips", "seed": 7, "fps": 8.0},
        "num_clips": CLIPS,
        "label_names": ["a", "b"],
        "clips_digest": "list",
        "dtype": "float32",
        "shard_size": 4,
        "options": {"variants": VARIANTS},
        "versions": {"torch": "1"},
    }
    return CacheWriter(folder, **options | changes)


def encode(writer: CacheWriter, batch_size: int = 3, bad: tuple[int, ...] = (BAD,)) -> None:
    """What encode.py does, with made-up posteriors."""
    rows: list[dict[str, Any]] = []
    batches: list[VidTwinPosterior] = []
    skipped: list[tuple[str, str]] = []
    for shard, keys, last in writer.batches(writer.missing(), VARIANTS, batch_size):
        good = [key for key in keys if key[0] not in bad]
        rows += [row_of(*key) for key in good]
        if good:
            ones = [posterior_of(*key).parts() for key in good]
            batches.append(
                VidTwinPosterior(
                    *(
                        DiagonalGaussian(
                            torch.cat([part.mean for part in parts]),
                            torch.cat([part.logvar for part in parts]),
                        )
                        for parts in zip(*ones, strict=True)
                    )
                )
            )
        skipped += [(f"clips/{index}.mp4", "broken") for index, _ in keys if index in bad]
        if last:
            writer.write(shard, rows, batches, skipped)
            rows, batches, skipped = [], [], []


def make(folder: Path, **changes: Any) -> dict[str, Any]:
    writer = writer_for(folder, **changes)
    writer.claim()
    if not writer.complete():
        encode(writer)
        writer.finish()
    return json.loads((folder / "manifest.json").read_text())


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "cache"
    make(folder)
    return folder


@pytest.fixture
def copied(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "cache"))


class TestReading:
    def test_gives_back_what_was_written(self, made):
        cache = LatentCache(made, sample_posterior=False)
        assert len(cache) == CLIPS - 1
        assert cache.label_names == ["a", "b"]
        indices = [index for index in range(CLIPS) if index != BAD]
        for epoch in range(5):
            for position, index in enumerate(indices):
                sample = cache[epoch, position]
                expected = posterior_of(index, epoch % VARIANTS).mode()
                for name in NAMES:
                    assert sample[name].dtype == torch.float32
                    assert torch.equal(sample[name], getattr(expected, name)[0])
                assert sample["caption"] == f"clip {index}, wording {epoch % 3}"
                assert sample["index"] == index
                assert sample["label"] == index % 3 - 1
                assert sample["path"] == f"clips/{index}.mp4"
                assert sample["noise_seed"] == noise_seed_for(7, epoch, index)

    def test_draws_what_the_posterior_itself_would(self, made):
        cache = LatentCache(made)
        for epoch in range(3):
            noise = draw_noise(SIZES, [noise_seed_for(7, epoch, 2)])
            expected = posterior_of(2, epoch % VARIANTS).sample(noise=noise)
            for name in NAMES:
                assert torch.equal(cache[epoch, 2][name], getattr(expected, name)[0])
        other = LatentCache(made, seed=8)[0, 2]["structure"]
        assert not torch.equal(other, cache[0, 2]["structure"])

    def test_an_index_is_epoch_0(self, made):
        cache = LatentCache(made)
        assert torch.equal(cache[3]["structure"], cache[0, 3]["structure"])
        with pytest.raises(IndexError, match=r"\[0, 10\), got 10"):
            cache[10]

    def test_half_precision_rounds_and_no_more(self, tmp_path):
        make(tmp_path, dtype="float16")
        sample = LatentCache(tmp_path, sample_posterior=False)[0, 1]
        expected = posterior_of(1).mode().structure[0]
        assert torch.equal(sample["structure"], expected.half().float())

    def test_modes(self, tmp_path, made):
        manifest = make(tmp_path, store="mode")
        assert manifest["shapes"]["structure"] == list(SIZES.structure_shape)
        cache, moments = LatentCache(tmp_path), LatentCache(made, sample_posterior=False)
        for position in range(len(cache)):
            for name in NAMES:
                assert torch.equal(cache[position][name], moments[position][name])
        with pytest.raises(ValueError, match="stores modes, got sample_posterior=True"):
            LatentCache(tmp_path, sample_posterior=True)

    @pytest.mark.parametrize("store", ["moments", "mode"])
    def test_statistics_are_those_of_all_rows(self, tmp_path, store):
        make(tmp_path, store=store)
        stats = LatentCache(tmp_path).stats
        keys = [(i, v) for i in range(CLIPS) if i != BAD for v in range(VARIANTS)]
        for place, name in enumerate(NAMES):
            parts = [posterior_of(*key).parts()[place] for key in keys]
            mean = np.stack([part.mean[0].double().numpy() for part in parts])
            axes = (0, *range(2, mean.ndim))
            logvar = np.stack([part.logvar[0].double().numpy() for part in parts])
            variance = mean.var(axes) + np.exp(logvar).mean(axes)
            assert np.allclose(getattr(stats, f"{name}_mean"), mean.mean(axes), rtol=1e-6)
            assert np.allclose(getattr(stats, f"{name}_std"), np.sqrt(variance), rtol=1e-6)

    def test_all_captions(self, made):
        captions = LatentCache(made).all_captions()
        assert captions == sorted(set(captions))
        assert len(captions) == 3 * (CLIPS - 1)

    def test_goes_into_a_worker_without_its_maps(self, made):
        cache = LatentCache(made)
        expected = cache[0]["structure"]
        assert len(pickle.dumps(cache)) < 20_000
        assert torch.equal(pickle.loads(pickle.dumps(cache))[0]["structure"], expected)

    def test_keeps_few_files_open(self, tmp_path, monkeypatch):
        make(tmp_path, shard_size=1)
        monkeypatch.setattr("diffusion.cache.MAX_OPEN_SHARDS", 2)
        assert MAX_OPEN_SHARDS * 3 < 1000
        cache = LatentCache(tmp_path)
        first = [cache[i]["structure"] for i in range(len(cache))]
        assert len(cache._open) == 2
        assert all(torch.equal(cache[i]["structure"], value) for i, value in enumerate(first))

    def test_arrays_are_mapped(self, made):
        assert all(isinstance(array, np.memmap) for array in LatentCache(made)._arrays(0))


class TestLoader:
    def test_the_stream_does_not_depend_on_ranks_workers_or_resuming(self, made):
        cache = LatentCache(made)

        def batches(number: int, **options: Any) -> list[dict[str, Any]]:
            loader = build_latent_loader(cache, batch_size=4, seed=3, **options)
            return list(islice(loader, number))

        whole = batches(7)
        assert whole[0]["structure"].shape == (4, *SIZES.structure_shape)
        assert {key for batch in whole for key in batch} == {
            *NAMES, "label", "index", "noise_seed", "caption", "path",
        }  # fmt: skip
        assert whole[0]["noise_seed"].dtype == torch.int64
        ranks = [batches(7, rank=rank, world_size=2) for rank in range(2)]
        for batch, *shares in zip(whole, *ranks, strict=True):
            for name in (*NAMES, "index", "noise_seed"):
                assert torch.equal(batch[name], torch.cat([share[name] for share in shares]))
            assert batch["caption"] == [c for share in shares for c in share["caption"]]
        for other in (batches(2, start_batch=5), batches(7, num_workers=1)[5:]):
            for expected, came in zip(whole[5:], other, strict=True):
                assert torch.equal(expected["structure"], came["structure"])
                assert expected["caption"] == came["caption"]

    def test_every_clip_once_in_each_epoch(self, made):
        loader = build_latent_loader(LatentCache(made), batch_size=5, seed=0)
        indices = torch.cat([batch["index"] for batch in islice(loader, 4)]).tolist()
        expected = [index for index in range(CLIPS) if index != BAD]
        assert sorted(indices[:10]) == sorted(indices[10:]) == expected
        assert indices[:10] != indices[10:]

    def test_once_through_in_order(self, made):
        cache = LatentCache(made)
        for ranks in (1, 3):
            seen = [
                index
                for rank in range(ranks)
                for batch in iterate_latents(cache, batch_size=2, rank=rank, world_size=ranks)
                for index in batch["index"].tolist()
            ]
            assert sorted(seen) == [index for index in range(CLIPS) if index != BAD]
        some = list(iterate_latents(cache, batch_size=2, max_samples=3))
        assert [batch["index"].tolist() for batch in some] == [[0, 1], [2]]

    def test_refuses_what_can_not_be_divided(self, made):
        with pytest.raises(ValueError, match="multiple of the 2 processes"):
            build_latent_loader(LatentCache(made), batch_size=3, seed=0, world_size=2)


class Killed(BaseException):
    """Stands for a SIGKILL between two operations."""


def killed_at(monkeypatch, number: int, action) -> bool:
    """Whether `action` was stopped before its operation `number` on the disk."""
    count = 0

    def counted(original):
        def operation(*arguments, **options):
            nonlocal count
            count += 1
            if count > number:
                raise Killed
            return original(*arguments, **options)

        return operation

    with monkeypatch.context() as patch:
        for owner, name in (
            (np, "save"), (os, "replace"), (os, "fsync"), (Path, "rename"), (Path, "mkdir"),
            (Path, "unlink"), (Path, "write_text"), (shutil, "rmtree"),
        ):  # fmt: skip
            patch.setattr(owner, name, counted(getattr(owner, name)))
        try:
            action()
        except Killed:
            return True
    return False


class TestKilled:
    # Two shards, of which one has a clip that is skipped.
    small = {"num_clips": 5, "shard_size": 3}  # noqa: RUF012

    def test_at_any_operation_and_run_again_equals_uninterrupted(self, tmp_path, monkeypatch):
        make(tmp_path / "whole", **self.small)
        expected = content(tmp_path / "whole")
        number, killed = random.randint(0, 1), True
        while killed:
            folder = tmp_path / str(number)
            action = partial(make, folder, **self.small)
            killed = killed_at(monkeypatch, number, action)
            if (folder / "manifest.json").exists():
                assert content(folder) == expected
            else:
                with pytest.raises(ValueError, match=r"unfinished|no latent cache"):
                    LatentCache(folder)
            action()
            assert content(folder) == expected, f"killed before operation {number}"
            number += 2
        assert number > 40

    def test_while_a_finished_cache_grows(self, tmp_path, monkeypatch):
        make(tmp_path / "grown", **self.small)
        expected = content(tmp_path / "grown")
        make(tmp_path / "before", num_clips=4, shard_size=3)
        for number in random.sample(range(35), 8):
            folder = Path(shutil.copytree(tmp_path / "before", tmp_path / str(number)))
            killed_at(monkeypatch, number, partial(make, folder, **self.small))
            if (folder / "manifest.json").exists():
                LatentCache(folder, verify=True)
            make(folder, **self.small)
            assert content(folder) == expected, f"killed before operation {number}"

    def test_keeps_complete_shards(self, tmp_path):
        writer = writer_for(tmp_path)
        writer.claim()
        encode(writer)
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
        shutil.rmtree(tmp_path / "shards" / "shard-00001")
        again = writer_for(tmp_path)
        again.claim()
        assert [shard.first for shard in again.missing()] == [4]
        encode(again)
        again.finish()
        for path, time in before.items():
            assert ("shard-00001" in str(path)) == (path.stat().st_mtime_ns != time)

    def test_the_order_of_the_shards_does_not_matter(self, made, tmp_path, monkeypatch):
        writer = writer_for(tmp_path)
        writer.claim()
        for shard in reversed(writer.missing()):
            with monkeypatch.context() as patch:
                patch.setattr(writer, "missing", partial(list, [shard]))
                encode(writer, batch_size=5)
        writer.finish()
        assert content(tmp_path) == content(made)


class TestDamage:
    @pytest.mark.parametrize(
        ("break_it", "message"),
        [
            (lambda f: shutil.rmtree(f), "shard .*shard-00001 is missing"),
            (lambda f: (f / "shard.json").unlink(), r"shard-00001/shard\.json is missing"),
            (
                lambda f: (f / "shard.json").write_text("{"),
                r"shard-00001/shard\.json can't be read",
            ),
            (lambda f: (f / "shard.json").write_text("{}"), "shard-00001 lacks 'first_clip'"),
            (
                lambda f: (f / "dynamics_x.npy").unlink(),
                r"shard-00001 is damaged: dynamics_x\.npy is missing",
            ),
            (
                lambda f: (f / "structure.npy").write_bytes(
                    (f / "structure.npy").read_bytes()[:-9]
                ),
                r"shard-00001 is damaged: structure\.npy has .* bytes, expected",
            ),
        ],
        ids=["folder", "record", "json", "empty", "field", "truncated"],
    )
    def test_is_named_and_mended_by_encoding_again(self, made, copied, break_it, message, caplog):
        shard = copied / "shards" / "shard-00001"
        break_it(shard)
        with pytest.raises(ValueError, match=message) as caught:
            LatentCache(copied)
        assert "\n" not in str(caught.value)
        make(copied)
        assert content(copied) == content(made)
        if "is missing" not in message or "npy" in message or "json" in message:
            assert "encoding again: " in caplog.text

    def test_a_flipped_bit_is_found_and_its_shard_alone_made_again(self, made, copied):
        path = copied / "shards" / "shard-00002" / "dynamics_y.npy"
        changed = bytearray(path.read_bytes())
        changed[-1] ^= 1
        path.write_bytes(changed)
        LatentCache(copied, verify=False)
        with pytest.raises(ValueError, match=r"shard-00002 .* bytes of dynamics_y\.npy .* changed"):
            LatentCache(copied)
        kept = {
            file: file.stat().st_mtime_ns
            for file in (copied / "shards").rglob("*.npy")
            if file.parent != path.parent
        }
        make(copied)
        assert content(copied) == content(made)
        assert all(file.stat().st_mtime_ns == before for file, before in kept.items())

    def test_a_value_that_is_not_finite_is_found(self, copied):
        """Also where the sums are those of the file, as of one that another program made."""
        shard = copied / "shards" / "shard-00001"
        array = np.load(shard / "structure.npy")
        array.flat[5] = np.nan
        np.save(shard / "structure.npy", array)
        with pytest.raises(ValueError, match=r"shard-00001 .*structure\.npy have changed"):
            LatentCache(copied)
        record = json.loads((shard / "shard.json").read_text())
        record["files"]["structure.npy"]["sha256"] = file_digest(shard / "structure.npy")
        (shard / "shard.json").write_text(json.dumps(record))
        (copied / "sums.json").unlink()
        with pytest.raises(
            ValueError, match=r"shard-00001 .*structure\.npy has values such as NaN"
        ):
            LatentCache(copied)

    @pytest.mark.parametrize(
        "file", ["manifest.json", "shards/shard-00001/shard.json", "latent_stats/config.json"]
    )
    def test_altered_records_are_found(self, made, copied, file):
        content_before = (copied / file).read_text()
        (copied / file).write_text(content_before.replace("1", "2", 1))
        with pytest.raises(ValueError, match=rf"damaged: {file} .*altered|can't be|encod"):
            LatentCache(copied)
        (copied / file).write_text(content_before)
        LatentCache(copied)

    def test_clips_that_were_skipped_can_be_had_without_the_others(self, tmp_path, caplog):
        """By holding short ones to the end, and by mending files; nothing else is made again."""
        data = {"source": "folder", "path": "clips", "seed": 7, "fps": 8.0, "short": "skip"}
        clip = tmp_path / "clip.mp4"
        clip.touch()
        writer = writer_for(tmp_path / "cache", data=data)
        writer.claim()
        encode(writer)
        shard, other = writer.shards[1], writer.shards[2]
        for one, skip in ((shard, ("clips/4.mp4", "too short: 3")), (other, (str(clip), "bad"))):
            path = one.path / "shard.json"
            record = json.loads(path.read_text()) | {
                "skipped": [{"path": skip[0], "reason": skip[1]}]
            }
            path.write_text(json.dumps(record))
        writer.finish()
        assert writer.complete()
        held = writer_for(tmp_path / "cache", data=data | {"short": "repeat_last"})
        held.check()
        assert held.missing() == [shard]
        os.utime(clip, (2e9, 2e9))
        assert writer.missing() == [other]
        held.claim()
        encode(held, bad=())
        held.finish()
        assert LatentCache(tmp_path / "cache").manifest["data"]["short"] == "repeat_last"
        with pytest.raises(ValueError, match=r"data\.short is 'repeat_last' in the cache"):
            writer.check()

    def test_a_broken_header_is_named(self, copied):
        path = copied / "shards" / "shard-00000" / "structure.npy"
        path.write_bytes(bytes(8) + path.read_bytes()[8:])
        with pytest.raises(ValueError, match=r"shard-00000 is damaged: structure\.npy"):
            LatentCache(copied, verify=False)[0]

    def test_never_unpickles(self, copied):
        path = copied / "shards" / "shard-00000" / "structure.npy"
        size = path.stat().st_size
        with path.open("wb") as file:
            np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
            file.write(bytes(size - file.tell()))
        with pytest.raises(ValueError, match="shard-00000 is damaged"):
            LatentCache(copied, verify=False)[0]

    def test_statistics_and_manifest(self, copied, made):
        shutil.rmtree(copied / "latent_stats")
        with pytest.raises(
            ValueError, match=r"latent_stats can't be read; run encode.py once more"
        ):
            LatentCache(copied)
        make(copied)
        assert content(copied) == content(made)
        (copied / "manifest.json").write_text("[]")
        with pytest.raises(ValueError, match=r"manifest\.json must hold a JSON object, got list"):
            LatentCache(copied)

    def test_folders_without_a_cache(self, made, tmp_path):
        with pytest.raises(ValueError, match=r"no latent cache, manifest\.json is missing"):
            LatentCache(tmp_path)
        shutil.copytree(made, tmp_path / "train")
        with pytest.raises(ValueError, match="it holds the caches train: name one of them"):
            LatentCache(tmp_path)
        (tmp_path / "train" / "manifest.json").unlink()
        with pytest.raises(ValueError, match=r"unfinished: run encode\.py once more"):
            LatentCache(tmp_path / "train")


class TestRefuses:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"autoencoder_digest": "f"}, "autoencoder_digest is '0123456789abcdef' .* now 'f'"),
            (
                {"data": {"source": "folder", "path": "clips", "seed": 8, "fps": 8.0}},
                "data.seed is 7 in the cache, now 8",
            ),
            ({"store": "mode"}, "store is 'moments' in the cache, now 'mode'"),
            ({"dtype": "float16"}, "dtype is 'float32' in the cache, now 'float16'"),
            ({"shard_size": 5}, "shard_size is 4 in the cache, now 5"),
            ({"clips_digest": "other"}, "clips_digest is 'list' in the cache, now 'other'"),
            ({"options": {"variants": 3}}, "variants is 2 in the cache, now 3"),
            ({"label_names": ["a"]}, "label_names is"),
        ],
    )
    def test_another_cache_in_the_folder(self, made, changes, message):
        before = content(made)
        with pytest.raises(ValueError, match=message):
            writer_for(made, **changes).claim()
        assert content(made) == before

    def test_other_versions_while_there_is_work(self, copied):
        changed = {"versions": {"torch": "2"}}
        writer_for(copied, **changed).claim()
        shutil.rmtree(copied / "shards" / "shard-00000")
        with pytest.raises(ValueError, match=r"versions\.torch is '1' in the cache, now '2'"):
            writer_for(copied, **changed).claim()

    def test_clips_may_have_moved(self, copied):
        data = {"source": "folder", "path": "elsewhere", "seed": 7, "fps": 8.0}
        assert writer_for(copied, data=data).complete()
        writer_for(copied, data=data).claim()

    def test_a_run_with_another_autoencoder_or_config(self, made):
        cache = LatentCache(made)
        cache.check("0123456789abcdef", SIZES, {"fps": 8.0})
        cache.check(autoencoder_config=json.loads(json.dumps(vars(SIZES))))
        # The encoder is the same: a decoder whose seams are mended draws other pictures of it.
        cache.check(autoencoder_config=replace(SIZES, patch_overlap=True, refinement_channels=8))
        # A cache from before a key was there.
        del cache.manifest["autoencoder_config"]["structure_frame"]
        del cache.manifest["autoencoder_config"]["structure_extractor"]  # made before it
        cache.check(autoencoder_config=SIZES)
        with pytest.raises(ValueError, match="digest 0123456789abcdef in the cache, now f"):
            cache.check("f")
        other = AutoencoderConfig(**{**vars(SIZES), "num_queries": 5})
        with pytest.raises(ValueError, match=r"autoencoder\.num_queries is 2 in the cache, now 5"):
            cache.check("0123456789abcdef", other)
        with pytest.raises(ValueError, match=r"data\.fps is 8\.0 in the cache, now 4\.0"):
            cache.check(data={"fps": 4.0})

    @pytest.mark.parametrize(
        ("value", "dtype", "message"),
        [
            (1e6, "float16", "`structure` latent of clips/1.mp4 is too large for float16; set dt"),
            (float("nan"), "float32", "`structure` latent of clips/1.mp4 is not finite"),
        ],
    )
    def test_latents_that_can_not_be_stored(self, tmp_path, value, dtype, message):
        writer = writer_for(tmp_path, dtype=dtype, num_clips=2)
        writer.claim()
        batches = [posterior_of(0), posterior_of(1)]
        batches[1].structure.mean[0, 0, 0, 0, 0] = value
        with pytest.raises(ValueError, match=message):
            writer.write(writer.shards[0], [row_of(0, 0), row_of(1, 0)], batches)
        assert writer.missing() == writer.shards

    def test_no_clip_at_all(self, tmp_path):
        writer = writer_for(tmp_path, num_clips=2)
        writer.claim()
        encode(writer, bad=(0, 1))
        with pytest.raises(ValueError, match="no clip could be encoded: all 2 were skipped"):
            writer.finish()

    def test_a_missing_shard_at_the_end(self, tmp_path):
        writer = writer_for(tmp_path)
        writer.claim()
        with pytest.raises(ValueError, match="shard-00000 is missing"):
            writer.finish()

    def test_a_folder_that_can_not_be_made(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(ValueError, match="can't be written"):
            writer_for(tmp_path / "file" / "cache").claim()

    @pytest.mark.parametrize(
        "changes", [{"store": "all"}, {"dtype": "int8"}, {"num_clips": 0}, {"shard_size": 0}]
    )
    def test_values_out_of_range(self, tmp_path, changes):
        with pytest.raises(ValueError, match=f"`{next(iter(changes))}` must be"):
            writer_for(tmp_path, **changes)


def test_lists_what_was_skipped(made):
    manifest = LatentCache(made).manifest
    assert manifest["skipped"] == [{"path": f"clips/{BAD}.mp4", "reason": "broken"}]
    assert manifest["samples"] == CLIPS - 1
    assert manifest["rows"] == VARIANTS * (CLIPS - 1)


def test_a_shard_of_bad_clips_alone(tmp_path):
    writer = writer_for(tmp_path, shard_size=1)
    writer.claim()
    encode(writer)
    writer.finish()
    cache = LatentCache(tmp_path)
    assert [sample["index"] for sample in (cache[i] for i in range(len(cache)))] == [
        index for index in range(CLIPS) if index != BAD
    ]
