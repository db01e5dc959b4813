"""What other packages bring: methods with parts of their own, and data formats, by entry points."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

import errata
from errata.errors import BadInput, UnknownName
from errata.methods import registry
from errata.patch.parts import Adapter, Part, part_class

TOY = Path(__file__).parent / "toy"
FACT = {"toy_question": "Ann Lee was born in", "toy_about": "Ann Lee", "toy_answer": "Oslo"}
USE = """
import sys, errata
assert errata.methods()["toy"].stores == "a vector"
(case,) = errata.cases("facts.jsonl")
lm = errata.load("world")
patch = errata.method("toy", strength=200).edit(lm, case.edits)
patch.save("toy.safetensors")
"""
LOAD = """
import errata
lm, patch = errata.load("world"), errata.Patch.load("toy.safetensors")  # the method's module was never imported
assert [part.kind for part in patch.parts] == ["toy-vector"]
prompt, target = ["Ann Lee was born in"], ["Oslo"]
before = lm.score(prompt, target)[0].logprobs[0]
with patch.applied(lm) as edited:
    assert edited.score(prompt, target)[0].logprobs[0] > before
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a temporary environment that sees what is installed here, and the toy package besides."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    found = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    site = sysconfig.get_path("purelib", vars={"base": str(folder)})
    Path(site).mkdir(parents=True, exist_ok=True)
    source = Path(errata.__file__).parents[1]
    (Path(site) / "here.pth").write_text(f"{source}\n{sysconfig.get_path('purelib')}\n")
    words = ["install", "-q", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words, "--target", site, str(TOY)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return found


def run(python: Path, *words: str, folder: Path) -> str:
    done = subprocess.run([str(python), *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_package_that_is_installed_brings_a_method_with_its_part_and_a_format(python: Path, tmp_path: Path) -> None:
    (tmp_path / "facts.jsonl").write_text(json.dumps(FACT) + "\n")
    run(python, "-c", USE, folder=tmp_path)
    run(python, "-c", LOAD, folder=tmp_path)
    listed = run(python, "-c", "from errata.cli import main; main()", "methods", "--json", folder=tmp_path)
    assert "toy" in {about["name"] for about in json.loads(listed)}
    assert "toy" not in errata.methods()  # nothing of it is installed here


# Packages that are broken, or in the way ----------------------------------------------------------


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EntryPoint]]:
    """The entry points that are there, to be filled by a test."""
    found: list[EntryPoint] = []
    monkeypatch.setattr(registry, "entry_points", lambda group: found if group == "errata.methods" else [])
    registry.installed.cache_clear()
    yield found
    registry.installed.cache_clear()


def test_a_method_that_cannot_be_imported_is_left_out_and_says_why(
    entries: list[EntryPoint], caplog: pytest.LogCaptureFixture
) -> None:
    entries.append(EntryPoint("broken", "no_such_package:Method", "errata.methods"))
    assert "broken" not in errata.methods() and "memit" in errata.methods()
    assert "broken (no_such_package:Method) cannot be imported: ModuleNotFoundError" in caplog.text
    with pytest.raises(BadInput, match="cannot be imported"):
        errata.method("broken")
    with pytest.raises(UnknownName, match="did you mean broken"):
        errata.method("brokn")


def test_what_is_no_method_is_refused(entries: list[EntryPoint]) -> None:
    entries.append(EntryPoint("odd", "json:JSONDecoder", "errata.methods"))
    with pytest.raises(BadInput, match="no errata Method with `name = 'odd'`"):
        errata.method("odd")


def test_a_name_of_our_own_stays_ours(entries: list[EntryPoint], caplog: pytest.LogCaptureFixture) -> None:
    entries.append(EntryPoint("memit", "no_such_package:Method", "errata.methods"))
    assert errata.method("memit").name == "memit"
    assert registry.names().count("memit") == 1
    assert "the method memit of no_such_package:Method is left out" in caplog.text


def test_a_kind_of_part_is_defined_once() -> None:
    with pytest.raises(BadInput, match=r"the kind of part 'delta' is taken by errata\.patch\.delta\.Delta"):
        type("Other", (Adapter,), {"kind": "delta"})
    with pytest.raises(BadInput, match="'nobody', which nothing here defines"):
        part_class("nobody")


def test_every_method_brings_its_parts() -> None:
    registry.import_all()

    def below(cls: type[Any]) -> Iterator[type[Any]]:
        for sub in cls.__subclasses__():
            yield sub
            yield from below(sub)

    ours = {cls.kind for cls in below(Part) if cls.__module__.startswith("errata.") and "kind" in cls.__dict__}
    assert {"delta", "grace", "wise", "steering"} <= ours
    assert all(part_class(kind).kind == kind for kind in ours)
