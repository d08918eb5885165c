"""Who may import whom, what is public, and how long a script may be: read from the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path for path in ROOT.glob("*.py") if path.stem != "setup")
LIBRARIES = ("vidtwin", "diffusion")
LAB = ("runtime", "language", "evaluation", "studio", "doctor", "cli")
SOURCES = sorted(
    path for package in (*LIBRARIES, "vidtwin_lab") for path in (ROOT / package).rglob("*.py")
)
ALL = (
    SOURCES
    + SCRIPTS
    + sorted(p for name in ("tests", "tools") for p in (ROOT / name).glob("**/*.py"))
)
# Each may import those before it, never those behind it.
ORDER = ("vidtwin", "diffusion", "vidtwin_lab")
LAB_ORDER = {"runtime": 0, "evaluation": 1, "language": 2, "studio": 3, "doctor": 3, "cli": 4}
NOT_IN_LIBRARIES = {"accelerate", "wandb", "gradio", "argparse"}


def imports(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(module, names taken from it) of every import in a file, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = path.relative_to(ROOT).parent.parts
            base = parents[: len(parents) + 1 - node.level] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            yield module, tuple(alias.name for alias in node.names)


def imported_packages(path: Path) -> set[str]:
    """First parts of the modules that a file imports."""
    return {module.split(".")[0] for module, _ in imports(path)}


def lab_parts(path: Path) -> set[str]:
    """The parts of the lab that a file imports."""
    found = set()
    for module, names in imports(path):
        if module == "vidtwin_lab":
            found |= {*names} & {*LAB}
        elif module.startswith("vidtwin_lab."):
            found.add(module.split(".")[1])
    return found


def inside(package: str) -> list[Path]:
    return [path for path in SOURCES if path.is_relative_to(ROOT / package)]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def public_names(module: str) -> set[str] | None:
    """`__all__` of a module of ours, or of the stub that says what a lazy package gives."""
    path = ROOT.joinpath(*module.split("."))
    for file in (path / "__init__.pyi", path / "__init__.py", path.with_suffix(".py")):
        if file.is_file():
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                    return set(ast.literal_eval(node.value))
    return None


def test_there_is_something_to_check() -> None:
    assert {path.name for path in SCRIPTS} >= {"train_ae.py", "train_diffusion.py", "sample.py"}
    assert all(inside(package) for package in ORDER)
    assert "torch" in imported_packages(ROOT / "vidtwin" / "autoencoder.py")


def test_relative_imports_are_understood(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "package" / "part").mkdir(parents=True)
    file = tmp_path / "package" / "part" / "module.py"
    file.write_text("from . import a\nfrom ..b import c\ndef f():\n    import d.e\n")
    assert list(imports(file)) == [("package.part", ("a",)), ("package.b", ("c",)), ("d.e", ())]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_packages_import_those_below_them(path: Path) -> None:
    place = ORDER.index(path.relative_to(ROOT).parts[0])
    assert not imported_packages(path) & set(ORDER[place + 1 :])


@pytest.mark.parametrize("path", [p for name in LIBRARIES for p in inside(name)], ids=name_of)
def test_libraries_know_no_command_line_and_no_launcher(path: Path) -> None:
    assert not imported_packages(path) & NOT_IN_LIBRARIES


@pytest.mark.parametrize("path", inside("vidtwin_lab"), ids=name_of)
def test_parts_of_the_lab_import_those_below_them(path: Path) -> None:
    parts = path.relative_to(ROOT / "vidtwin_lab").parts
    own = parts[0].removesuffix(".py")
    if own != "__init__":
        above = {part for part in LAB if LAB_ORDER[part] >= LAB_ORDER[own]} - {own}
        assert not lab_parts(path) & above


def test_files_imports_nothing_of_ours() -> None:
    assert not imported_packages(ROOT / "vidtwin" / "files.py") & set(ORDER)


@pytest.mark.parametrize("path", [p for name in ORDER[1:] for p in inside(name)], ids=name_of)
def test_other_packages_use_what_is_public(path: Path) -> None:
    """Public is what a module lists in `__all__`; a package may use its own modules as it likes."""
    own = path.relative_to(ROOT).parts[0]
    for module, names in imports(path):
        package = module.split(".")[0]
        if package in ORDER and package != own:
            public = public_names(module)
            assert public is not None, f"{name_of(path)} imports {module}, which has no __all__"
            assert set(names) <= public, f"{name_of(path)} imports {set(names) - public}"


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_nothing_imports_a_script(path: Path) -> None:
    assert not imported_packages(path) & {script.stem for script in SCRIPTS}


def test_no_file_could_hold_anything() -> None:
    names = {"utils", "util", "helpers", "misc", "common"}
    assert not [name_of(path) for path in ALL if path.stem in names]


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_scripts_are_short(script: Path) -> None:
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 300
