"""What the site needs beyond mkdocs and its plugins; mkdocs.yml names this file.

Links from docs/ to other files of the repository, such as ../examples/robot_actions.py: on the code
host they lead to the file; the site gets a copy of each file that is linked, and the link leads
there. And docstrings as this project writes them.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

COPIES = "repository"  # folder of the site
LINK = re.compile(r"(?<=\]\()[^)#\s:]+")


def file_outside(page: str, link: str, docs: Path) -> str | None:
    """The path in the repository that a link of a page leads to, or None for a file of docs.

    Args:
        page: the page's path in docs.
        link: as it stands in the page.
        docs: the folder of all pages, in the root.
    """
    path = posixpath.normpath(posixpath.join(docs.name, posixpath.dirname(page), link))
    inside = path.startswith(("..", f"{docs.name}/"))
    return path if not inside and (docs.parent / path).is_file() else None


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files outside docs that pages link to."""
    docs, found = Path(config.docs_dir), set()
    for page in files.documentation_pages():
        links = LINK.findall(page.content_string)
        found |= {file_outside(page.src_uri, link, docs) for link in links} - {None}
    for path in sorted(filter(None, found)):
        source = str(docs.parent / path)
        copy = File.generated(config, f"{COPIES}/{path}.txt", abs_src_path=source)
        copy.dest_uri = f"{COPIES}/{path}"
        files.append(copy)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads the page's links to the copies."""
    name, docs = page.file.src_uri, Path(config.docs_dir)

    def lead(link: re.Match[str]) -> str:
        path = file_outside(name, link[0], docs)
        if path is None:
            return link[0]
        return posixpath.relpath(f"{COPIES}/{path}.txt", posixpath.dirname(name))

    return LINK.sub(lead, markdown)


class Docstrings(griffe.Extension):
    """Sections that no blank line parts, and "Source:", which would be the title of a box."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Parts the sections, and makes the word bold."""
        if obj.docstring is not None:
            sections = r"(?<!\n)\n(?=(Returns|Raises|Yields|Source):)"
            text = re.sub(sections, "\n\n", obj.docstring.value)
            obj.docstring.value = re.sub(r"^Source:", "**Source:**", text, flags=re.MULTILINE)
