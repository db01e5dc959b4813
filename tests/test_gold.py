"""The gold of some edits: what retrained models expect, in one file, and how far a model is from it."""

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_lm, tokenizer
from forged import forge
from test_bench import cases as people
from test_bench import counting, go
from test_bench import plan as plan_of
from test_cli import SMALL, refused, run
from tiny import build
from torch import Tensor
from typing_extensions import override

import errata
from errata.answers import answer_of
from errata.bench.plan import Plan
from errata.bench.run import run as run_bench
from errata.cli import world as world_command
from errata.cli.measure import eval_
from errata.errors import BadInput, Unsupported, WrongModel
from errata.evaluation.ability import Ability
from errata.evaluation.gold import Gold, outlook_of
from errata.evaluation.golds import Golds, gold_for
from errata.evaluation.make_gold import check_recipes, gold_of
from errata.evaluation.metrics import Outlook, answer_kl, mean_over_cases
from errata.evaluation.metrics.outlook import FLOOR
from errata.evaluation.nearness import Nearness
from errata.model.hf import HFLM
from errata.model.lm import LM
from errata.report.markdown import markdown
from errata.report.rows import read_rows
from errata.types import Edit, Row
from errata.world import packing
from errata.world import train as world_train
from errata.world.cases import cases as world_cases
from errata.world.facts import world as make_world
from errata.world.named import GOLD

CASES = world_cases(make_world(30), 8)
EDITS = tuple(edit for case in CASES for edit in case.edits)
KINDS = {"edit", *(probe.kind for case in CASES for probe in case.probes)}


# The formula ---------------------------------------------------------------------------------------


def outlook(first: Sequence[float], rest: float, answer: Sequence[float] = ()) -> Outlook:
    """Of probabilities."""
    logs = (np.array([log(x) if x else -np.inf for x in of]) for of in (first, [rest], answer))
    first_logs, rest_log, answer_logs = logs
    return Outlook(first_logs, float(rest_log[0]), answer_logs)


def test_a_divergence_worked_by_hand() -> None:
    """Three tokens, of which one is kept and two are the rest; then an answer of three tokens."""
    p, q = outlook([0.5], 0.5), outlook([0.25], 0.75)
    first = 0.5 * log(0.5 / 0.25) + 0.5 * log(0.5 / 0.75)
    assert answer_kl(p, q) == pytest.approx(first) and first == pytest.approx(0.1438410362)
    p, q = outlook([0.5], 0.5, [0.5, 0.8, 0.5]), outlook([0.25], 0.75, [0.25, 0.4, 0.5])
    second = 0.5 * (0.8 * log(0.8 / 0.4) + 0.2 * log(0.2 / 0.6))
    assert answer_kl(p, q) == pytest.approx(first + second)
    p, q = outlook([0.5], 0.5, [0.5, 0.8, 0.5]), outlook([0.5], 0.5, [0.5, 0.8, 0.25])
    assert answer_kl(p, q) == pytest.approx(0.5 * 0.8 * (0.5 * log(2) + 0.5 * log(0.5 / 0.75)))


def test_the_rest_is_one_cell_and_lessens_the_divergence() -> None:
    p, q = np.log([0.6, 0.3, 0.1]), np.log([0.2, 0.3, 0.5])
    whole = float((np.exp(p) * (p - q)).sum())
    every = [answer_kl(*(outlook_of(of, np.array(kept), ()) for of in (p, q))) for kept in ([0], [0, 2], [0, 1, 2])]
    assert every[0] == pytest.approx(0.6 * log(3) + 0.4 * log(0.4 / 0.8))
    assert every[1] == every[2] == pytest.approx(whole) and every[0] < whole


