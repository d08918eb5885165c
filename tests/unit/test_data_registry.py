"""Data sources that register themselves: their sections in a config, and data sets of one's own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from vidtwin.data import (
    DataConfig,
    ShapesOptions,
    SourceOptions,
    UnusableVideo,
    VideoDataset,
    build_dataset,
    build_evaluation_loader,
    build_loader,
    register_source,
    registry,
)
from vidtwin_lab.runtime import ConfigError, config_to_dict, flatten, load_config, save_config

ROOT = Path(__file__).resolve().parents[2]
SMALL: dict[str, Any] = {"num_frames": 4, "height": 16, "width": 16}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Like that of a script, with a default section of its own."""

    data: DataConfig = DataConfig(sections={"shapes": ShapesOptions(max_objects=1)})


@pytest.fixture(autouse=True)
def only_known_sources(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.setattr(registry, "_SOURCES", dict(registry._SOURCES))
        yield


class Levels:
    """Clips of one gray level each, as uint8 frames."""

    label_names = ("even", "odd")

    def __init__(self, size: int = 6, broken: tuple[int, ...] = ()) -> None:
        self.size, self.broken = size, broken

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index in self.broken:
            raise UnusableVideo(f"level {index}", "broken")
        video = np.full((4, 16, 16, 3), index, np.uint8)
        return {"video": video, "caption": f"level {index}", "label": index % 2}


def register_levels() -> type[SourceOptions]:
    @register_source("levels")
    @dataclass(frozen=True, kw_only=True)
    class LevelsOptions(SourceOptions):
        size: int = 6

        def build(self, data: DataConfig) -> Any:
            return Levels(self.size)

    return LevelsOptions


def test_a_section_comes_from_yaml_overrides_and_the_default(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("data:\n  shapes:\n    size: 64\n    motions: [growing]\n")
    config = load_config(RunConfig, file, ["data.shapes.seed=3", "data.shapes.size=7"])
    assert config.data.options == ShapesOptions(size=7, seed=3, motions=("growing",), max_objects=1)
    again = tmp_path / "saved.yaml"
    save_config(config, again)
    assert load_config(RunConfig, again) == config
    flat = flatten(config_to_dict(config))
    assert flat["data.shapes.size"] == 7 and flat["data.shapes.motions"] == ["growing"]
    assert not [key for key in flat if "sections" in key or "sprites" in key]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.shapes.sise=3", "unknown key `data.shapes.sise`; .* is `data.shapes.size`"),
        ("data.shape.size=3", "unknown key `data.shape`; the nearest known key is `data.shapes`"),
        ("data.sections={}", "unknown key `data.sections`"),
        ("data.folder.size=3", "unknown key `data.folder`"),
        ("data.shapes.size=many", "`data.shapes.size` expects int"),
        ("data.shapes.size=0", "data.shapes: `size` must be at least 1 clip, got 0"),
        ("data.sprites.actions=[jump]", "data.sprites: .*walk, spellcast, slash"),
        ("data.shapes_size=3", "`data.shapes_size` is now `data.shapes.size`"),
    ],
)
def test_sections_are_strict_whatever_the_source(override: str, message: str) -> None:
    for source in ("shapes", "classes"):
        with pytest.raises(ConfigError, match=message):
            load_config(RunConfig, None, [f"data.source={source}", "data.path=null", override])


def test_sections_of_other_sources_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.mp4").write_bytes(b"x")
    overrides = ["data.source=classes", f"data.path={tmp_path}"]
    config = load_config(RunConfig, None, [*overrides, "data.shapes.size=3"]).data
    assert len(build_dataset(config)) == 1
    assert config == DataConfig(source="classes", path=str(tmp_path))
    assert "shapes" not in config.to_dict()


def test_every_old_key_has_a_new_one() -> None:
    known, moved = DataConfig.section_types(), 0
    for old, new in DataConfig.RENAMED_KEYS.items():
        with pytest.raises(ConfigError, match=f"`data.{old}` is now `data.{new}`"):
            load_config(RunConfig, None, [f"data.{old}=1"])
        source, _, key = new.rpartition(".")
        assert hasattr(known[source]() if source else DataConfig(), key)
        moved += bool(source)
    assert moved == 14
    with pytest.raises(ValueError, match=r"data\.shapes_size is now data\.shapes\.size"):
        DataConfig.from_dict({"shapes_size": 3})


def test_a_config_as_a_dict_and_back() -> None:
    config = DataConfig(part="validation", **SMALL).with_options(size=5, motions=("growing",))
    assert DataConfig.from_dict(config.to_dict()) == config
    assert config != DataConfig(part="validation", **SMALL)
    assert config.changed() == {
        "part": "validation",
        **SMALL,
        "shapes": {"size": 5, "motions": ["growing"]},
    }
    assert DataConfig().changed() == {}
    with pytest.raises(ValueError, match=r"unknown key data\.hight; the nearest is data\.height"):
        DataConfig.from_dict({"hight": 3})


