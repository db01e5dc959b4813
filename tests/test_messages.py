"""Messages reach both who calls and who types: an argument of Python stands beside its option."""

import ast
import re
from pathlib import Path

import pytest

import errata

SOURCES = sorted(Path(errata.__file__).parent.rglob("*.py"))
OPTIONS = {
    "force=True": "--force",
    "chat=False": "--no-chat",
    "chat=True": "--chat",
    "trust_remote_code=True": "--trust-remote-code",
    'device="auto"': "--device auto",
    "errata.cases(...)": "--data",
    "memory=True": "--no-memory",
}


def messages() -> list[str]:
    """The texts of the package's code, each with what stands in it as {}; docstrings are not among them."""
    found: list[str] = []
    for path in SOURCES:
        tree = ast.parse(path.read_text("utf-8"))
        stated = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in stated | inside:
                found.append(node.value)
    return found


@pytest.mark.parametrize("argument", OPTIONS)
def test_an_argument_that_a_message_names_has_its_option_beside_it(argument: str) -> None:
    naming = [text for text in messages() if argument in text]
    assert naming
    assert [text for text in naming if not re.search(rf"{re.escape(OPTIONS[argument])}\b", text)] == []