def test_what_is_impossible_costs_a_bounded_number_of_nats() -> None:
    sure, never = outlook([1.0], 0.0), outlook([1e-30], 1.0)
    assert answer_kl(sure, sure) == 0.0
    assert answer_kl(sure, never) == pytest.approx(-log(FLOOR)) == pytest.approx(16.6355, abs=1e-3)
    lost = answer_kl(outlook([1.0], 0.0, [1.0, 1.0]), outlook([1.0], 0.0, [1.0, 0.0]))
    assert lost == pytest.approx(16.6355, abs=1e-3)
    none = outlook_of(np.full(3, np.nan), np.array([0]), [np.nan, np.nan])
    assert answer_kl(outlook([1.0], 0.0, [1.0, 1.0]), none) == pytest.approx(2 * 16.6355, abs=1e-3)


# Models --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of a small world, three that go on from it where the edits hold, and the gold of the first."""
    made = tmp_path_factory.mktemp("worlds")
    sizes = {name[2:]: int(value) for name, value in zip(SMALL[::2], SMALL[1::2], strict=True)}
    with pytest.MonkeyPatch.context() as faster:
        faster.setattr(packing, "TOLD", 1000)
        faster.setattr(world_train, "quick_recall", lambda *of, **how: 0.0)
        faster.setattr(world_train, "faster_precision", lambda *of: torch.float32)
        world_command.train(made / "base", **sizes)
        for seed in range(3):
            world_command.train(made / f"gold-{seed}", start=made / "base", edits=EDITS, seed=seed, follow=3)
    world_command.gold([made / "gold-0", made / "gold-1"], made / "gold", str(made / "base"), limit=8)
    return made


@pytest.fixture()
def gold(folder: Path) -> Gold:
    return Gold.load(folder / "gold")


def load(folder: Path, name: str) -> HFLM:
    return errata.load(str(folder / name))


def test_the_retrained_model_is_at_no_distance_and_others_are(folder: Path, gold: Gold) -> None:
    reference, other, base = (gold.distances(load(folder, name)) for name in ("gold-0", "gold-1", "base"))
    assert set(reference) == set(other) == set(base) == set(gold.between) == KINDS
    assert all(0 <= reference[kind].mean < 1e-3 for kind in KINDS), reference
    assert all(other[kind].mean == pytest.approx(1.0) for kind in KINDS)  # the only one that the unit is made of
    assert all(base[kind].mean > 0.1 and base[kind].count == other[kind].count for kind in KINDS)


def test_the_unit_is_the_mean_over_retrainings(folder: Path, gold: Gold) -> None:
    base, *retrained = (load(folder, name) for name in ("base", "gold-0", "gold-1", "gold-2"))
    both = gold_of(base, retrained, CASES, "drawn")
    nats = [gold.divergences(lm) for lm in retrained[1:]]
    for kind in KINDS:
        means: list[float] = []
        for of in nats:
            pairs = [(case, of.values[number]) for case, its, _, number in gold.asked if its == kind]
            mean = mean_over_cases(pairs)
            assert mean is not None
            means.append(mean.mean)
        assert gold.between[kind].mean == pytest.approx(means[0])
        assert both.between[kind].mean == pytest.approx(sum(means) / 2)


def test_a_gold_holds_every_probe_and_what_the_model_answers(folder: Path, gold: Gold) -> None:
    wanted = [(c.id, "edit", e.prompt) for c in CASES for e in c.edits] + [
        (c.id, p.kind, p.prompt) for c in CASES for p in c.probes
    ]
    assert sorted((case, kind, gold.prompts[n]) for case, kind, _, n in gold.asked) == sorted(wanted)
    assert {label for _, kind, label, _ in gold.asked if kind == "multi_hop"} <= {"2 hops"}
    reference = load(folder, "gold-0")
    replies = reference.generate(gold.prompts, until_answer=True)
    assert gold.answers == [answer_of(reply) for reply in replies]
    rows = np.exp(reference.next_logprobs(gold.prompts).astype(np.float64))
    for row, ids, kept in zip(rows, gold.ids.split(gold.counts.tolist()), gold.outlooks, strict=True):
        held = float(row[ids.numpy()].sum())
        assert held >= 0.999 - 1e-6 and np.exp(kept.rest) == pytest.approx(1 - held, abs=1e-5)
        assert np.allclose(np.exp(kept.first), row[ids.numpy()], atol=1e-6)
    assert [recipe["seed"] for recipe in gold.recipes] == [0, 1] and "edits" not in gold.recipes[0]


