"""What a bench file trains methods on: what they get, what rows say of it, and that nothing edited is among it."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import CASES, tiny_lm
from test_bench import FTM, case, go, plan

import errata
from errata.bench.plan import Plan
from errata.bench.recipes import filled
from errata.bench.run import run
from errata.bench.units import units_of
from errata.cli.bench import paper_plan
from errata.errors import BadInput
from errata.report.rows import from_jsonl
from errata.types import Case, Edit

TRAIN = {"name": "train", "limit": 4}


def cases(name: str = "", limit: int | None = None, seed: int = 0, **options: Any) -> list[Case]:
    """The last six are of the training file, the first six of any other; "both" has all."""
    numbers = {"train": range(6, 12), "both": range(12)}.get(name, range(6))
    return [case(number) for number in numbers][:limit]


@dataclass(frozen=True)
class Learner:
    """A method that is prepared with cases, and notes which."""

    name: str
    seen: list[Any] = field(default_factory=list[Any])
    tags: Any = field(default_factory=lambda: SimpleNamespace(prepares_with="cases"))

    def prepare(self, lm: Any, data: Any = None) -> Any:
        self.seen.append(None if data is None else [one.id for one in data])
        return None

    def edit(self, lm: Any, edits: Any, state: Any = None, prior: Any = errata.EMPTY) -> Any:
        return errata.method("ft-m", steps=1).edit(lm, edits, None, prior)


def learners() -> tuple[list[Learner], Any]:
    """Methods that were made, and what makes them; ``ft-m`` is itself."""
    made: list[Learner] = []

    def method(name: str, **settings: Any) -> Any:
        if name == "ft-m":
            return errata.method(name, **settings)
        made.append(Learner(name))
        return made[-1]

    return made, method


def test_what_reads_cases_is_trained_on_those_named_and_its_rows_say_so(tmp_path: Path) -> None:
    made, method = learners()
    data = [{"name": "people", "limit": 3, "train": TRAIN}, {"name": "people", "limit": 2}]
    planned = plan(methods=["learner", FTM], data=data, settings=["single"], train="train")
    rows = go(planned, tmp_path / "rows.jsonl", method=method, cases=cases)
    (learner,) = made
    assert learner.seen == [[f"case {n}" for n in numbers] for numbers in ([6, 7, 8, 9], [6, 7, 8, 9, 10, 11])]
    assert {(row.method, row.data, row.settings) for row in rows} == {
        ("learner", "people limit=3", "trained on train limit=4"),
        ("learner", "people limit=2", "trained on train"),
        ("ft-m", "people limit=3", "steps=2"),
        ("ft-m", "people limit=2", "steps=2"),
    }


def test_other_training_cases_are_measured_anew_and_the_same_are_not(tmp_path: Path) -> None:
    _, method = learners()
    how: Any = {"load": lambda name: tiny_lm("gpt2"), "method": method, "cases": cases}
    planned: Any = {"methods": ["learner"], "settings": ["single"], "data": [{"name": "people", "limit": 2}]}
    done = [run(plan(**planned, train=train), tmp_path / "rows.jsonl", **how) for train in (TRAIN, TRAIN, "train")]
    assert done == [2, 0, 2]
    without = plan(**planned)
    assert run(without, tmp_path / "rows.jsonl", **how) == 2
    assert len({row.settings for row in from_jsonl((tmp_path / "rows.jsonl").read_text())}) == 3


def test_what_is_edited_is_not_trained_on() -> None:
    _, method = learners()
    both: Any = {"methods": ["learner"], "settings": ["single"], "data": [{"name": "people", "limit": 4}]}
    message = (
        r"train: 4 of the 4 facts that are edited stand in the training data 'both' too \(case 0: Ann Lee was born in; "
        r"case 1: .*; case 2: [^;]* …\): train on another split, .* overlap = \"leave-out\""
    )
    with pytest.raises(BadInput, match=message):
        units_of(plan(**both, train="both"), method, cases)
    both["data"] = [{"name": "people", "limit": 4, "train": {"name": "both", "limit": 1}}]
    with pytest.raises(BadInput, match=r"data\[0\].train: 1 of the 4 facts .* 'both limit=1' too \(case 0: [^;…]*\)"):
        units_of(plan(**both), method, cases)
    untouched = [{"kind": "single", "cases": 2, "untouched": 2}]
    both["data"] = [{"name": "people", "train": {"name": "both"}}]
    with pytest.raises(BadInput, match=r"4 of the 4 facts .*untouched case 4"):
        units_of(plan(**{**both, "settings": untouched}), method, cases)


def test_what_is_edited_can_be_left_out_of_it(caplog: pytest.LogCaptureFixture) -> None:
    _, method = learners()
    some: Any = {"methods": ["learner"], "settings": ["single", {"kind": "batch", "size": 2, "cases": 2}]}
    some["data"] = [{"name": "people", "train": {"name": "both", "overlap": "leave-out"}}]
    units = units_of(plan(**some), method, cases)
    assert {tuple(one.id for one in unit.train or ()) for unit in units} == {tuple(f"case {n}" for n in range(6, 12))}
    assert units[0].labels["settings"] == "trained on both but those edited"
    assert "6 cases of the training data 'both but those edited' are left out" in caplog.text
    assert "4 of the 4 subjects that are edited stand in the training data" in caplog.text
    some["data"] = [{"name": "people", "train": {"name": "people", "overlap": "leave-out"}}]
    with pytest.raises(BadInput, match="has no case that is not edited"):
        units_of(plan(**some), method, cases)


def test_a_fact_is_the_same_in_other_letters_and_with_another_target() -> None:
    _, method = learners()

    def spelled(name: str, **options: Any) -> list[Case]:
        edit = Edit("ann lee  was born in", "ann lee", "Bergen")
        return [Case("1", (edit,))] if name == "train" else cases(name, **options)

    with pytest.raises(BadInput, match="1 of the 6 facts"):
        units_of(plan(methods=["learner"], train="train"), method, spelled)


def test_a_training_file_that_nothing_reads_is_said(caplog: pytest.LogCaptureFixture) -> None:
    units = units_of(plan(train="people"), errata.method, cases)
    assert all(unit.train is None for unit in units) and "train goes unread" in caplog.text
    for wrong, message in (
        ({"limit": 0}, "train needs name"),
        ({"name": "a", "overlap": "x"}, "'refuse' or 'leave-out'"),
    ):
        with pytest.raises(BadInput, match=message):
            plan(train=wrong)


def test_a_papers_methods_are_trained_on_the_files_that_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        planned = paper_plan("yao2023", ["m"], ["zsre=z.json", "counterfact=c.json"], 5, ["zsre=z_train.json"])
    zsre, counterfact = planned.data
    assert zsre.train is not None and zsre.train.name == "z_train.json" and counterfact.train is None
    assert "trains methods on counterfact-train.json" in caplog.text and "--train counterfact=FILE" in caplog.text
    assert "--train zsre=FILE" not in caplog.text
    planned = paper_plan("memit2023", ["m"], ["zsre=z.json"], None, ["zsre=t.json"])
    assert planned.data[0].train is not None and planned.data[0].train.label == "t.json target=answers"
    given: Any = {"models": ["m"], "data": {"zsre": {"name": "z.json", "train": {"name": "t.json", "limit": 9}}}}
    planned = Plan.of({"protocol": "memit2023", **given})
    assert planned.data[0].train is not None and planned.data[0].train.label == "t.json limit=9 target=answers"
    assert paper_plan("wild2025", ["m"], ["qaedit=q.json"], None, ["q_train.json"]).train is not None
    with pytest.raises(BadInput, match=r"--train zsre=t goes with --data zsre=FILE; found counterfact=c"):
        paper_plan("memit2023", ["m"], ["counterfact=c"], None, ["zsre=t"])
    with pytest.raises(BadInput, match="each file of train has a name of its own"):
        paper_plan("memit2023", ["m"], ["counterfact=c"], None, ["a", "b"])
    with pytest.raises(BadInput, match=r"data.zsre.train is a file or a table, found 5"):
        filled("memit2023", {"models": ["m"], "data": {"zsre": {"name": "z", "train": 5}}})


def test_mend_is_trained_on_them(tmp_path: Path) -> None:
    """A real one: its state says on how many examples."""
    method = {"name": "mend", **errata.method("mend").tags.quick}

    def read(name: str, limit: int | None = None, **options: Any) -> list[Case]:
        return CASES if name == "train" else cases(name, limit)

    planned = plan(methods=[method], data=[{"name": "people", "limit": 1, "train": "train"}], settings=["single"])
    rows = go(planned, tmp_path / "rows.jsonl", cases=read)
    assert not [row.error for row in rows if row.error] and rows[0].settings.endswith("trained on train")
