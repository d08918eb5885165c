"""The site: built strictly and without a network, whole, and readable without one."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from script_runs import ROOT

pytest.importorskip("mkdocs", reason="the site needs mkdocs")
pytest.importorskip("material", reason="the site needs mkdocs-material")
pytest.importorskip("mkdocstrings", reason="the site needs mkdocstrings")

# A network that is not there, and no torch: the API is read from the sources, never imported.
ALONE = """
import importlib.abc, runpy, socket, sys
def refuse(*_, **__): raise OSError("no network at build time")
socket.socket.connect = socket.getaddrinfo = refuse
class Refuser(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "diffusers", "vidtwin", "diffusion"):
            raise ImportError(f"{name} at build time")
sys.meta_path.insert(0, Refuser())
sys.argv = ["mkdocs", *sys.argv[1:]]
runpy.run_module("mkdocs", run_name="__main__")
"""


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    # Not with --quiet, which makes --strict deaf.
    words = ("build", "--strict", "--config-file", config, "--site-dir", site)
    return subprocess.run(
        [sys.executable, "-c", ALONE, *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("site")
    ended = build(ROOT / "mkdocs.yml", folder)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder


def test_nothing_is_fetched_by_a_reader(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    fetched = re.compile(
        r"<(script|img|iframe|source)[^>]* src=\"?(https?:)?//"
        r"|<link[^>]* rel=\"?(stylesheet|preconnect)[^>]*(https?:)?//"
    )
    for page in pages:
        assert not fetched.search(page.read_text(encoding="utf-8")), page


def test_every_public_name_has_its_docstring(site: Path) -> None:
    for page, package in (("vidtwin", "vidtwin"), ("data", "vidtwin/data"), ("diffusion",) * 2):
        stub = ast.parse((ROOT / package / "__init__.pyi").read_text(encoding="utf-8"))
        names = [a.name for n in stub.body if isinstance(n, ast.ImportFrom) for a in n.names]
        html = (site / "api" / f"{page}.html").read_text(encoding="utf-8")
        shown = set(re.findall(r'id="([\w.]+)"', html))
        missing = {n for n in names if f"{package.replace('/', '.')}.{n}" not in shown}
        assert missing <= {"PAIRED_AUGMENTATIONS"}, missing  # a table, not a thing to call
        assert "Source:</strong>" in html or page == "data"
        assert not re.search(r"<p>[^<]*\b(Args|Returns|Raises): ", html)


def test_links_out_of_docs_lead_to_copies(site: Path) -> None:
    page = (site / "autoencoder.html").read_text(encoding="utf-8")
    assert 'href="repository/examples/robot_actions.py"' in page
    copy = (site / "repository" / "examples" / "robot_actions.py").read_bytes()
    assert copy == (ROOT / "examples" / "robot_actions.py").read_bytes()
    page = (site / "recipes" / "robots.html").read_text(encoding="utf-8")
    assert 'href="../repository/examples/robot_actions.py"' in page
    notebooks = {path.name for path in (site / "repository" / "examples").glob("*.ipynb")}
    assert notebooks == {path.name for path in (ROOT / "examples").glob("*.ipynb")}


def test_a_broken_link_stops_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# A\n\n[x](../gone.py), [y](#nowhere)\n")
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    text = text.replace("tools/site_hooks.py", f"{ROOT}/tools/site_hooks.py")
    text = text[: text.index("nav:")]
    (tmp_path / "mkdocs.yml").write_text(text)
    ended = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert ended.returncode == 1
    assert "../gone.py" in ended.stderr and "#nowhere" in ended.stderr