def golds_answer(reply: str) -> str:
    from errata.answers import answer_of

    return answer_of(reply)


# The file ------------------------------------------------------------------------------------------


def test_a_gold_comes_back_as_it_was(folder: Path, gold: Gold, tmp_path: Path) -> None:
    again = Gold.load(gold.save(tmp_path / "gold"))
    assert again.config() == gold.config() and again.tensors().keys() == gold.tensors().keys()
    assert all(torch.equal(value, gold.tensors()[name]) for name, value in again.tensors().items())
    per_prompt = (folder / "gold").stat().st_size / len(gold.prompts)
    assert per_prompt < 800 + 8 * gold.tokens  # the header, and at most an id and a number for each token


def test_damage_is_noticed(folder: Path, tmp_path: Path) -> None:
    whole, file = (folder / "gold").read_bytes(), tmp_path / "gold"
    draw = torch.Generator().manual_seed(0)
    for at in [len(whole) - 1, *torch.randint(8, len(whole), (30,), generator=draw).tolist()]:
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        file.write_bytes(damaged)
        refused_file(file)
    for content in (whole[:-1], whole + b"\0", b"", b"no gold"):
        file.write_bytes(content)
        refused_file(file)
    refused_file(tmp_path / "none", "there is no gold at")
    refused_file(forge(file, {}, {}, what="patch"), "is a patch; give a gold")


def refused_file(file: Path, *words: str) -> None:
    """The message names the file and has these words."""
    with pytest.raises(BadInput) as refusal:
        Gold.load(file)
    message = str(refusal.value)
    assert str(file) in message and len(message) < 1500 and all(word in message for word in words), message


def change(**fields: Any) -> Callable[[dict[str, Any]], None]:
    """A change of fields of the header; None takes one out."""

    def made(header: dict[str, Any]) -> None:
        for name, value in fields.items():
            if value is None:
                del header[name]
            else:
                header[name] = value(header[name]) if callable(value) else value

    return made


HEADERS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "more": (change(more=1), "nothing reads more"),
    "no prompts": (change(prompts=None), "prompts is missing"),
    "a model without a name": (change(model={"fingerprint": "x"}), "model.name is missing"),
    "tokens that are text": (change(tokens="many"), "tokens: input should be"),
    "fewer tokens": (change(tokens=20), "ids holds"),
    "a prompt less": (change(prompts=lambda them: them[1:]), "answers has the shape"),
    "a prompt twice": (change(prompts=lambda them: [them[0], *them[:-1]]), "stands twice"),
    "an answer less": (change(answers=lambda them: them[1:]), "answers has the shape"),
    "no edits": (change(edits=[]), "edits is empty"),
    "an edit twice": (change(edits=["a", "a"]), "stands twice"),
    "an unknown kind": (change(asked=lambda them: [["c", "odd", "", 0], *them]), "no kind of probe is named 'odd'"),
    "a prompt that is none": (change(asked=lambda them: [["c", "edit", "", 9999], *them]), "the prompt 9999"),
    "a negative one": (change(asked=lambda them: [["c", "edit", "", -1], *them]), "the prompt -1"),
    "an entry that is none": (change(asked=lambda them: [["c", "edit"], *them]), "asked.0"),
    "a kind without a unit": (change(between=lambda them: dict(list(them.items())[1:])), "between has no number"),
    "a unit of 0": (
        change(between=lambda them: {**them, "edit": {"mean": 0.0, "error": None, "count": 1}}),
        "between has no number above 0",
    ),
    "a unit of text": (
        change(between=lambda them: {**them, "edit": {"mean": "1", "error": None, "count": 1}}),
        "between.edit",
    ),
}


