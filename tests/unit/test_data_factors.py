"""What a data set says of its clips' content and motion, and what its labels say of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vidtwin.data import DataConfig, Factors, build_dataset, factor_labels

SMALL: dict[str, Any] = {"num_frames": 4, "height": 16, "width": 16}


def files(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_shapes_say_what_their_attributes_are():
    data = build_dataset(DataConfig(**SMALL).with_options(max_objects=1, size=40))
    factors = factor_labels(data)
    assert list(factors.all) == ["color", "shape", "background", "motion"]
    for index in range(40):
        labels = {name: factors.all[name][place] for name, place in data.factors(index).items()}
        attributes = data.shapes.attributes(index)  # type: ignore[attr-defined]
        item = attributes.objects[0]
        assert labels == {
            "color": item.color,
            "shape": item.shape,
            "background": attributes.background,
            "motion": item.motion,
        }
    assert data.label_factors(data[3]["label"]) == {"motion": data.factors(3)["motion"]}
    assert data.label_factors(-1) == {}


def test_two_objects_have_no_one_color():
    data = build_dataset(DataConfig(**SMALL).with_options(size=4))
    with pytest.raises(ValueError, match=r"set data.shapes.max_objects=1"):
        factor_labels(data)


def test_a_class_is_motion_unless_said_otherwise(tmp_path):
    files(tmp_path, "Run/a.mp4", "Walk/b.mp4", "Walk/c.mp4")
    options: dict[str, Any] = {"source": "classes", "path": str(tmp_path), **SMALL}
    data = build_dataset(DataConfig(**options))
    assert factor_labels(data) == Factors(motion={"class": ("Run", "Walk")})
    assert [data.factors(index) for index in range(3)] == [
        {"class": 0}, {"class": 1}, {"class": 1}
    ]  # fmt: skip
    assert data.label_factors(1) == {"class": 1}
    data = build_dataset(DataConfig(**options, content_factors=("class",)))
    assert factor_labels(data) == Factors(content={"class": ("Run", "Walk")})
    with pytest.raises(ValueError, match=r"must name columns of a CSV, or the word class"):
        build_dataset(DataConfig(**options, content_factors=("person",)))


def test_the_columns_of_a_csv(tmp_path):
    files(tmp_path, *(f"{number}.mp4" for number in range(8)))
    rows = [f"{n}.mp4,{'ab'[n % 2]},{('run', '', 'walk')[n % 3]},x" for n in range(8)]
    table = tmp_path / "clips.csv"
    table.write_text("\n".join(["videos,person,action,label", *rows]))
    options: dict[str, Any] = {"source": "csv", "path": str(table), **SMALL}
    named: dict[str, Any] = {"content_factors": ("person",), "motion_factors": ("action", "label")}
    data = build_dataset(DataConfig(**options, **named))
    assert factor_labels(data) == Factors(
        content={"person": ("a", "b")}, motion={"action": ("run", "walk"), "label": ("x",)}
    )
    assert data.factors(1) == {"person": 1, "action": -1, "label": 0}
    assert data.factors(2) == {"person": 0, "action": 1, "label": 0}
    assert data.label_factors(0) == {"label": 0}
    # Classes are numbered alike in parts that do not have all of them.
    part = build_dataset(DataConfig(**options, **named, part="validation", validation_fraction=0.1))
    assert len(part) < 8
    assert factor_labels(part) == factor_labels(data)
    with pytest.raises(ValueError, match="lacks place"):
        build_dataset(DataConfig(**options, content_factors=("place",)))
    with pytest.raises(ValueError, match="each once"):
        build_dataset(
            DataConfig(**options, content_factors=("person",), motion_factors=("person",))
        )
    with pytest.raises(ValueError, match=r"name its columns in data.content_factors"):
        factor_labels(build_dataset(DataConfig(**options)))


def test_shapes_take_no_columns():
    with pytest.raises(ValueError, match=r"reads no files, got data.content_factors"):
        DataConfig(content_factors=("color",))
