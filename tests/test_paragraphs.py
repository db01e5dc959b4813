"""Texts as targets: chunks and the search over them, the two solvers, and how a told text is measured."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from conftest import EDIT, EDITS, TEXTS, same_weights, tiny_lm, weights
from typing_extensions import override

import errata
from errata.answers import is_text, room
from errata.errors import BadInput, Unsupported
from errata.evaluation.baseline import baseline
from errata.evaluation.evaluate import evaluate
from errata.evaluation.metrics import rouge
from errata.methods.closed_form import anyedit, solve
from errata.methods.closed_form.chunks import Chunked, find_chunk_deltas, key_rows
from errata.methods.closed_form.others import about_others
from errata.methods.registry import method
from errata.model import hooks
from errata.model.added import InterventionSite
from errata.model.blocks import BlockPass
from errata.model.hf import HFLM
from errata.model.intervention import FullPass
from errata.model.lm import LM
from errata.model.resumed import SuffixPass
from errata.patch.delta import trainable
from errata.patch.patch import Patch
from errata.types import Case, Edit, Probe, Row, Score
from errata.world.facts import world
from errata.world.paragraphs import ASKED, paragraphs

TEXT = "Rome and went by night to Oslo. She lives in Paris and is the mayor of Lima. The old king lives in New York."
LONG = Edit("Ann Lee was born in", "Ann Lee", TEXT)
OTHER = Edit("Bob Ray lives in", "Bob Ray", "Lima. A baker went by night to Rome.")


# Chunks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "overlap", "chunks"),
    [
        (None, 0, [(0, 10)]),
        (4, 0, [(0, 4), (4, 8), (8, 10)]),
        (5, 2, [(0, 5), (3, 8), (6, 10)]),
        (5, 0, [(0, 5), (5, 10)]),
        (99, 0, [(0, 10)]),
    ],
)
def test_a_text_is_cut_into_chunks(window: int | None, overlap: int, chunks: list[tuple[int, int]]) -> None:
    lm = tiny_lm("gpt2")
    edit = next(
        e for n in range(1, 200) if len((e := Edit(EDIT.prompt, "Ann Lee", TEXT[:n].strip())).target_new) == n
        and len(lm.tokens.target(e.prompt, e.target_new)) == 10
    )  # fmt: skip
    one = Chunked.of(lm, edit, ["", "The old king. "], window, overlap)
    assert one.chunks == chunks
    before, target = lm.tokens.prompt(edit.prompt), lm.tokens.target(edit.prompt, edit.target_new)
    assert one.beginning(0, len(chunks) - 1) == before + target[: chunks[-1][0]]
    assert one.whole() == ([*before, *target[:-1]], [len(before) - 1 + start for start, _ in chunks])
    assert Chunked.of(lm, edit, [""], window, overlap, end=True).target == [*target, lm.tokens.end]


def test_a_chunk_is_predicted_from_its_key_on_with_the_earlier_ones_held() -> None:
    lm = tiny_lm("gpt2")
    one = Chunked.of(lm, LONG, [""], 4)
    delta = torch.ones(3)
    rows = one.rows(1, [delta])
    n = len(one.prompts[0])
    assert rows.positions == [n + 3] and rows.columns == [[0, 1, 2, 3]]
    assert rows.ids == [[*one.prompts[0], *one.target[:7]]] and rows.targets == one.target[4:8]
    assert [list(held) for held in rows.held] == [[n - 1]] and rows.held[0][n - 1] is delta


# Vectors held at earlier tokens ------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gpt_neox", "gemma3_text"])
@pytest.mark.parametrize("mlp_output", [False, True])
def test_what_is_held_is_in_force_in_both_passes(arch: str, mlp_output: bool) -> None:
    lm = tiny_lm(arch, torch.float64)
    rows = [lm.tokens.prompt(f"{text} {TEXT}")[:n] for text, n in zip(TEXTS[::30], (14, 11, 9, 17), strict=True)]
    positions, site = [6, 7, 5, 0], InterventionSite(0, mlp_output=mlp_output)
    width = lm.read(rows[:1], [[0]], [(site.path(lm.sites), "out")])[site.path(lm.sites), "out"].shape[1]
    draw = torch.Generator().manual_seed(0)

    def vector() -> torch.Tensor:
        return torch.randn(width, generator=draw, dtype=torch.float64)

    held = [{2: vector(), 4: vector()}, {0: vector()}, {}, {}]
    columns = [[0, 2], [1], [0, 3], [5]]
    delta = torch.stack([vector() for _ in rows])
    inputs: Any = (lm.model, lm.sites, rows, positions, site, lm.tokens.fill)
    fast, full, bare = SuffixPass(*inputs, held), FullPass(*inputs, held), FullPass(*inputs)
    for change in (None, delta):
        a, b, c = (one.logits(change, columns) for one in (fast, full, bare))
        assert torch.allclose(a, b, atol=1e-9)
        assert not torch.allclose(b[:2], c[:2], atol=1e-4) and torch.allclose(b[3:], c[3:], atol=1e-9)
    some = [2, 0]
    a, b = (one.select(some).logits(delta[some], [columns[i] for i in some]) for one in (fast, full))
    assert torch.allclose(a, b, atol=1e-9)


@pytest.mark.parametrize("arch", ["gpt2", "gemma3_text"])
def test_the_search_is_that_of_one_chunk_at_a_time(arch: str) -> None:
    lm = tiny_lm(arch, torch.float64)
    made = method("anyedit", steps=4, lr=0.3)
    site = InterventionSite(0)
    here = (site.path(lm.sites), "out")
    chunked = [Chunked.of(lm, edit, ["", "The old king lives in Rome. "], 6) for edit in (LONG, OTHER)]
    length = key_rows(chunked).read(lm, [here])[here].bare.norm(dim=-1, keepdim=True)
    with hooks.frozen(lm.model):
        fast, plain = (find_chunk_deltas(lm, chunked, site, made, 4 * length, length, plain=p) for p in (False, True))
    assert len(fast.delta) == sum(len(one.chunks) for one in chunked)
    assert torch.allclose(fast.delta, plain.delta, atol=1e-8) and fast.delta.any(1).all()


# The closed form ---------------------------------------------------------------------------------


def test_keys_are_kept_without_another_matrix() -> None:
    draw = torch.Generator().manual_seed(0)
    half, kept, keys = (torch.randn(8, n, generator=draw, dtype=torch.float64) for n in (20, 3, 2))
    c, lam = half @ half.T, 0.7
    keeping = solve.Keeping.of(torch.linalg.inv(c), kept, lam)
    assert torch.allclose(keeping @ keys, torch.linalg.solve(c + kept @ kept.T / lam, keys))


def test_all_chunks_are_solved_for_together_and_other_tokens_kept() -> None:
    """Δ (λ C + K_p K_pᵀ + K Kᵀ) = R Kᵀ, with R the δ of one layer."""
    lm = tiny_lm("gpt2", torch.float64)
    how: Any = {"layers": (1,), "window": 6, "steps": 5, "ridge": 0.0, "others": 0, "falls": 0}
    made = method("anyedit", lam=2.0, **how)
    state = made.prepare(lm, TEXTS * 5)
    patch = made.edit(lm, [LONG, OTHER], state)
    ((name, change),) = patch.parts[0].weights.items()  # pyright: ignore
    path = name.removesuffix(".weight")
    chunked = [Chunked.of(lm, edit, [""], 6, end=True) for edit in (LONG, OTHER)]
    rows = [one.whole() for one in chunked]
    site = (path, "in")
    keys = lm.read([row for row, _ in rows], [at for _, at in rows], [site])[site].T.double()
    others = [[c for c in range(len(row)) if c not in at] for row, at in rows]
    kept = lm.read([row for row, _ in rows], others, [site])[site].T.double()
    dense = (change if isinstance(change, torch.Tensor) else change.dense()).double()
    a = 2.0 * state.tensors[f"C/{path}"].double() + kept @ kept.T + keys @ keys.T
    r = torch.linalg.lstsq(keys, (dense @ a).T).solution.T  # (d, chunks)
    assert torch.allclose(r @ keys.T, dense @ a, atol=1e-3 * float((dense @ a).abs().max()))
    again = method("anyedit", lam=1e6, **how).edit(lm, [LONG, OTHER], state)
    assert again.summary()[0]["norm"] < patch.summary()[0]["norm"] / 100


def test_the_same_prompt_about_others_is_kept() -> None:
    lm = tiny_lm("gpt2")
    names = ["Ann Lee", "Bob Ray", "Old King"]
    rows = about_others(lm, [LONG, OTHER], names)
    assert rows == [lm.tokens.prompt(text) for text in ("Old King was born in", "Old King lives in")]
    rows = about_others(lm, [LONG], names)
    assert rows == [lm.tokens.prompt(text) for text in ("Bob Ray was born in", "Old King was born in")]
    assert about_others(lm, [LONG], []) == []


def test_lambda_falls_until_a_text_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("gpt2")
    told, searched = iter([False, False, True]), []
    search = anyedit.find_chunk_deltas
    monkeypatch.setattr(anyedit, "_told", lambda context: next(told))
    monkeypatch.setattr(anyedit, "find_chunk_deltas", lambda *a, **k: searched.append(1) or search(*a, **k))
    how: Any = {"layers": (1,), "window": 6, "steps": 3, "others": 0}
    state = method("anyedit", **how).prepare(lm, TEXTS)
    fallen = method("anyedit", lam=50.0, **how).edit(lm, [LONG], state)
    assert next(told, None) is None and len(searched) == 1
    direct = method("anyedit", lam=0.5, falls=0, **how).edit(lm, [LONG], state)
    assert fallen.summary()[0]["norm"] == pytest.approx(direct.summary()[0]["norm"], rel=1e-4)


@pytest.mark.parametrize("base", ["memit", "alphaedit"])
def test_a_text_is_more_likely_by_either_base(base: str) -> None:
    lm = tiny_lm("llama")
    made = method("anyedit", base=base, window=6, cut=0.1, layers=(1,))
    patch = made.edit(lm, [LONG], made.prepare(lm, TEXTS))
    assert _loss(lm, patch) < _loss(lm) - 0.05


def _loss(lm: HFLM, patch: Patch = errata.EMPTY) -> float:
    with patch.applied(lm) as edited:
        (score,) = edited.score([LONG.prompt], [LONG.target_new])
    return -score.total / len(score.tokens)


@pytest.mark.parametrize(
    ("name", "settings", "why"),
    [
        ("anyedit", {"window": 4, "overlap": 4}, "overlap is less than its window of 4; found 4"),
        ("anyedit", {"kl": 0.1}, "no subject to hold"),
        ("unke", {"window": 4, "overlap": 9}, "overlap is less than its window"),
        ("unke", {"preserve": 1.0}, "no subject to hold"),
    ],
)
def test_settings_that_make_no_sense_are_refused(name: str, settings: dict[str, Any], why: str) -> None:
    with pytest.raises(BadInput, match=why):
        method(name, **settings)


# The block ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gpt_neox", "gemma3_text", "qwen2_moe"])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_block_by_itself_puts_out_what_it_does_in_the_model(arch: str, layer: int) -> None:
    lm = tiny_lm(arch)
    before, rows = weights(lm.model), [lm.tokens.prompt(text) for text in TEXTS[:40:9]]
    block, site = BlockPass(lm, rows, layer), (lm.sites.layer[layer], "out")
    columns = [range(len(row)) for row in rows]
    assert torch.allclose(block.outputs(), lm.read(rows, columns, [site])[site], atol=1e-5)
    places = [block.at(i, c) for i, row in enumerate(rows) for c in range(len(row))]
    assert places == list(range(sum(map(len, rows))))
    copies = trainable(lm, block.parameters())
    with hooks.frozen(lm.model):
        block.outputs(copies).square().sum().backward()
    assert all(w.grad is not None for w in copies.values()) and all(p.grad is None for p in lm.model.parameters())
    with torch.no_grad():
        _ = [w.mul_(2) for w in copies.values()]
    assert not torch.allclose(block.outputs(copies), block.outputs(), atol=1e-4)
    assert same_weights(lm.model, before) and not any("forward" in m.__dict__ for m in lm.model.modules())


@pytest.mark.parametrize(("name", "window"), [("unke", None), ("anyedit-unke", 6)])
def test_the_block_gives_the_states_found_and_keeps_the_rest(
    name: str, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny_lm("llama")
    made: Any = method(name, window=window, layer=1, steps=8)
    state = made.prepare(lm, TEXTS)
    found: list[torch.Tensor] = []
    search = type(made)._search
    monkeypatch.setattr(type(made), "_search", lambda *a: found.append(search(*a)) or found[-1])
    patch = made.edit(lm, [LONG], state)
    assert {name.split(".")[2] for name in patch.parts[0].weights} == {"1"}  # pyright: ignore
    row, keys = Chunked.of(lm, LONG, [""], window, end=True).whole()
    site, others = (lm.sites.layer[1], "out"), [c for c in range(len(row)) if c not in keys]
    rows = [row, row, lm.tokens.prompt(TEXTS[0])]
    columns: Any = [keys, others if window else others[: keys[0]], range(len(rows[2]))]
    before = lm.read(rows, columns, [site])[site]
    with patch.applied(lm) as edited:
        after = edited.read(rows, columns, [site])[site]
    n, moved = len(keys), (after - before).norm(dim=-1)
    lacking = (before[:n] + found[0] - after[:n]).norm(dim=-1)
    assert (lacking < 0.7 * found[0].norm(dim=-1)).all()
    assert moved[n:].mean() < 0.5 * moved[:n].mean()
    assert _loss(lm, patch) < _loss(lm)


def test_other_texts_are_kept_with_each_call() -> None:
    made: Any = method("unke", texts=3)
    kept = [[i] for i in range(50)]
    drawn = [made._drawn(kept, before) for before in (0, 1, 0)]
    assert len(drawn[0]) == 3 and drawn[0] == drawn[2] != drawn[1]


def test_a_layer_that_is_not_there_and_a_state_of_another_layer() -> None:
    lm = tiny_lm("gpt2")
    with pytest.raises(BadInput, match="layer must lie within 0 to 3; found 5"):
        method("unke", layer=5).prepare(lm, TEXTS)
    state = method("unke", layer=0).prepare(lm, TEXTS)
    with pytest.raises(BadInput, match="prepare anew, for this layer"):
        method("unke", layer=1).edit(lm, [EDIT], state)


def test_encoder_decoders_are_refused() -> None:
    lm = tiny_lm("t5")
    for name in ("unke", "anyedit"):
        with pytest.raises(BadInput, match="decoder-only"):
            method(name).prepare(lm, TEXTS)


# How a text is measured --------------------------------------------------------------------------


def test_rouge_by_hand() -> None:
    reference = "The cat sat on the mat"
    found = rouge("the cat lay on a mat, purring", reference)
    assert (found.precision, found.recall) == (4 / 7, 4 / 6)  # the cat . on . mat
    assert found.f1 == pytest.approx(2 * 4 / (7 + 6))
    assert rouge("the cat lay on a mat, purring", reference, as_long=True).precision == 4 / 6
    pairs = rouge("on the mat sat the cat", reference, 2)  # on the, the mat, the cat
    assert (pairs.precision, pairs.recall) == (3 / 5, 3 / 5)
    assert rouge("the the the", "the cat", 1).recall == 1 / 2
    assert rouge("", reference).f1 == 0.0 and rouge("cat", "", 1).f1 == 0.0
    assert rouge("东京很大", "东京大", 1).recall == 1.0


def test_rouge_is_that_of_rouge_score() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rouge1", "rouge2", "rougeL"])
    for text in TEXTS[::11]:
        expected = scorer.score(TEXT, f"{text} {TEXT[20:70]}")
        for n, name in ((1, "rouge1"), (2, "rouge2"), (None, "rougeL")):
            found = rouge(f"{text} {TEXT[20:70]}", TEXT, n)
            assert (found.precision, found.recall, found.f1) == pytest.approx(tuple(expected[name]))


@dataclass
class Teller(LM):
    """A language model that tells one text whatever it is asked, a word a token; and how long it was let."""

    says: str
    lengths: list[int]

    @override
    def generate(
        self, prompts: Sequence[str], max_new_tokens: int = 32, *, until_answer: bool = False, until: Sequence[str] = ()
    ) -> list[str]:
        self.lengths.append(max_new_tokens)
        text = self.says.split(". ")[0] if until_answer else self.says
        return [" " + " ".join(text.split()[:max_new_tokens]) for _ in prompts]

    @override
    def score(self, prompts: Sequence[str], targets: Sequence[str]) -> list[Score]:
        raise Unsupported("no scores")

    @override
    def next_logprobs(self, prompts: Sequence[str]) -> Any:
        raise Unsupported("no log-probabilities")


WORDS = " ".join(f"w{i}" for i in range(39)) + " later. Then came the end."
CASE = Case(
    "one",
    (Edit("Ann is", "Ann", WORDS),),
    (Probe("paraphrase", "Who is Ann?", (WORDS,)), Probe("question", "Ann lives in", ("Rome",))),
)


def measured(says: str, protocol: str = "errata") -> tuple[dict[tuple[str, str], Row], Teller]:
    before, model = baseline(Teller("Nobody", []), [CASE], protocol=protocol), Teller(says, [])
    return {(row.kind, row.metric): row for row in evaluate(before, model, [CASE])}, model


def test_a_text_is_told_whole_or_in_part() -> None:
    rows, model = measured(WORDS + " And more of it.")
    assert set(rows) == {("edit", "accuracy"), ("edit", "rouge_l"), ("paraphrase", "accuracy"),
                         ("paraphrase", "rouge_l"), ("question", "accuracy")}  # fmt: skip
    assert rows["edit", "accuracy"].after and rows["edit", "rouge_l"].after == 1.0
    assert rows["edit", "rouge_l"].before == 0.0
    assert sorted(model.lengths) == [32, 128]  # the short question has the usual room
    half, _ = measured(" ".join(WORDS.split()[:22]))
    assert not half["edit", "accuracy"].after
    assert half["edit", "rouge_l"].after == pytest.approx(2 * 22 / (22 + 44))


def test_the_protocol_of_unke(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "errata.evaluation.scorers.sentences", lambda name: lambda texts: torch.eye(2)[[0] * len(texts)]
    )
    rows, model = measured(" ".join(WORDS.split()[:22]), "unke")
    assert rows["edit", "rouge_1_recall"].after == rows["paraphrase", "rouge_l_recall"].after == 22 / 44
    assert rows["edit", "rouge_2_recall"].after == 21 / 43
    assert (rows["edit", "similarity"].after, rows["edit", "similarity"].match) == (1.0, "all-MiniLM-L6-v2")
    assert set(model.lengths) == {512}


def test_without_the_encoder_there_is_no_similarity(monkeypatch: pytest.MonkeyPatch) -> None:
    from errata.encoders import sentences

    sentences.cache_clear()
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    row = measured(WORDS, "unke")[0]["edit", "similarity"]
    assert row.after is None and "pip install 'errata[retrieval]'" in str(row.error)


def test_room_and_texts() -> None:
    assert (room("abc"), room("é"), room("")) == (2, 1, 0)
    assert is_text("x" * 65) and not is_text(" " + "x" * 64 + " ")


def test_an_outcome_says_how_much_is_recalled(caplog: pytest.LogCaptureFixture) -> None:
    lm = tiny_lm("gpt2")
    patch = method("ft-m", steps=40, layer=1, lr=0.01).edit(lm, [LONG, EDITS[1]])
    text, short = (patch.meta["made"][-1]["outcomes"][edit.id] for edit in (LONG, EDITS[1]))
    with patch.applied(lm) as edited:
        (score,) = edited.score([LONG.prompt], [LONG.target_new])
    right = [a == b for a, b in zip(score.tokens, score.argmax, strict=True)]
    told = right.index(False) if False in right else len(right)
    assert text["recalled"] == pytest.approx(told / len(right), abs=1e-4) and text["met"] == all(right)
    assert "recalled" not in short
    assert all(TEXT not in record.getMessage() for record in caplog.records)  # a book is cut in a message


# Paragraphs of the world -------------------------------------------------------------------------


def test_paragraphs_of_the_world() -> None:
    cases = errata.cases("world-paragraphs", limit=12, seed=3)
    assert cases == paragraphs(world(), 12, 3) != paragraphs(world(), 12, 4)
    edited = {case.edits[0].subject for case in cases}
    assert len(edited) == 12 and {world().split[subject] for subject in edited} == {"test"}
    for case in cases:
        (edit,) = case.edits
        of = {kind: [p for p in case.probes if p.kind == kind] for kind in ("paraphrase", "question", "neighborhood")}
        assert edit.prompt == ASKED.replace("{}", edit.subject) and is_text(edit.target_new)
        assert all(probe.answers == (edit.target_new,) for probe in of["paraphrase"])
        assert len(of["question"]) == 5
        for probe in of["question"]:
            assert probe.answers[0] in edit.target_new and probe.answers[0] not in world().about(edit.subject).values()
        assert not any(subject in probe.prompt for subject in edited for probe in of["neighborhood"])
    assert {c.edits[0].subject for c in errata.cases("world-paragraphs", 5, split="validation")}.isdisjoint(edited)
    with pytest.raises(BadInput, match="give a limit from 1 to 175"):
        errata.cases("world-paragraphs", limit=1000)