def test_sections_from_python_are_checked() -> None:
    with pytest.raises(ValueError, match=r"did you mean data\.shapes"):
        DataConfig(sections={"shape": ShapesOptions()})
    with pytest.raises(ValueError, match="must be a SpritesOptions, got ShapesOptions"):
        DataConfig(sections={"sprites": ShapesOptions()})


def test_a_source_of_ones_own() -> None:
    register_levels()
    config = load_config(RunConfig, None, ["data.source=levels", "data.levels.size=4"]).data
    data = build_dataset(DataConfig.from_dict(config.to_dict() | SMALL))
    assert isinstance(data, VideoDataset) and len(data) == 4
    assert data.label_names == ["even", "odd"] and data.captions(2, 3) == ["level 2"]
    sample = data[1, 3]
    assert sample["video"].shape == (3, 4, 16, 16)
    assert sample["video"].unique().tolist() == pytest.approx([3 / 127.5 - 1])
    assert (sample["label"], sample["index"], sample["path"]) == (1, 3, "Levels/3")
    assert len(build_dataset(DataConfig(source="levels", max_clips=2, **SMALL))) == 2
    with pytest.raises(ValueError, match=r"shape \(3, 8, 16, 16\) or .* got .*\(3, 4, 16, 16\)"):
        build_dataset(DataConfig(source="levels", **SMALL | {"num_frames": 8}))[0]
    with pytest.raises(ValueError, match="drawn again with a change"):
        DataConfig(source="levels", motion_swap_fraction=0.5)


def test_names_of_sources_are_unique_and_options_are_dataclasses() -> None:
    with pytest.raises(ValueError, match="'shapes' is registered by ShapesOptions"):
        register_source("shapes")(register_levels())

    class NoDataclass(SourceOptions):
        size: int = 3

    with pytest.raises(TypeError, match="NoDataclass must be a dataclass"):
        register_source("bare")(NoDataclass)
    with pytest.raises(ValueError, match="source=dataset stands for a data set that is given"):
        build_dataset(DataConfig(source="dataset"))


def test_a_loader_takes_any_data_set() -> None:
    batches = iter(build_loader(Levels(), batch_size=3, seed=0))  # type: ignore[arg-type]
    seen = [index for _ in range(2) for index in next(batches)["index"].tolist()]
    assert sorted(seen) == list(range(6))
    tensors = [{"video": torch.full((3, 4, 16, 16), value)} for value in (-0.5, 0.5)]
    (batch,) = build_evaluation_loader(tensors, batch_size=2)  # type: ignore[arg-type]
    assert torch.equal(batch["video"], torch.stack([item["video"] for item in tensors]))
    assert batch["caption"] == ["", ""] and batch["label"].tolist() == [-1, -1]


def test_an_item_may_be_unusable() -> None:
    register_levels()
    loader = build_evaluation_loader(Levels(broken=(2,)), batch_size=6)  # type: ignore[arg-type]
    (batch,) = loader
    assert batch["index"].tolist() == [0, 1, 3, 4, 5]
    assert loader.bad_file_log.files == {"level 2": "broken"}


def run_module(monkeypatch: pytest.MonkeyPatch, name: str, code: str) -> dict[str, Any]:
    """What a module of this code defines."""
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    exec(compile(code, name, "exec"), vars(sys.modules[name]))
    return vars(sys.modules[name])


def test_the_example_of_the_docs_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    examples = [code for code in re.findall(r"```python\n(.*?)```", text, re.S) if "Noise" in code]
    assert len(examples) == 1
    lines = [line for line in examples[0].splitlines() if line.strip()]
    assert len(lines) <= 25
    made = run_module(monkeypatch, "example", examples[0])
    assert made["batch"]["video"].shape == (2, 3, 4, 16, 16)
    own = build_loader(made["Noise"](9, 4, 16, 16), batch_size=2, seed=0)
    assert next(iter(own))["caption"] == ["noise", "noise"]


def added(path: str) -> str:
    """What the example of docs/extending.md puts into a new file."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    body = text.split(f"+++ {path}\n")[1]
    return "\n".join(line[1:] for line in re.split(r"\n(?=[^+])", body)[0].splitlines())


def test_the_source_of_the_guide_works(monkeypatch: pytest.MonkeyPatch) -> None:
    run_module(monkeypatch, "stripes", added("vidtwin/data/synthetic/stripes.py"))
    run_module(monkeypatch, "test_stripes", added("tests/unit/test_stripes.py"))[
        "test_stripes_move"
    ]()
    config = load_config(RunConfig, None, ["data.source=stripes", "data.stripes.size=5"])
    assert len(build_dataset(config.data)) == 5


def test_configs_need_no_torch() -> None:
    """The packages above are not run: what they import is theirs."""
    code = (
        "import sys, types\n"
        "for name in ('vidtwin', 'vidtwin.data'):\n"
        "    sys.modules[name] = module = types.ModuleType(name)\n"
        "    module.__path__ = [name.replace('.', '/')]\n"
        "import vidtwin.data.config\n"
        "print({'torch', 'PIL', 'av', 'decord'} & {*sys.modules})\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
