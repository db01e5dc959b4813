"""Papers' settings as shipped bench files: what each expands to, what is refused, and a run of one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from test_bench import here, words  # noqa: F401

import errata
from errata.bench.plan import Plan
from errata.bench.recipes import filled, recipe, recipes
from errata.bench.units import Unit, units_of
from errata.cli import bench as command
from errata.errors import BadInput, UnknownName
from errata.report.rows import read_rows
from errata.types import Case, Edit, Probe

NAMES = ["alphaedit2025", "memit2023", "wild2025", "yao2023"]


def case(number: int) -> Case:
    edit = Edit(f"Person{number} lives in", f"Person{number}", "Oslo", "Rome")
    probes = [Probe(kind, f"{kind} {number}", ("Rome",)) for kind in ("neighborhood", "unrelated")]
    return Case(str(number), (edit,), (Probe("paraphrase", f"Yes {number}", ("Oslo",)), *probes))


CASES = [case(number) for number in range(10000)]


def many(name: str, limit: int | None = None, **options: Any) -> list[Case]:
    """As many cases as are asked for; 1,037 of a file that is read whole."""
    return CASES[: limit or 1037]


def expanded(name: str, model: str = "m", limit: int | None = None, roles: Sequence[str] = ()) -> list[Unit]:
    files = {role: f"{role}.json" for role in roles or recipe(name)["data"]}
    return units_of(Plan.of(filled(name, {"models": [model], "data": files}, limit)), errata.method, many)


def shape(units: Sequence[Unit]) -> set[tuple[str, str, str]]:
    return {(unit.labels["data"], unit.labels["setting"], unit.protocol.name) for unit in units}


def methods(units: Sequence[Unit]) -> list[str]:
    return list(dict.fromkeys(" ".join(filter(None, (u.labels["method"], u.labels["settings"]))) for u in units))


def test_the_files_are_found() -> None:
    assert recipes() == NAMES
    for name in NAMES:
        made = recipe(name)
        assert "https://arxiv.org/abs/" in made["paper"] and all(data["origin"] for data in made["data"].values())


def test_memit_makes_ten_thousand_edits_at_once() -> None:
    units = expanded("memit2023")
    assert shape(units) == {
        ("counterfact.json limit=10000", "batch of 10000", "rome"),
        ("zsre.json limit=10000 target=answers", "batch of 10000", "zsre"),
    }
    assert methods(units) == ["memit", "rome", "mend", "ft"]
    assert all(len(unit.batches) == 1 and len(unit.batches[0]) == 10000 for unit in units)


def test_alphaedit_makes_twenty_steps_of_a_hundred_and_asks_at_the_end() -> None:
    units = expanded("alphaedit2025")
    assert {(data.split()[0], protocol) for data, _, protocol in shape(units)} == {
        ("counterfact.json", "rome"),
        ("zsre.json", "zsre"),
    }
    assert all([len(batch) for batch in unit.batches] == [100] * 20 and unit.checkpoints == {2000} for unit in units)
    ends = ["memit + rect keep=0.4", "memit + prune at the end"]
    assert methods(units) == ["alphaedit", "memit", "ft", "mend", "instruct-edit", "rome", *ends]


def test_yao_edits_each_record_alone_and_forces_the_answers() -> None:
    units = expanded("yao2023")
    assert shape(units) == {(f"{role}.json", "single", "easyedit") for role in ("zsre", "counterfact")}
    assert len(units) == 10 * 2 * 1037 and units[0].modes[0] == "forced"
    assert [line.name for line in units[0].protocol.lines][:3] == ["reliability", "generalization", "portability"]


def test_wild_generates_after_single_edits_and_a_thousand_in_a_row() -> None:
    units = expanded("wild2025", roles=["qaedit"])
    assert {unit.modes for unit in units} == {("generated",)} and {unit.protocol.name for unit in units} == {"wild"}
    row = [unit for unit in units if unit.labels["setting"] != "single"]
    assert all([len(batch) for batch in unit.batches] == [1] * 1000 and unit.checkpoints == {1000} for unit in row)
    assert methods(units) == ["ft-m", "mend", "rome", "r-rome", "memit", "grace", "wise"] and len(row) == 7


def test_a_papers_own_model_has_its_published_settings() -> None:
    (gptj,) = {
        u.labels["settings"] for u in expanded("memit2023", "EleutherAI/gpt-j-6B") if u.labels["method"] == "memit"
    }
    adam = "optimizer=adam search_contexts=5 steps=25"
    assert gptj == f"layers=[3, 4, 5, 6, 7, 8] {adam} lr=0.5 clamp=0.75 kl=0.0625 decay=0.5 lam=15000.0"
    llama = expanded("alphaedit2025", "meta-llama/Meta-Llama-3-8B-Instruct")
    assert f"alphaedit layers=[4, 5, 6, 7, 8] {adam} lr=0.1 clamp=0.75 kl=0.0625 decay=0.5" in methods(llama)
    rect = next(u.labels["settings"] for u in llama if "rect" in u.labels["settings"])
    assert rect.startswith("layers=[4, 5, 6, 7, 8]") and rect.endswith("lam=15000.0 + rect keep=0.4")
    with pytest.raises(BadInput, match="models"):
        Plan.of(filled("memit2023", {"models": 5, "data": {"zsre": "z"}}))
    with pytest.raises(BadInput, match="run one model at a time"):
        filled("memit2023", {"models": ["m", "EleutherAI/gpt-j-6b"], "data": {"zsre": "z"}})


@pytest.mark.parametrize("name", NAMES)
def test_a_trial_shrinks_batches_and_checkpoints(name: str) -> None:
    units = expanded(name, limit=150)
    assert max(len(unit.cases) for unit in units) == (1 if name == "yao2023" else 150)
    assert max(len(batch) for unit in units for batch in unit.batches) <= 150
    assert {n for unit in units if name == "alphaedit2025" for n in unit.checkpoints} <= {150}


def test_own_keys_go_before_the_papers() -> None:
    given: Any = {"protocol": "memit2023", "models": ["m"], "data": {"counterfact": {"name": "c.json", "limit": 40}}}
    given |= {"methods": ["rome"], "settings": ["single"], "seeds": [3], "modes": ["forced"]}
    plan = Plan.of(given)
    assert [spec.name for spec in plan.methods] == ["rome"] and plan.settings[0].kind == "single"
    assert (plan.seeds, plan.modes, plan.data[0].limit, plan.data[0].protocol) == ((3,), ("forced",), 40, "rome")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "memit2023 needs a model; name it with --model"),
        (
            {"models": ["m"]},
            "needs data, as --data counterfact=FILE; it is made for counterfact: multi_",
        ),
        ({"models": ["m"], "data": "c.json"}, "has counterfact and zsre; say which c.json is, as counterfact=c.json"),
        ({"models": ["m"], "data": ["c.json"]}, "data of memit2023 is a table of counterfact and zsre"),
        ({"models": ["m"], "data": {"counterfakt": "c"}}, "unknown data of memit2023 'counterfakt'; did you mean"),
        ({"models": ["m"], "data": {"zsre": 3}}, "data.zsre is a file or a table, found 3"),
        ({"models": ["m"], "data": {"zsre": "z"}, "setings": []}, "unknown key of a bench file 'setings'"),
    ],
)
def test_what_is_wrong_is_named(given: Any, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        Plan.of({"protocol": "memit2023", **given})
    assert message in str(caught.value)


def test_an_unknown_protocol_answers_with_near_matches_of_both_kinds() -> None:
    with pytest.raises(UnknownName, match="did you mean memit2023"):
        Plan.of({"protocol": "memit203", "models": ["m"], "methods": ["ft"], "data": ["d"], "settings": ["single"]})
    with pytest.raises(UnknownName, match="did you mean yao2023"):
        filled("yao203", {})


def test_what_is_not_named_is_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    made = filled("memit2023", {"models": ["m"], "data": {"zsre": "z.json"}})
    assert [entry["name"] for entry in made["data"]] == ["z.json"]
    assert "memit2023 also measures counterfact (multi_counterfact.json of" in caplog.text


# The command line --------------------------------------------------------------------------------


def counterfact(path: Path) -> str:
    """A file of two records in CounterFact's form, in words that the tiny tokenizer has."""
    who = ("Ann Lee", "Bob Ray")
    records = [
        {
            "case_id": i,
            "requested_rewrite": {
                "prompt": "{} was born in", "subject": name,
                "target_new": {"str": "Oslo"}, "target_true": {"str": "Rome"},
            },
            "paraphrase_prompts": [f"Yes, {name} was born in"],
            "neighborhood_prompts": ["A baker was born in"],
            "generation_prompts": [],
        }
        for i, name in enumerate(who)
    ]  # fmt: skip
    path.write_text(json.dumps(records))
    return path.name