@pytest.mark.parametrize("lie", HEADERS)
def test_headers_that_lie(lie: str, gold: Gold, tmp_path: Path) -> None:
    header, (changed, words) = deepcopy(json.loads(json.dumps(gold.config()))), HEADERS[lie]
    changed(header)
    refused_file(forge(tmp_path / "gold", header, gold.tensors(), "gold"), words)


def test_tensors_that_lie(gold: Gold, tmp_path: Path) -> None:
    header, tensors = json.loads(json.dumps(gold.config())), gold.tensors()
    for name, tensor in tensors.items():
        lies: list[Tensor | None] = [None, tensor[None], tensor[:-1], torch.cat([tensor, tensor[:1]]), tensor.bool()]
        lies += [tensor.long()]
        if not name.startswith("answer"):  # which may be any tokens, and as likely as you please
            lies += [tensor.double().neg() - 5, torch.full_like(tensor, 7)]
        if tensor.is_floating_point():
            lies += [torch.full_like(tensor, float("nan")), tensor.half()]
        else:
            lies += [torch.full_like(tensor, 2**31 - 1), torch.full_like(tensor, -3), tensor.float()]
        for lie in lies:
            others = {n: t for n, t in tensors.items() if n != name} | ({} if lie is None else {name: lie})
            refused_file(forge(tmp_path / "gold", header, others, "gold"))
    refused_file(
        forge(tmp_path / "gold", header, tensors | {"more": torch.ones(1)}, "gold"), "nothing reads the tensor"
    )


# Of which model, and which edits -----------------------------------------------------------------------


def test_it_is_of_these_edits_of_this_model(folder: Path, gold: Gold) -> None:
    base, other = load(folder, "base"), load(folder, "gold-1")
    gold.check(base, list(reversed(EDITS)))
    assert gold.is_of(EDITS) and not gold.is_of(EDITS[1:]) and not gold.is_of([*EDITS, Edit("A is", "A", "b")])
    with pytest.raises(BadInput, match=r"the gold of 8 edits .*limit=8 seed=0.*7 of them are among the 7 edits"):
        gold.check(base, EDITS[1:])
    with pytest.raises(WrongModel, match=f"base.* .{base.fingerprint}., found .*gold-1 .{other.fingerprint}.: load"):
        gold.check(other, EDITS)
    with pytest.raises(WrongModel, match="the tokenizer of tiny gpt2 is not that of the gold"):
        gold.check(tiny_lm("gpt2"), EDITS)
    with pytest.raises(WrongModel, match="load the model with its own tokenizer"):
        gold.distances(tiny_lm("gpt2"))


