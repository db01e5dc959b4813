"""Measuring, worked by hand on models that are tables of answers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from errata import evaluation
from errata.errors import BadInput, Unsupported
from errata.evaluation.baseline import Baseline, baseline
from errata.evaluation.edits import cases_of
from errata.evaluation.evaluate import evaluate
from errata.evaluation.metrics import Mean
from errata.evaluation.protocols import PROTOCOLS
from errata.model.lm import LM
from errata.patch.patch import Patch
from errata.report.folds import summary
from errata.report.rows import from_jsonl, to_jsonl
from errata.report.sections import sections
from errata.report.tables import table
from errata.types import MODES, Case, Edit, Probe, Row, Score


@dataclass
class Table(LM):
    """A language model that answers from a table; a token is a word."""

    says: Mapping[str, str]
    mute: bool = False
    calls: list[tuple[str, tuple[str, ...]]] = field(default_factory=list[tuple[str, tuple[str, ...]]])
    ids: dict[str, int] = field(default_factory=dict[str, int])

    @override
    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 32,
        *,
        until_answer: bool = False,
        until: Sequence[str] = (),
    ) -> list[str]:
        assert until_answer
        self.calls.append(("generate", tuple(prompts)))
        return [f" {self.says[prompt]}. And so on" for prompt in prompts]

    @override
    def score(self, prompts: Sequence[str], targets: Sequence[str]) -> list[Score]:
        if self.mute:
            raise Unsupported("this patch cannot score")
        self.calls.append(("score", tuple(prompts)))
        return [self._score(self.says[p].split(), t.split()) for p, t in zip(prompts, targets, strict=True)]

    def _score(self, answer: list[str], target: list[str]) -> Score:
        answer = (answer + ["."] * len(target))[: len(target)]
        tokens, argmax = (tuple(sum(map(ord, word)) for word in words) for words in (target, answer))
        return Score(tokens, (-1.0,) * len(target), argmax)


CASE = Case(
    "one",
    (Edit("Ann was born in", "Ann", "New Rome", "Oslo"),),
    (
        Probe("paraphrase", "Ann comes from", ("New Rome", "Nova Roma")),
        Probe("neighborhood", "Bob was born in", ("Oslo",)),
        Probe("neighborhood", "Cid was born in", ("Oslo",)),
        Probe("same_subject", "Ann plays the", ("harp",)),
    ),
)
BEFORE = {
    "Ann was born in": "Oslo",
    "Ann comes from": "Oslo",
    "Bob was born in": "Oslo",
    "Cid was born in": "Bonn",
    "Ann plays the": "harp",
}
AFTER = BEFORE | {
    "Ann was born in": "New Rome",
    "Ann comes from": "Nova Roma",
    "Bob was born in": "New Rome",
    "Ann plays the": "harp and lyre",
}
BOTH = ("generated", "forced")


def by_probe(rows: list[Row]) -> dict[tuple[str, str, str, str], tuple[float | None, float | None]]:
    return {(row.mode, row.kind, row.metric, row.probe): (row.before, row.after) for row in rows}


def test_rows_worked_by_hand() -> None:
    rows = evaluate(baseline(Table(BEFORE), [CASE], BOTH), Table(AFTER), [CASE])
    expected = {
        ("edit", "accuracy", "Ann was born in"): (0.0, 1.0),
        ("paraphrase", "accuracy", "Ann comes from"): (0.0, 1.0),
        ("neighborhood", "accuracy", "Bob was born in"): (1.0, 0.0),
        ("neighborhood", "agreement", "Bob was born in"): (1.0, 0.0),
        ("neighborhood", "accuracy", "Cid was born in"): (0.0, 0.0),
        ("neighborhood", "agreement", "Cid was born in"): (1.0, 1.0),
        ("same_subject", "accuracy", "Ann plays the"): (1.0, 1.0),
    }
    found = by_probe(rows)
    # where it says more than before: another answer, but not another token in the answer's place
    assert found.pop(("generated", "same_subject", "agreement", "Ann plays the")) == (1.0, 0.0)
    assert found.pop(("forced", "same_subject", "agreement", "Ann plays the")) == (1.0, 1.0)
    assert found == {(mode, *key): value for mode in BOTH for key, value in expected.items()}
    assert {(row.mode, row.metric, row.match) for row in rows} == {
        ("generated", "accuracy", "begins"),
        ("forced", "accuracy", "argmax"),
        ("generated", "agreement", "agreement"),
        ("forced", "agreement", "agreement"),
    }


def test_labels_and_the_number_of_edits_stand_in_the_rows() -> None:
    before = baseline(Table(BEFORE), [CASE])
    labels = {
        "model": "m",
        "method": "rome",
        "settings": "{}",
        "data": "world",
        "seed": 3,
        "setting": "single",
    }
    for row in evaluate(before, Table(AFTER), [CASE], after_edits=20, **labels):
        assert {name: getattr(row, name) for name in labels} == labels
        assert (row.case, row.after_edits, row.mode) == ("one", 20, "generated")
    assert {row.after_edits for row in evaluate(before, Table(AFTER), [CASE])} == {1}
    with pytest.raises(BadInput, match="no label colour"):
        evaluate(before, Table(AFTER), [CASE], colour="red")


def test_a_question_of_several_hops_is_named_by_their_number() -> None:
    labels = ("4 hops", "2 hops", "questions", "4 hops")
    probes = [Probe("multi_hop", f"q{i}", ("Rome",), label=label) for i, label in enumerate(labels)]
    case = Case("one", CASE.edits, tuple(probes))
    says = {**BEFORE, "q0": "Rome", "q1": "Rome", "q2": "Oslo", "q3": "Oslo"}
    rows = evaluate(baseline(Table(says), [case]), Table(says), [case], method="m")
    found = {line.name: (line.kind, line.hops, line.after and line.after.mean) for line in summary(rows)}
    del found["reliability"]
    assert found == {
        "two hops": ("multi_hop", "2 hops", 1.0),
        "four hops": ("multi_hop", "4 hops", 0.5),
        "several hops": ("multi_hop", "", 0.0),
    }
    (section,) = sections(rows)
    assert section.columns == ("reliability", "two hops", "four hops", "several hops")
    assert [str(cell) for cell in section.lines[1][1][1:]] == ["1.00 (1)", "0.50 (1)", "0.00 (1)"]


def test_every_prompt_is_asked_once_in_one_call() -> None:
    again = Case("two", CASE.edits, CASE.probes)
    before, after = Table(BEFORE), Table(AFTER)
    evaluate(baseline(before, [CASE, again], BOTH), after, [CASE, again])
    for lm in (before, after):
        assert [verb for verb, _ in lm.calls] == ["generate", "score"]
        assert sorted(lm.calls[0][1]) == sorted(BEFORE)


def test_a_group_counts_as_one_row() -> None:
    def case(rule: Any) -> Case:
        probes = [Probe("multi_hop", p, ("Rome",), group="hop", rule=rule) for p in ("q1", "q2", "q3")]
        return Case("one", CASE.edits, (*probes, Probe("multi_hop", "q1", ("Rome",))))

    before = BEFORE | {"q1": "Rome", "q2": "Rome", "q3": "Rome"}
    after = AFTER | {"q1": "Rome", "q2": "Oslo", "q3": "Rome"}
    for rule, expected in (("any", 1.0), ("all", 0.0)):
        for mode in BOTH:
            rows = evaluate(baseline(Table(before), [case(rule)], [mode]), Table(after), [case(rule)])
            found = {row.probe: (row.before, row.after) for row in rows if row.kind == "multi_hop"}
            assert found == {"hop": (1.0, expected), "q1": (1.0, 1.0)}


@pytest.mark.parametrize("mode", BOTH)
def test_a_probe_counts_only_where_what_it_requires_was_known_before(mode: str) -> None:
    known = Probe("one_hop", "known", ("yes",))
    unknown = Probe("one_hop", "unknown", ("yes",))
    nested = Probe("one_hop", "known", ("yes",), require=(unknown,))
    probes = (
        Probe("multi_hop", "a", ("x",), require=(known,)),
        Probe("multi_hop", "b", ("x",), require=(unknown,)),
        Probe("multi_hop", "c", ("x",), require=(nested,)),
        Probe("multi_hop", "d", ("x",), group="g", rule="all", require=(known,)),
        Probe("multi_hop", "e", ("x",), group="g", rule="all", require=(unknown,)),
    )
    case = Case("one", CASE.edits, probes)
    before = BEFORE | dict.fromkeys("abcde", "y") | {"known": "yes", "unknown": "no"}
    after = Table(AFTER | dict.fromkeys("abce", "y") | {"d": "x"})  # it is not asked what was required
    rows = evaluate(baseline(Table(before), [case], [mode]), after, [case])
    found = {row.probe: row.after for row in rows if row.kind == "multi_hop"}
    assert found == {"a": 0.0, "g": 1.0}


def test_a_verb_that_is_unsupported_leaves_rows_that_say_so() -> None:
    rows = evaluate(baseline(Table(BEFORE), [CASE], BOTH), Table(AFTER, mute=True), [CASE])
    assert {(row.error, row.after is None) for row in rows if row.mode == "forced"} == {
        ("this patch cannot score", True)
    }
    assert all(row.error is None and row.after is not None for row in rows if row.mode == "generated")
    forced = [line for line in summary(rows) if line.mode == "forced"]
    assert all(line.before is not None and line.after is None and line.errors for line in forced)


class Api(LM):
    """A model behind an API that returns texts alone."""

    def __init__(self, says: Mapping[str, str]) -> None:
        self.says = says

    @override
    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 32,
        *,
        until_answer: bool = False,
        until: Sequence[str] = (),
    ) -> list[str]:
        return [f" {self.says[prompt]}." for prompt in prompts]


@pytest.mark.parametrize(
    ("replies", "said"), [(["a"], r"gave 1 replies \(str\) to"), ([None] * 9, r".*\(NoneType\) to")]
)
def test_a_model_that_replies_something_else_is_refused(replies: list[Any], said: str) -> None:
    api = Api({})
    api.generate = lambda prompts, *_, **__: replies[: len(prompts)]  # pyright: ignore
    with pytest.raises(BadInput, match=f"Api {said} .*a text for each prompt"):
        baseline(api, [CASE])


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_model_that_only_generates_is_measured(name: str, tmp_path: Path) -> None:
    require = (Probe("one_hop", "Ann's land is", ("Norway",)),)
    probes = (
        *CASE.probes,
        Probe("multi_hop", "Ann's king is", ("Olav",), require=require),
        Probe("distractor", "Bob was born in", ("Oslo",), rival="New Rome"),
        Probe("unrelated", "Cid was born in", ("Oslo",)),
        Probe("generation", "Ann lives", references=("a text",), label="wanted"),
        Probe("generation", "Ann lives", references=("no text",), label="opposite"),
    )
    case = Case("one", CASE.edits, probes)
    more = {"Ann's king is": "Olav", "Ann's land is": "Norway", "Ann lives": "on"}
    before, after = Api(BEFORE | more), Api(AFTER | more)
    modes = [mode for mode in MODES if mode in (*PROTOCOLS[name].modes, *PROTOCOLS[name].also)]
    made = baseline(before, [case], modes, protocol=name)
    made.save(tmp_path / "before.json")
    rows = evaluate(Baseline.load(tmp_path / "before.json"), after, [case])
    assert {row.mode for row in rows} == set(modes)
    texts = ("entropy", "reference", "released")  # of a length in tokens
    for row in rows:
        without = row.mode == "forced" or row.metric in texts
        assert (row.before is None, row.after is None, row.error is not None) == (without,) * 3, row
        assert row.error is None or re.match("Api has no (score|next_logprobs|prolong);", row.error)
    if name == "errata":
        assert by_probe(rows)["generated", "edit", "accuracy", "Ann was born in"] == (0.0, 1.0)
        dashes = [line for line in summary(rows) if line.mode == "forced"]
        assert dashes and all((line.before, line.after) == (None, None) and line.errors for line in dashes)


def test_evaluation_knows_models_by_their_verbs_alone() -> None:
    folder = Path(evaluation.__file__).parent
    golds = {"gold.py", "gold_header.py", "golds.py", "make_gold.py"}  # ask which model it is, and what its tokens are
    cases_of_its_own = {"edits.py"}
    reads_weights = {"ability.py", "drift.py", "harness.py", *golds, *cases_of_its_own}  # and counts tokens
    for file in [*folder.glob("*.py"), *folder.glob("metrics/*.py")]:
        imported = re.findall(r"errata\.model\.(\w+)", file.read_text(encoding="utf-8"))
        assert file.name in reads_weights or set(imported) <= {"lm"}, file.name


def test_what_cannot_be_judged_gives_no_row() -> None:
    probes = (Probe("generation", "Ann", references=("text",)), Probe("unrelated", "loose"))
    case = Case("one", CASE.edits, probes)
    rows = evaluate(baseline(Table(BEFORE | {"loose": "a"}), [case], BOTH), Table(AFTER | {"loose": "a"}), [case])
    found = [(row.mode, row.kind, row.metric) for row in rows if row.kind != "edit"]
    assert found == [("generated", "unrelated", "agreement")]


def test_another_baseline_is_refused_before_anything_is_asked() -> None:
    other = Case("two", CASE.edits, (Probe("alias", "Annie was born in", ("New Rome",)),))
    after = Table(AFTER)
    with pytest.raises(BadInput, match="no generated reply to 'Annie was born in'"):
        evaluate(baseline(Table(BEFORE), [CASE]), after, [CASE, other])
    assert not after.calls


@pytest.mark.parametrize("modes", [("generatd",), (), "force"])
def test_unknown_modes_are_refused(modes: Any) -> None:
    with pytest.raises(BadInput):
        baseline(Table(BEFORE), [CASE], modes)


def test_a_baseline_survives_its_file(tmp_path: Path) -> None:
    made = baseline(Table(BEFORE), [CASE], BOTH)
    made.save(tmp_path / "before.json")
    assert Baseline.load(tmp_path / "before.json") == made
    assert [path.name for path in tmp_path.iterdir()] == ["before.json"]
    (tmp_path / "before.json").write_text("[]")
    with pytest.raises(BadInput, match="holds no baseline"):
        Baseline.load(tmp_path / "before.json")


# A patch's own edits -----------------------------------------------------------------------------


def patch_of(*edits: Edit) -> Patch:
    return Patch(meta={"made": [{"method": "any", "edits": [edit.to_json() for edit in edits]}]})


def test_a_patchs_edits_become_cases() -> None:
    first, other = Edit("Ann lives in", "Ann", "Oslo"), Edit("Bo lives in", "Bo", "Rome")
    last = Edit("Ann lives in", "Ann", "Lima")
    found = cases_of(patch_of(first, other, last))
    assert [(case.id, case.edits, case.probes) for case in found] == [(last.id, (last,), ()), (other.id, (other,), ())]
    with pytest.raises(BadInput, match="names no edits of its own; give cases"):
        cases_of(patch_of())


def test_known_cases_lend_their_probes() -> None:
    kept = Probe("neighborhood", "Cid was born in", ("Oslo",), rival="New Rome")
    implied = Probe("one_hop", "Ann's land is", ("Italy",))
    known = Case("known", CASE.edits, (CASE.probes[0], kept, implied))
    two = Case("two", (*CASE.edits, Edit("Bo is", "Bo", "in")), (implied,))
    (same,) = cases_of(patch_of(*CASE.edits), [known, two])
    assert same == Case(CASE.edits[0].id, CASE.edits, known.probes)
    (near,) = cases_of(patch_of(Edit("Ann was born in", "Ann", "Bonn")), [known, two])
    assert near.probes == (  # what followed from the other target is left out
        Probe("paraphrase", "Ann comes from", ("Bonn",)),
        Probe("neighborhood", "Cid was born in", ("Oslo",), rival="Bonn"),
    )
    (strange,) = cases_of(patch_of(Edit("Bo is", "Bo", "in")), [known, two])
    assert strange.probes == ()


# Folds ---------------------------------------------------------------------------------------------


def test_a_summary_has_a_line_for_each_kind_metric_and_mode() -> None:
    rows = evaluate(baseline(Table(BEFORE), [CASE], BOTH), Table(AFTER), [CASE], method="rome")
    rows += evaluate(baseline(Table(BEFORE), [CASE]), Table(BEFORE), [CASE], method="none")
    rome = [line for line in summary(rows, by=["method"]) if line.of == ("rome",) and line.mode == "generated"]
    assert [(line.name, line.before, line.after) for line in rome] == [
        ("reliability", Mean(0.0, None, 1), Mean(1.0, None, 1)),
        ("paraphrases", Mean(0.0, None, 1), Mean(1.0, None, 1)),
        ("neighbours: accuracy", Mean(0.5, None, 1), Mean(0.0, None, 1)),
        ("neighbours: agreement", Mean(1.0, None, 1), Mean(0.5, None, 1)),
        ("same subject: accuracy", Mean(1.0, None, 1), Mean(1.0, None, 1)),
        ("same subject: agreement", Mean(1.0, None, 1), Mean(0.0, None, 1)),
    ]
    with pytest.raises(BadInput, match="no field colour"):
        summary(rows, by=["colour"])


def test_the_table_says_the_mode_beside_each_number() -> None:
    from rich.console import Console

    rows = evaluate(baseline(Table(BEFORE), [CASE], BOTH), Table(AFTER, mute=True), [CASE])
    out = StringIO()
    Console(width=120, file=out).print(table(rows))
    lines = out.getvalue().splitlines()
    cells = [line.replace("│", " ").split() for line in lines if "reliability" in line]
    assert cells == [
        ["reliability", "generated", "0.00", "(1)", "1.00", "(1)"],
        ["reliability", "forced", "0.00", "(1)", "-"],
    ]


def test_rows_survive_their_lines() -> None:
    rows = evaluate(baseline(Table(BEFORE), [CASE], BOTH), Table(AFTER, mute=True), [CASE], method="é")
    assert from_jsonl(to_jsonl(rows)) == rows
    with pytest.raises(BadInput, match="line 2: not JSON"):
        from_jsonl(to_jsonl(rows[:1]) + '{"model": ')
    with pytest.raises(BadInput, match="line 1: not a row"):
        from_jsonl('{"colour": 1}')
