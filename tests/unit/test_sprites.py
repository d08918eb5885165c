"""Sprites: which frames of a sheet make a clip, who is on which side of the split, and what is said
of sheets that can't be used."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from einops import reduce
from PIL import Image

from vidtwin.data import DataConfig, build_dataset, factor_labels
from vidtwin.data.synthetic.sprites.config import SHEET_FOLDERS, SHEET_NAMES
from vidtwin.data.synthetic.sprites.dataset import SpritesDataset

REAL = Path(__file__).parents[3] / "shared" / "data" / "train" / "lpc_sheets"
# Row of the sheet and its columns, as the published scripts cut them.
PUBLISHED_FRAMES = {
    "walk front": (10, (8, 1, 2, 3, 4, 5, 6, 7)),
    "walk left": (9, (8, 1, 2, 3, 4, 5, 6, 7)),
    "walk right": (11, (8, 1, 2, 3, 4, 5, 6, 7)),
    "spellcast front": (2, (0, 1, 2, 3, 4, 5, 4, 6)),
    "spellcast left": (1, (0, 1, 2, 3, 4, 5, 4, 6)),
    "spellcast right": (3, (0, 1, 2, 3, 4, 5, 4, 6)),
    "slash front": (14, (0, 1, 2, 3, 4, 5, 4, 0)),
    "slash left": (13, (0, 1, 2, 3, 4, 5, 4, 0)),
    "slash right": (15, (0, 1, 2, 3, 4, 5, 4, 0)),
}


OWN_KEYS = ("actions", "directions", "variants", "split", "shoes", "label")


def config(sheets: Path, **options: Any) -> DataConfig:
    given: dict[str, Any] = {
        "path": str(sheets),
        "num_frames": 8,
        "height": 64,
        "width": 64,
        "part": "all",
    }
    own = {name: options.pop(name) for name in OWN_KEYS if name in options}
    return DataConfig(source="sprites", **(given | options)).with_options(**own)


def dataset(sheets: Path, **options: Any) -> SpritesDataset:
    built = build_dataset(config(sheets, **options))
    assert isinstance(built, SpritesDataset)
    return built


def pixels(sample: Mapping[str, Any]) -> np.ndarray:
    """(T, H, W, 3) uint8."""
    levels = ((sample["video"] + 1) * 127.5).round().to(torch.uint8)
    return levels.permute(1, 2, 3, 0).numpy()


def test_clips_show_the_published_frames(sheets):
    data = dataset(sheets)
    assert data.label_names == list(PUBLISHED_FRAMES)
    assert len(data) == 36 * 9
    for index in range(18):
        sample = data[index]
        row, columns = PUBLISHED_FRAMES[data.label_names[sample["label"]]]
        skin = data.factors(index)["skin"]
        marks = pixels(sample)[:, 23, 63].tolist()
        assert marks == [[row + 1, column + 1, skin + 1] for column in columns]


def test_other_actions_and_directions(sheets):
    data = dataset(sheets, actions=("thrust", "shoot"), directions=("back",))
    assert data.label_names == ["thrust back", "shoot back"]
    thrust, shoot = (pixels(data[index])[:, 23, 63] for index in range(2))
    assert thrust[:, 0].tolist() == [5] * 8
    assert thrust[:, 1].tolist() == list(range(1, 9))
    assert shoot[:, 0].tolist() == [17] * 8
    # Spread over all thirteen columns, the first and the last among them.
    assert shoot[0, 1] == 1
    assert shoot[-1, 1] == 13
    assert set(np.diff(shoot[:, 1].astype(int))) <= {1, 2}


def test_a_character_wears_what_its_factors_say(sheets):
    data = dataset(sheets)
    for index in range(0, len(data), 50):
        frame, labels = pixels(data[index])[0], data.factors(index)
        places = {"hair": (4, 4), "topwear": (30, 4), "bottomwear": (40, 4), "skin": (60, 4)}
        for factor, (y, x) in places.items():
            sheet = np.asarray(Image.open(sheets / SHEET_FOLDERS[factor] / f"{labels[factor]}.png"))
            assert frame[y, x].tolist() == sheet[y, x, :3].tolist(), factor
        assert (frame[20:23, 60] == 0).all(), "nothing but black behind"


def test_labels_factors_caption_and_path_agree(sheets):
    data = dataset(sheets)
    factors = factor_labels(data)
    assert list(factors.content) == ["skin", "bottomwear", "topwear", "hair"]
    assert factors.motion == {
        "action": ("walk", "spellcast", "slash"),
        "direction": ("front", "left", "right"),
    }
    seen = set()
    for index in range(len(data)):
        labels = data.factors(index)
        seen.add(tuple(labels.values()))
        caption = data.captions(index, 3)
        assert len(caption) == 1
        for factor, names in factors.content.items():
            # Art that is not known gets no invented name.
            assert names[labels[factor]] == f"{factor} {labels[factor]}"
            assert names[labels[factor]] in caption[0]
        direction = factors.motion["direction"][labels["direction"]]
        assert caption[0].endswith("facing the front" if direction == "front" else direction)
    assert len(seen) == len(data) == 324
    sample = data[40]
    assert sample["caption"] == data.captions(40, 1)[0]
    assert data.label_factors(sample["label"]).items() <= data.factors(40).items()
    assert sample["path"].startswith("sprites/")


@pytest.mark.parametrize("label", ["action", "direction", "hair"])
def test_the_label_can_be_any_factor(sheets, label):
    data = dataset(sheets, label=label)
    assert tuple(data.label_names) == factor_labels(data).all[label]
    for index in (0, 5, 100):
        sample = data[index]
        assert sample["label"] == data.factors(index)[label]
        assert data.label_factors(sample["label"]) == {label: sample["label"]}
    assert data.label_factors(-1) == {}


def test_sizes_and_lengths_follow_from_the_64_pixels_and_8_frames(sheets):
    plain = pixels(dataset(sheets)[3])
    small = pixels(dataset(sheets, height=32, width=16)[3])
    means = reduce(plain.astype(float), "t (h i) (w j) c -> t h w c", "mean", i=2, j=4)
    assert np.abs(small - means).max() <= 1
    large = pixels(dataset(sheets, height=128, width=64)[3])
    assert (large[:, ::2] == plain).all()
    assert (large[:, 1::2] == plain).all()
    long = pixels(dataset(sheets, num_frames=12)[3])
    assert (long[:8] == plain).all()
    assert (long[8:] == plain[:4]).all()


def characters(data: SpritesDataset) -> set[str]:
    return {data.key(one) for one in data.characters}


def test_a_appearance_swap_is_another_character_with_the_same_motion(sheets):
    data = dataset(sheets, appearance_swap_fraction=1.0)
    own, asked = 0, range(0, len(data), len(data) // 6)
    for index in asked:
        sample = data[index]
        motion = data.describe(index)[1]
        shown = [
            torch.equal(data[other]["video"], sample["appearance_swap"])
            for other in range(motion, len(data), len(data.motions))
        ]
        assert any(shown)
        own += torch.equal(sample["video"], sample["appearance_swap"])
    assert own < len(asked) / 2


def test_a_motion_swap_is_the_same_character(sheets):
    data = dataset(sheets, motion_swap_fraction=1.0)
    motions, own = len(data.motions), 0
    for index in range(0, len(data), len(data) // 6):
        sample, first = data[index], index - index % motions
        shown = [
            torch.equal(data[other]["video"], sample["motion_swap"])
            for other in range(first, first + motions)
        ]
        assert sum(shown) == 1
        own += shown[index - first]
    assert own < 4


def test_parts_share_no_character_and_make_up_all(sheets):
    sides = {
        part: characters(dataset(sheets, part=part, validation_fraction=0.2))
        for part in ("train", "validation", "test", "all")
    }
    everyone = sides.pop("all")
    assert sum(map(len, sides.values())) == len(everyone) == 36
    assert set.union(*sides.values()) == everyone
    assert all(sides.values())
    # Without a validation part its characters are for training; the test ones stay what they are.
    assert characters(dataset(sheets, part="train")) == sides["train"] | sides["validation"]
    assert characters(dataset(sheets, part="test")) == sides["test"]


def test_a_new_sheet_moves_no_character(sheets, tmp_path):
    more = Path(shutil.copytree(sheets, tmp_path / "more"))
    shutil.copy(more / "hair" / "0.png", more / "hair" / "7.png")
    for part in ("train", "test"):
        before, after = characters(dataset(sheets, part=part)), characters(dataset(more, part=part))
        assert {key for key in after if not key.endswith("-7")} == before


def test_the_first_clips_show_all_there_is(sheets):
    data = dataset(sheets, max_clips=90)
    assert len(data) == 90
    for name, names in factor_labels(data).all.items():
        assert {data.factors(index)[name] for index in range(90)} == set(range(len(names))), name


def test_the_published_split(sheets, tmp_path):
    for part in SHEET_FOLDERS.values():
        (tmp_path / part).mkdir()
        for number in range(7 if part == "hair" else 6):
            shutil.copy(sheets / part / "0.png", tmp_path / part / f"{number}.png")
    options: dict[str, Any] = {"variants": 6, "split": "published"}
    data = dataset(tmp_path, part="test", **options)
    train, test = data.published_sides()
    assert (len(train), len(test), len(data)) == (1000, 296, 2664)
    assert data.characters == test
    assert set(train) | set(test) == set(dataset(tmp_path, part="all", **options).characters)
    # numpy.random.seed(423) and numpy.random.permutation, as in the published scripts; the digits
    # of a number in base 6 are body, bottomwear, topwear, hair.
    state = np.random.RandomState()
    state.seed(423)
    order = state.permutation(list(range(1296))).tolist()
    digits = [np.base_repr(number, 6).zfill(4) for number in order]
    assert ["".join(map(str, one)) for one in train + test] == digits
    (tmp_path / "hair" / "3.png").unlink()
    with pytest.raises(ValueError, match=r"needs the sheets hair/0.png to hair/5.png"):
        dataset(tmp_path, part="test", **options)


def test_shoes_go_over_everything(sheets, tmp_path):
    shod = Path(shutil.copytree(sheets, tmp_path / "shod"))
    cell = np.zeros((64, 64, 4), np.uint8)
    cell[:, 32:] = (9, 9, 9, 255)
    picture = np.tile(cell, (21, 13, 1))
    (shod / "shoes").mkdir()
    Image.fromarray(picture).save(shod / "shoes" / "1.png")
    bare, worn = pixels(dataset(shod)[0]), pixels(dataset(shod, shoes=True)[0])
    assert (bare[:, :, :32] == worn[:, :, :32]).all()
    assert (worn[:, :, 32:] == 9).all()
    with pytest.raises(ValueError, match="shoes"):
        dataset(sheets, shoes=True)


def broken(sheets: Path, tmp_path: Path, change: Callable[[Path], object]) -> Path:
    folder = Path(shutil.copytree(sheets, tmp_path / "broken"))
    change(folder)
    return folder


def cut(folder: Path) -> None:
    Image.new("RGBA", (832, 1280), "red").save(folder / "hair" / "1.png")


def spoil(folder: Path) -> None:
    file = folder / "topwear" / "0.png"
    file.write_bytes(file.read_bytes()[:2000])


def blank(folder: Path) -> None:
    Image.new("RGBA", (832, 1344)).save(folder / "body" / "2.png")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (cut, r"hair/1.png must be 832 x 1344 pixels .* got 832 x 1280"),
        (spoil, r"topwear/0.png can't be read"),
        (lambda folder: (folder / "topwear" / "0.png").write_text("no"), r"0.png can't be read"),
        (blank, r"body/2.png draws nothing for walk front"),
        (lambda folder: shutil.rmtree(folder / "hair"), r"hair' has no PNG file"),
        (shutil.rmtree, "is not a folder"),
    ],
)
def test_sheets_that_can_t_be_used_are_named(sheets, tmp_path, change, expected):
    with pytest.raises(ValueError, match=expected) as error:
        dataset(broken(sheets, tmp_path, change))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"flip": True}, "left and right"),
        ({"height": 48}, "multiple or a divisor of the sprites' 64"),
        ({"part": "validation"}, "set data.validation_fraction"),
        ({"part": "tests"}, "did you mean 'test'"),
        ({"path": None}, "folder of sprite sheets"),
        ({"captions": "c.json"}, "folder of sheets alone"),
        ({"content_factors": ("hair",)}, "folder of sheets alone"),
        ({"label": "shirt"}, "did you mean 'skin'|must be one of"),
        ({"actions": ("jump",)}, "walk, spellcast, slash, thrust, shoot"),
        ({"directions": ("left", "left")}, "each once"),
        ({"variants": 3}, "needs as many sheets"),
        ({"split": "published"}, "set it to 6"),
        ({"split": "random"}, "digest, published"),
    ],
)
def test_settings_that_can_t_be(sheets, options, expected):
    with pytest.raises(ValueError, match=expected):
        build_dataset(config(sheets, **options))


def test_only_sprites_have_a_test_part():
    with pytest.raises(ValueError, match=r"data.part must be one of train, validation, all"):
        DataConfig(part="test")


@pytest.mark.skipif(not REAL.is_dir(), reason="the sheets of the Liberated Pixel Cup are not here")
def test_the_real_sheets():
    data = dataset(REAL)
    assert len(data.characters) == 7 * 7 * 7 * 10
    named = [name for factor in SHEET_FOLDERS for name in factor_labels(data).content[factor]]
    assert sorted(named) == sorted(SHEET_NAMES.values())
    assert data.captions(0, 1)[0].startswith("a character with ")
    # A character stands about the middle of each frame, on black.
    clip = pixels(data[0])
    assert (clip[:, 0] == 0).all()
    assert (clip[:, 20:50, 20:44].max(-1) > 0).mean() > 0.4
    with pytest.raises(ValueError, match=r"bottomwear/5.png draws nothing for thrust back"):
        dataset(REAL, actions=("thrust",), directions=("back",))