def test_a_papers_plan_runs_by_one_command(here: Path) -> None:  # noqa: F811
    file = counterfact(here / "cf.json")
    Path("paper.toml").write_text(
        f'protocol = "memit2023"\nmodels = ["model"]\ndata = {{ counterfact = {{ name = "{file}", limit = 2 }} }}\n'
        'methods = [{ name = "ft-m", steps = 2 }]\nsettings = [{ kind = "batch", size = 2 }]\n'
    )
    words("bench", "paper.toml", "-q")
    rows = read_rows("rows.jsonl")
    assert {(row.protocol, row.setting, row.method) for row in rows} == {("rome", "batch of 2", "ft-m")}
    assert {row.case for row in rows if row.metric == "success" and row.kind == "edit"} == {
        "counterfact-0",
        "counterfact-1",
    }
    assert "| (unedited) |" in words("report", "rows.jsonl").stdout and "ES" in words("report", "rows.jsonl").stdout


def test_the_options_make_the_plan(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    seen: list[Plan] = []

    def noted(plan: Plan, *_: Any, **__: Any) -> int:
        seen.append(plan)
        return 0

    monkeypatch.setattr(command, "bench", noted)
    words("bench", "--protocol", "memit2023", "--model", "model", "--data", "counterfact=a=b.json", "--limit", "2")
    assert [entry.name for entry in seen[0].data] == ["a=b.json"] and seen[0].settings[0].label == "batch of 2"
    for typed, message in (
        (["bench"], "nothing to measure: name a TOML file, or --protocol"),
        (
            ["bench", "run.toml", "--protocol", "yao2023"],
            "write protocol, models, data and train in run.toml",
        ),
        (["bench", "run.toml", "--limit", "3"], "go without a file"),
        (["bench", "--protocol", "yao203", "--model", "m"], "did you mean yao2023"),
        (["bench", "--protocol", "rome", "--model", "m", "--data", "x"], "unknown protocol of a paper 'rome'"),
        (["bench", "--protocol", "yao2023", "--data", "zsre=x"], "needs a model"),
        (["bench", "--protocol", "yao2023", "--model", "m", "--data", "zsre=x", "--data", "y"], "a name of its own"),
    ):
        result = words(*typed, code=2)
        assert message in result.stderr and len(result.stderr.splitlines()) == 1
    assert len(seen) == 1
