"""Who may import whom, and how long a script may be: read from the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(ROOT.glob("*.py"))
PACKAGES = sorted(path.parent for path in ROOT.glob("*/__init__.py"))
SOURCES = sorted(path for package in PACKAGES for path in package.rglob("*.py"))
OURS = {package.name for package in PACKAGES}
FOLDERS = ("tests", "benchmarks")
ALL = SOURCES + SCRIPTS + sorted(path for name in FOLDERS for path in (ROOT / name).rglob("*.py"))
# Not `runtime` either: it would bring accelerate and argparse at second hand.
FORBIDDEN_IN_VIDTWIN = {"diffusion", "evaluation", "accelerate", "wandb", "argparse", "runtime"}
FORBIDDEN_IN_EVALUATION = {"accelerate", "wandb", "argparse", "runtime"}
# What evaluation may use of vidtwin besides the names that the package itself gives.
PUBLIC_MODULES = {"data", "media", "metrics", "reconstruction", "results", "shapes", "sprites"}


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


def inside(package: str) -> list[Path]:
    return [path for path in SOURCES if path.is_relative_to(ROOT / package)]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_is_something_to_check() -> None:
    assert {"vidtwin", "runtime"} <= {package.name for package in PACKAGES}
    assert "train_ae.py" in {script.name for script in SCRIPTS}
    assert "torch" in imported_packages(ROOT / "vidtwin" / "autoencoder.py")


def test_relative_imports_are_understood(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "package" / "part").mkdir(parents=True)
    file = tmp_path / "package" / "part" / "module.py"
    file.write_text("from . import a\nfrom ..b import c\ndef f():\n    import d.e\n")
    assert list(imports(file)) == [("package.part", ("a",)), ("package.b", ("c",)), ("d.e", ())]


@pytest.mark.parametrize("path", inside("vidtwin"), ids=name_of)
def test_vidtwin_knows_tensors_and_files_alone(path: Path) -> None:
    assert not imported_packages(path) & FORBIDDEN_IN_VIDTWIN


@pytest.mark.parametrize("path", inside("runtime"), ids=name_of)
def test_runtime_knows_no_other_package_of_ours(path: Path) -> None:
    ours = {package.name for package in PACKAGES} - {"runtime"}
    assert not imported_packages(path) & ours


def test_diffusion_uses_public_names_of_vidtwin() -> None:
    public = set(ast.literal_eval(_assigned(ROOT / "vidtwin" / "__init__.py", "__all__")))
    for path in inside("diffusion"):
        for module, names in imports(path):
            if module.split(".")[0] == "vidtwin":
                assert module == "vidtwin", f"{name_of(path)} imports {module}"
                assert set(names) <= public, f"{name_of(path)} imports {names}"


@pytest.mark.parametrize("path", inside("evaluation"), ids=name_of)
def test_evaluation_needs_no_command_line_and_no_secrets(path: Path) -> None:
    assert not imported_packages(path) & FORBIDDEN_IN_EVALUATION
    public = set(ast.literal_eval(_assigned(ROOT / "vidtwin" / "__init__.py", "__all__")))
    for module, names in imports(path):
        package, _, rest = module.partition(".")
        if package == "vidtwin":
            allowed = not rest or rest.split(".")[0] in PUBLIC_MODULES
            assert allowed, f"{name_of(path)} imports {module}"
            assert rest or set(names) <= public, f"{name_of(path)} imports {names}"
        assert not [name for name in names if package in OURS and name.startswith("_")]


@pytest.mark.parametrize("path", inside("diffusion"), ids=name_of)
def test_nothing_below_imports_the_evaluation(path: Path) -> None:
    assert "evaluation" not in imported_packages(path)


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_nothing_imports_a_script(path: Path) -> None:
    assert not imported_packages(path) & {script.stem for script in SCRIPTS}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_module_is_imported_by_a_string(path: Path) -> None:
    """The other laws could not see it."""
    names = {
        getattr(node.func, "attr", getattr(node.func, "id", None))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    }
    assert not names & {"import_module", "__import__", "run_path", "run_module"}


def test_no_file_could_hold_anything() -> None:
    names = {"utils", "util", "helpers", "misc", "common"}
    assert not [name_of(path) for path in ALL if path.stem in names]


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_scripts_are_short(script: Path) -> None:
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 300


def _assigned(path: Path, name: str) -> ast.expr:
    """The value that a module assigns to a name."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return node.value
    raise AssertionError(f"{name_of(path)} assigns no {name}")