def test_the_gold_that_came_is_taken_where_it_is_of_the_model(
    folder: Path, gold: Gold, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    base, other = load(folder, "base"), load(folder, "gold-1")
    monkeypatch.setattr("errata.evaluation.gold.GOLD", tmp_path / "none")
    assert gold_for(base) is None
    with pytest.raises(BadInput, match="no gold came with this installation"):
        gold_for(base, True)
    monkeypatch.setattr("errata.evaluation.gold.GOLD", folder / "gold")
    assert gold_for(other) is None and gold_for(base, False) is None
    for named in (None, True, str(folder / "gold")):
        found = gold_for(base, named)
        assert found is not None and found.edits == gold.edits
    with pytest.raises(WrongModel, match="found"):
        gold_for(other, True)


def test_the_edits_of_the_gold_that_ships_are_the_first_hundred() -> None:
    lines = (GOLD.parent / "edits.jsonl").read_text().splitlines()
    edits = [edit for case in errata.cases("world", limit=100, seed=0) for edit in case.edits]
    assert [Edit.from_json(json.loads(line)) for line in lines] == edits


def test_only_retrainings_of_the_same_kind_make_a_gold(folder: Path, tmp_path: Path) -> None:
    base = str(folder / "base")
    one, two = folder / "gold-0", folder / "gold-1"
    assert [recipe["seed"] for recipe in check_recipes(base, [one, two], EDITS)] == [0, 1]
    with pytest.raises(BadInput, match="base was trained with 0 edits, among them 0 of the 8"):
        check_recipes(base, [one, folder / "base"], EDITS)
    with pytest.raises(BadInput, match=r"different seeds are compared, found .0, 0."):
        check_recipes(base, [one, one], EDITS)
    with pytest.raises(BadInput, match="no model of a world"):
        check_recipes("gpt2", [one, two], EDITS)
    with pytest.raises(BadInput, match=r"layers is 2 in .*gold-0 and 8 in world; train the two alike"):
        check_recipes("world", [one, two], EDITS)
    recipe = json.loads((two / "recipe.json").read_text())
    (tmp_path / "recipe.json").write_text(json.dumps(recipe | {"follow": 9}))
    with pytest.raises(BadInput, match=r"follow is 9 in .* and 3 in .*gold-0"):
        check_recipes(base, [one, tmp_path], EDITS)
    less = {name: value for name, value in recipe.items() if name != "follow"}
    damaged: list[dict[str, Any]] = [recipe | {"edits": 7}, recipe | {"edits": [{}]}, recipe | {"seed": [1]}]
    for changed, words in [
        (less, "follow is None in"),
        (recipe | {"precision": "bfloat16"}, "precision is bfloat16 in"),
        *((spoilt, "is no recipe of a world") for spoilt in damaged),
    ]:
        (tmp_path / "recipe.json").write_text(json.dumps(changed))
        with pytest.raises(BadInput, match=words):
            check_recipes(base, [one, tmp_path], EDITS)
    older = {name: value for name, value in recipe.items() if name != "precision"}
    (tmp_path / "recipe.json").write_text(json.dumps(older))
    assert len(check_recipes(base, [one, tmp_path], EDITS)) == 2
    with pytest.raises(BadInput, match="give two or more"):
        gold_of(load(folder, "base"), [load(folder, "gold-0")], CASES, "drawn")
    with pytest.raises(BadInput, match="do not differ in"):
        gold_of(load(folder, "base"), [load(folder, "gold-0")] * 2, CASES, "drawn")
    with pytest.raises(BadInput, match="have different tokenizers"):
        gold_of(load(folder, "base"), [load(folder, "gold-0"), tiny_lm("gpt2")], CASES, "drawn")


# Rows ----------------------------------------------------------------------------------------------


class Mute(LM):
    """Answers, and has no log-probabilities."""

    @override
    def generate(self, prompts: Sequence[str], *args: Any, **more: Any) -> list[str]:
        return ["" for _ in prompts]


def test_rows_say_how_far_a_model_was_and_is(folder: Path, gold: Gold) -> None:
    base, reference = load(folder, "base"), load(folder, "gold-0")
    nearness = Nearness.of(gold, base, ("generated", "forced"))
    rows = nearness.rows(reference, EDITS, after_edits=8, method="magic")
    assert nearness.rows(reference, EDITS[:3], after_edits=3) == []
    assert len(rows) == 2 * (len(gold.asked) + 1) and {row.mode for row in rows} == {"generated", "forced"}
    assert {(row.metric, row.match, row.after_edits, row.method) for row in rows} == {
        ("to_gold", f"retrained {gold.digest}", 8, "magic")
    }
    before = gold.distances(base)
    for kind in KINDS:
        of_kind = [row for row in rows if row.kind == kind and row.mode == "forced"]
        mean = mean_over_cases((row.case, row.before) for row in of_kind if row.before is not None)
        assert mean is not None and mean.mean == pytest.approx(before[kind].mean)
        assert all(row.after is not None and abs(row.after) < 1e-2 for row in of_kind)
    (whole,) = [row for row in rows if row.kind == "gold" and row.mode == "forced"]
    assert whole.before == pytest.approx(sum(mean.mean for mean in before.values()) / len(before))


def test_a_model_without_log_probabilities_has_a_dash(folder: Path, gold: Gold) -> None:
    nearness = Nearness.of(gold, load(folder, "base"), ("generated",))
    rows = nearness.rows(Mute(), EDITS, after_edits=8)
    assert all(row.after is None and row.before is not None and row.error for row in rows)
    assert gold.distances(Mute()) == {}
    with pytest.raises(Unsupported):
        Mute().next_logprobs(["x"])


PLAN: dict[str, Any] = {
    "methods": [{"name": "ft-m", "steps": 2}],
    "data": [{"name": "world", "limit": 10}],
    "settings": [
        {"kind": "batch", "size": 8, "cases": 8},
        {"kind": "batch", "size": 5, "cases": 10},
        {"kind": "sequential", "batch": 4, "checkpoints": [4, 8, 10]},
        {"kind": "single", "cases": 2},
    ],
}


def bench(folder: Path, output: Path, **changed: Any) -> list[Row]:
    plan = Plan.of(PLAN | {"models": [str(folder / "base")]} | changed)
    run_bench(plan, output, load=errata.load, method=errata.method, cases=errata.cases)
    return read_rows(output)


def test_bench_asks_where_just_these_edits_are_in_force(
    folder: Path, gold: Gold, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("errata.evaluation.gold.GOLD", folder / "gold")
    rows = bench(folder, tmp_path / "rows.jsonl")
    found = [row for row in rows if row.metric == "to_gold"]
    assert {(row.setting, row.after_edits) for row in found} == {
        ("batch of 8", 8), ("sequential by 4, asked at 4 8 10", 8),
    }  # fmt: skip
    assert len(found) == 2 * (len(gold.asked) + 1)
    page = markdown([row for row in rows if row.setting == "batch of 8"])
    assert " to gold |" in page and "distance to the gold, KL(retrained ‖ edited)" in page
    (unedited,) = [
        line for line in page.split("distance to the gold")[1].splitlines() if line.startswith("| (unedited)")
    ]
    distances = gold.distances(load(folder, "base"))
    assert f"| {distances['edit']} | {distances['paraphrase']} |" in unedited
    assert "to gold" not in markdown([row for row in rows if row.setting == "batch of 5"])


def test_bench_insists_on_a_gold_that_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("errata.evaluation.gold.GOLD", folder / "gold")
    file, out = str(folder / "gold"), tmp_path / "rows.jsonl"
    batch: dict[str, Any] = {"kind": "batch", "size": 8, "cases": 8}
    rows = bench(folder, out, settings=[batch | {"gold": file}, batch | {"gold": False}])
    assert {row.setting for row in rows if row.metric == "to_gold"} == {f"batch of 8, gold {file}"}
    assert {row.setting for row in rows} == {f"batch of 8, gold {file}", "batch of 8, no gold"}
    with pytest.raises(BadInput, match=r"settings\[0\]: the gold is of 8 edits .* never has just those in force"):
        bench(folder, tmp_path / "a", settings=[batch | {"size": 4, "gold": True}])
    with pytest.raises(BadInput, match=r"settings\[0\]: there is no gold at none"):
        bench(folder, tmp_path / "a", settings=[batch | {"gold": "none"}])
    with pytest.raises(BadInput, match=r"settings\[0\].*gold is true, false, or a file"):
        bench(folder, tmp_path / "a", settings=[batch | {"gold": 3}])
    assert not (tmp_path / "a").exists()


# Of a tiny model, whose bench takes a second


def tiny_gold(*seeds: int) -> Gold:
    """That of the first four of the people's edits, of retrained models that are random ones of these seeds."""
    retrained = [HFLM(build("gpt2", seed, vocab_size=320), tokenizer(), name=f"seed {seed}") for seed in seeds]
    return gold_of(tiny_lm("gpt2"), retrained, people(limit=4), "people")


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gold(1, 2).save(tmp_path_factory.mktemp("light") / "gold")


FOUR: dict[str, Any] = {"kind": "batch", "size": 4, "cases": 4}


def to_gold(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.metric == "to_gold"]


def test_a_named_gold_is_passed_over_for_another_model(
    light: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    planned = plan_of(models=["llama", "gpt2"], settings=[FOUR | {"gold": str(light)}], seeds=[0, 1])
    planned = planned.model_copy(update={"data": plan_of(data=[{"name": "x", "limit": 6, "seed": 0}]).data})
    rows = go(planned, tmp_path / "rows.jsonl", load=tiny_lm)
    assert {row.model for row in rows} == {"llama", "gpt2"} == {row.model for row in rows if row.kind == "paraphrase"}
    assert {row.model for row in to_gold(rows)} == {"gpt2"} and not [row for row in rows if row.error]
    (said,) = [record.getMessage() for record in caplog.records if "gold" in record.getMessage()]
    assert said.startswith("llama is not measured against a gold: this is the gold of tiny gpt2")
    assert go(planned, tmp_path / "rows.jsonl", load=tiny_lm) == rows  # all is done


def test_rows_beside_the_probes_are_of_the_protocol_of_the_unit(
    light: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ability = Ability(tuple(people(limit=1)), ("Ann Lee lives in Rome.",), ("Ann Lee lives in Rome.",) * 20)
    monkeypatch.setattr("errata.bench.measurer.ability_of", lambda *of: ability)
    setting = FOUR | {"gold": str(light), "ability": True}
    rows = go(plan_of(settings=[setting], protocol="rome"), tmp_path / "rows.jsonl")
    assert {"text", "drift", "cost", "gold"} <= {row.kind for row in rows}
    assert {row.protocol for row in rows} == {"rome"}


def test_a_gold_is_read_once_and_not_for_other_models(
    light: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read, real = list[Any](), Gold.load.__func__  # pyright: ignore[reportFunctionMemberAccess]
    monkeypatch.setattr(Gold, "load", classmethod(lambda cls, path=None: read.append(path) or real(cls, path)))
    seeds, data = [0, 1], [{"name": "x", "limit": 6, "seed": 0}]
    sequence = {"kind": "sequential", "batch": 2, "checkpoints": [4]}
    settings = [setting | {"gold": str(light)} for setting in (FOUR, sequence)]
    rows = go(plan_of(settings=settings, seeds=seeds, data=data), tmp_path / "rows.jsonl")
    assert len(read) == 1 and {row.seed for row in to_gold(rows)} == {0, 1}
    read.clear()
    caplog.clear()
    damaged = bytearray(light.read_bytes())
    damaged[-1] ^= 0x10
    (tmp_path / "gold").write_bytes(damaged)
    monkeypatch.setattr("errata.evaluation.gold.GOLD", tmp_path / "gold")
    edits, subject = [edit for case in people(limit=4) for edit in case.edits], errata.method("ft-m", steps=1)
    assert gold_for(tiny_lm("llama")) is None and not read and not caplog.records
    assert gold_for(tiny_lm("gpt2")) is None and "it was damaged" in caplog.text  # of this model, and passed over
    read.clear()
    caplog.clear()
    assert not to_gold(eval_(tiny_lm("gpt2"), subject, people(limit=2), setting="single")) and not read
    caplog.clear()
    with pytest.raises(BadInput, match="it was damaged"):
        gold_for(tiny_lm("gpt2"), True)
    (tmp_path / "gold").write_bytes(damaged[:-1])
    golds = Golds()
    assert golds.of(tiny_lm("llama"), lambda about: about.is_of(edits)) is None
    assert golds.of(tiny_lm("llama"), lambda about: about.is_of(edits)) is None
    assert len(caplog.records) == 1 and "no whole gold" in caplog.text


def test_a_file_that_was_finished_before_the_gold_gets_its_rows(
    light: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("errata.evaluation.gold.GOLD", tmp_path / "gold")
    loaded, output = list[str](), tmp_path / "rows.jsonl"

    def load(name: str) -> HFLM:
        loaded.append(name)
        return tiny_lm(name)

    four, six = FOUR, FOUR | {"size": 6, "cases": 6}
    planned = plan_of(models=["gpt2"], settings=[four, six, {"kind": "sequential", "batch": 2, "checkpoints": [4, 6]}])
    before = go(planned, output, load=load)
    assert not to_gold(before)
    made = [Gold.load(light), tiny_gold(2, 1)]
    for gold in made:
        gold.save(tmp_path / "gold")
        rows = go(planned, output, load=load)
        assert {row.match for row in to_gold(rows)} == {f"retrained {gold.digest}"}
        assert {row.setting for row in to_gold(rows)} == {"batch of 4", "sequential by 2, asked at 4 6"}
        assert sorted(row.kind for row in rows if row.metric != "to_gold") == sorted(row.kind for row in before)
        loaded.clear()
        assert go(planned, output, load=load) == rows and not loaded  # all is done, which the file says
    assert made[0].digest != made[1].digest and Gold.load(light).digest == made[0].digest


def test_a_sequence_that_was_kept_before_the_gold_begins_anew(
    light: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("errata.evaluation.gold.GOLD", tmp_path / "gold")
    planned = plan_of(settings=[{"kind": "sequential", "batch": 2, "checkpoints": [4, 6]}])

    def stop(calls: int, edits: Sequence[Edit]) -> None:
        if calls == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(planned, tmp_path / "rows.jsonl", method=counting(stop))
    Gold.load(light).save(tmp_path / "gold")
    method = counting()
    assert {row.after_edits for row in to_gold(go(planned, tmp_path / "rows.jsonl", method=method))} == {4}
    assert len(method.calls) == 3


def test_eval_asks_too(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("errata.evaluation.gold.GOLD", folder / "gold")
    base, out = str(folder / "base"), tmp_path / "rows.jsonl"
    method = ("--method", "ft-m", "--set", "steps=2")
    shown = run("eval", base, *method, "--limit", "8", "-o", out, "-q").stdout
    assert "reliability: to gold" in shown and "to gold" in shown
    assert {row.setting for row in read_rows(out) if row.metric == "to_gold"} == {"batch"}
    assert "to gold" not in run("eval", base, *method, "--limit", "7", "-q").stdout
    edits = tmp_path / "edits.jsonl"
    edits.write_text("".join(json.dumps(edit.to_json()) + "\n" for edit in EDITS))
    run("edit", base, "--edits", edits, *method, "-o", tmp_path / "p.safetensors", "-q")
    assert "to gold" in run("eval", base, "--patch", tmp_path / "p.safetensors", "-q").stdout


def test_the_command_says_what_it_wrote(folder: Path, tmp_path: Path) -> None:
    names = (folder / "gold-0", folder / "gold-1")
    words = ("world", "gold", *names, "--model", folder / "base", "--limit", "8", "-o", tmp_path / "gold", "-q")
    shown = run(*words).stdout
    assert "mean KL from the gold" in shown and all(kind in shown for kind in KINDS)
    assert Gold.load(tmp_path / "gold").prompts == Gold.load(folder / "gold").prompts
    assert "exists; add --force" in refused(*words)
    fewer = [word if word != "8" else "7" for word in words]
    assert "was trained with 8 edits, among them 7 of the 7 that the cases make" in refused(*fewer, "--force")
