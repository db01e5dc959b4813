"""benchmarks/paired.py: differences are paired by case, and each tree's own code is run."""

import json
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[1] / "benchmarks" / "paired.py"

TREE = """
from contextlib import contextmanager
from types import SimpleNamespace as N

class Patch:
    @contextmanager
    def applied(self, lm):
        yield lm

load = lambda name: name
method = lambda name: N(prepare=lambda lm: None, edit=lambda lm, edits, state: Patch())
cases = lambda data, limit, seed, split: [N(id=f"{{split}}{{i}}", edits=[i]) for i in range(limit)]
baseline = lambda lm, cases, modes: modes

def evaluate(before, edited, cases):
    row = lambda case, kind, after, metric="accuracy": N(case=case.id, kind=kind, metric=metric, after=after)
    rows = [row(cases[0], "edit", True), row(cases[0], "edit", {right}), row(cases[1], "edit", True)]
    return [*rows, row(cases[1], "edit", None), row(cases[1], "edit", 0.5, "agreement")]
"""


def benchmark() -> Any:
    spec = spec_from_file_location("paired", FILE)
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_differences_are_of_the_cases_that_both_have() -> None:
    old = {"edit": {"a": 1.0, "b": 0.5, "c": 0.0, "x": 1.0}, "question": {"a": 1.0}, "gone": {"a": 1.0}}
    new = {"edit": {"c": 0.5, "b": 0.5, "a": 1.0}, "question": {"a": 0.25}}
    found = benchmark().paired(old, new)
    assert found["edit"] == {
        "cases": 3, "alone": 1, "old": 0.5, "new": 0.667, "difference": 0.1667, "error": 0.1667,
    }  # fmt: skip
    assert found["question"] == {"cases": 1, "old": 1.0, "new": 0.25, "difference": -0.75, "error": None}
    assert found["gone"] == {"cases": 0, "alone": 1}


def test_each_tree_runs_its_own_code(tmp_path: Path) -> None:
    for name, right in (("before", False), ("after", True)):
        package = tmp_path / name / "src" / "errata"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(TREE.format(right=right))
    command = [sys.executable, str(FILE), str(tmp_path / "before"), str(tmp_path / "after"), "--methods", "m"]
    done = subprocess.run([*command, "--draws", "2", "--cases", "2"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["columns"] == {"edit": {"cases": 4, "old": 0.75, "new": 1.0, "difference": 0.25, "error": 0.1443}}
    assert found["method"] == "m" and len(found["old"]) == len(found["new"]) == 2
    (tmp_path / "nothing" / "src").mkdir(parents=True)
    failed = subprocess.run([*command[:3], str(tmp_path / "nothing"), *command[4:]], capture_output=True, text=True)
    assert failed.returncode and "there is no errata in" in failed.stderr


@pytest.mark.parametrize("tree", ["old", "new"])
def test_a_tree_defaults_to_this_one(tree: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, seen = benchmark(), list[Any]()
    monkeypatch.setattr(module, "compared", lambda method, args: seen.append(getattr(args, tree)) or {})
    monkeypatch.setattr(sys, "argv", [str(FILE), "--methods", "m"])
    module.main()
    assert seen == [FILE.parents[1].resolve()]
