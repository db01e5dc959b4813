"""The documentation does what it says: its Python is run, page by page, and its commands are parsed.

The Python blocks of a page are one program, run in order in an empty folder. What cannot run here says so and why, in a
comment before the block: ``<!-- not run: needs a GPU -->``.
"""

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from markdown_it import MarkdownIt

from errata.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))
NOT_RUN = re.compile(r"<!-- not run: \S.* -->")
SHELL = ("", "console", "bash", "sh")


@dataclass(frozen=True)
class Block:
    """A fenced block; ``line`` is that of its first line of text, ``runs`` whether nothing says that it does not."""

    language: str
    text: str
    line: int
    runs: bool


def blocks(page: Path) -> Iterator[Block]:
    before = ""
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "fence" and token.map:
            words = token.info.split()
            runs = not NOT_RUN.fullmatch(before.strip())
            yield Block(words[0] if words else "", token.content, token.map[0] + 2, runs)
        before = token.content if token.type == "html_block" else ""


def commands(page: Path) -> Iterator[tuple[int, list[str]]]:
    """The words of each ``errata …`` line, and where it stands."""
    for block in blocks(page):
        if block.language in SHELL and block.runs:
            for number, line in enumerate(block.text.split("\n"), start=block.line):
                for part in line.removeprefix("$ ").split("&&"):
                    words = shlex.split(part, comments=True)
                    if words[:1] == ["errata"]:
                        yield number, words[1:]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


WITH_PYTHON = [page for page in PAGES if any(b.language == "python" and b.runs for b in blocks(page))]
WITH_COMMANDS = [page for page in PAGES if any(commands(page))]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    namespace: dict[str, Any] = {"__name__": f"docs_{page.stem.replace('-', '_')}"}
    monkeypatch.setitem(sys.modules, namespace["__name__"], type(sys)(namespace["__name__"]))  # dataclasses look it up
    for block in blocks(page):
        if block.language == "python" and block.runs:
            code = "\n" * (block.line - 1) + block.text  # an error names the line of the page
            exec(compile(code, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name_of)
def test_the_commands_of_a_page_exist(page: Path) -> None:
    for number, words in commands(page):
        try:
            parse(words)
        except typer.Exit:  # --help
            continue
        except Exception as error:
            pytest.fail(f"{name_of(page)}, line {number}: errata {shlex.join(words)}: {error}")


def parse(words: list[str]) -> None:
    """Raises unless there is such a command with such options."""
    group: Any = typer.main.get_command(app)
    context = group.make_context("errata", list(words))
    while hasattr(group, "resolve_command"):
        if not (rest := [*context._protected_args, *context.args]):
            return
        name, group, rest = group.resolve_command(context, rest)
        context = group.make_context(name, rest, parent=context)


def test_a_command_that_is_not_there_is_seen() -> None:
    for words in (["edti", "world"], ["ask", "world", "x", "--pacth", "y"], ["show"], ["world", "trian", "x"]):
        with pytest.raises(Exception, match=r"(?i)no such|missing"):
            parse(words)
    parse(["world", "train", "folder", "--plain"])


def test_the_errors_that_are_explained_are_those_that_are_said() -> None:
    said = "\n".join(texts(ROOT / "src"))
    explained = list(messages(ROOT / "docs" / "errors.md"))
    assert len(explained) > 30
    unknown = [part for part in explained if part not in said]
    assert not unknown, f"no message of Errata: {unknown}"


def messages(page: Path) -> Iterator[str]:
    """What the bold lines say for sure: not what is in italics, nor what is too short to tell."""
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        depth = {"strong": 0, "em": 0}
        for child in token.children or ():
            kind = child.type.removesuffix("_open").removesuffix("_close")
            if kind in depth:
                depth[kind] += child.nesting
            elif child.type == "text" and depth["strong"] and not depth["em"]:
                parts = (part.strip(" ':,()…") for part in child.content.split("; "))
                yield from (part for part in parts if len(part) > 12)


def texts(folder: Path) -> Iterator[str]:
    """Every string in the source, with whatever a format fills in left out."""
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "\0".join(str(v.value) for v in node.values if isinstance(v, ast.Constant))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name_of)
def test_a_notebook_runs(notebook: Path, tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    made = subprocess.run(
        [sys.executable, "-m", "jupyter", "execute", "--output", str(tmp_path / notebook.name), str(notebook)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=880,
    )
    assert made.returncode == 0, made.stderr[-3000:]
