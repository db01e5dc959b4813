"""The gold of some edits: what retrained models expect, in one file, and how far a model is from it."""

from collections.abc import Sequence
from math import log
from pathlib import Path

import numpy as np
import pytest
from test_cli import SMALL

import errata
from errata.cli import world as world_command
from errata.evaluation.gold import Gold, outlook_of
from errata.evaluation.make_gold import gold_of
from errata.evaluation.metrics import Outlook, answer_kl, mean_over_cases
from errata.evaluation.metrics.outlook import FLOOR
from errata.model.hf import HFLM
from errata.world.cases import cases as world_cases
from errata.world.facts import world as make_world

CASES = world_cases(make_world(30), 8)
EDITS = tuple(edit for case in CASES for edit in case.edits)
KINDS = {"edit", *(probe.kind for case in CASES for probe in case.probes)}


# The formula ---------------------------------------------------------------------------------------


def outlook(first: Sequence[float], rest: float, answer: Sequence[float] = ()) -> Outlook:
    """Of probabilities."""
    return Outlook(np.log(np.array(first)), log(rest) if rest else -np.inf, np.log(np.array(answer)))


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
    assert answer_kl(outlook([1.0], 0.0, [1.0, 1.0]), outlook([1.0], 0.0, [1.0, 0.0])) == pytest.approx(
        16.6355, abs=1e-3
    )
    none = outlook_of(np.full(3, np.nan), np.array([0]), [np.nan, np.nan])
    assert answer_kl(outlook([1.0], 0.0, [1.0, 1.0]), none) == pytest.approx(2 * 16.6355, abs=1e-3)


# Models --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of a small world, three that go on from it where the edits hold, and the gold of the first."""
    made = tmp_path_factory.mktemp("worlds")
    sizes = {name[2:]: int(value) for name, value in zip(SMALL[::2], SMALL[1::2], strict=True)}
    world_command.train(made / "base", **sizes)
    for seed, follow in ((0, 3), (1, 3), (2, 3)):
        world_command.train(made / f"gold-{seed}", start=made / "base", edits=EDITS, seed=seed, follow=follow)
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
    assert gold.answers == [golds_answer(reply) for reply in replies]
    rows = np.exp(reference.next_logprobs(gold.prompts).astype(np.float64))
    for row, ids, kept in zip(rows, gold.ids.split(gold.counts.tolist()), gold.outlooks, strict=True):
        held = float(row[ids.numpy()].sum())
        assert held >= 0.999 - 1e-6 and np.exp(kept.rest) == pytest.approx(1 - held, abs=1e-5)
        assert np.allclose(np.exp(kept.first), row[ids.numpy()], atol=1e-6)
    assert [recipe["seed"] for recipe in gold.recipes] == [0, 1] and "edits" not in gold.recipes[0]


def golds_answer(reply: str) -> str:
    from errata.answers import answer_of

    return answer_of(reply)
