"""Models in which the suffix pass does not hold are edited with full passes, with a warning."""

import logging
from typing import Any

import pytest
import torch
from conftest import EDITS, TEXTS, same_weights, tokenizer, weights
from plain import Plain
from tiny import build
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from errata.methods.closed_form import base as closed_form
from errata.methods.closed_form import keys as key_readings
from errata.methods.closed_form import targets as target_search
from errata.methods.registry import method
from errata.model import hooks, passes
from errata.model.added import InterventionSite
from errata.model.hf import HFLM
from errata.model.intervention import FullPass
from errata.model.passes import same_logits
from errata.model.prefixes import shared_lengths
from errata.model.resumed import SuffixPass
from errata.types import Edit

CONTEXTS = ["", "The king. ", "Paris by night. "]  # too short to be run once for many rows
WARNING = "full passes are used"


class RunningMean(nn.Module):
    """An MLP that also sees the mean of the tokens so far: those of this pass, not what is in a cache."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.c_fc, self.act, self.c_proj, self.dropout = mlp.c_fc, mlp.act, mlp.c_proj, mlp.dropout

    def forward(self, hidden: Tensor) -> Tensor:
        count = torch.arange(1, hidden.shape[1] + 1, dtype=hidden.dtype)[None, :, None]
        mixed = hidden.cumsum(1) / count
        return self.dropout(self.c_proj(self.act(self.c_fc(hidden)))) + mixed


class CountsForItself(GPT2LMHeadModel):
    """Takes no positions: a token's is its column, padding on the left included."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input_ids: Any = None, attention_mask: Any = None, past_key_values: Any = None, use_cache: Any = None
    ) -> Any:
        return super().forward(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=past_key_values, use_cache=use_cache
        )


def bending(kind: str) -> HFLM:
    """A tiny GPT-2, float64, whose suffix pass is wrong."""
    model: Any = build("gpt2", vocab_size=320).double()
    if kind == "running mean":
        model.transformer.h[3].mlp = RunningMean(model.transformer.h[3].mlp)
    else:
        model.__class__ = CountsForItself
    sites = HFLM(build("gpt2", vocab_size=320), tokenizer()).sites
    return HFLM(model, tokenizer(), sites=sites, name=f"GPT-2 with {kind}")


BENDING = ["running mean", "positions of its own"]


def inputs(lm: HFLM) -> tuple[list[list[int]], list[int], list[list[int]]]:
    """Rows, the position of the subject in each, and the last column counted from there."""
    rows = [lm.tokens.prompt(context + edit.prompt) for edit in EDITS for context in CONTEXTS]
    positions = [
        lm.tokens.last_of_subject(context + edit.prompt, edit.subject) for edit in EDITS for context in CONTEXTS
    ]
    return rows, positions, [[len(row) - 1 - position] for row, position in zip(rows, positions, strict=True)]


@pytest.mark.parametrize("kind", BENDING)
def test_the_suffix_pass_is_wrong_there(kind: str) -> None:
    """Else the other tests show nothing."""
    lm = bending(kind)
    rows, positions, columns = inputs(lm)
    fast, full = (
        kind(lm.model, lm.sites, rows, positions, InterventionSite(1), lm.tokens.fill)
        for kind in (SuffixPass, FullPass)
    )
    with torch.no_grad():
        assert not same_logits(fast.logits(None, columns), full.logits(None, columns))


@pytest.mark.parametrize("kind", BENDING)
def test_the_full_pass_is_taken_from_the_first_time_on_and_said_once(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    lm = bending(kind)
    rows, positions, columns = inputs(lm)
    with caplog.at_level(logging.WARNING, "errata"):
        first, second = (lm.intervention(rows, positions, InterventionSite(1), columns) for _ in range(2))
    assert isinstance(first, FullPass) and isinstance(second, FullPass)
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1 and WARNING in warnings[0] and lm.name in warnings[0]
    plain = Plain(lm.model, tokenizer(), "gpt2")
    delta = torch.randn(len(rows), 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        actual = first.logits(delta, columns)
        for row, position, (column,), d, logits in zip(rows, positions, columns, delta, actual, strict=True):
            expected = plain.logits(row, [("transformer.h.1", position, d)])[position + column]
            assert torch.allclose(logits, expected, atol=1e-9)


def test_more_than_the_first_row_is_held_against_the_full_pass() -> None:
    lm = bending("positions of its own")
    rows, positions, columns = inputs(lm)
    order = sorted(range(len(rows)), key=lambda i: -positions[i])  # the first is not padded, and right
    rows, positions, columns = ([values[i] for i in order] for values in (rows, positions, columns))
    assert isinstance(lm.intervention(rows[:1], positions[:1], InterventionSite(1), columns[:1]), SuffixPass)
    fresh = bending("positions of its own")
    assert isinstance(fresh.intervention(rows, positions, InterventionSite(1), columns), FullPass)


def test_a_model_that_keeps_the_rules_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    lm = HFLM(build("gpt2", vocab_size=320), tokenizer())
    rows, positions, columns = inputs(lm)
    with caplog.at_level(logging.WARNING, "errata"):
        assert isinstance(lm.intervention(rows, positions, InterventionSite(1), columns), SuffixPass)
    assert not caplog.records


def test_each_place_is_held_against_the_full_pass_for_itself_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = HFLM(build("gpt2", vocab_size=320), tokenizer())
    rows, positions, columns = inputs(lm)
    answers = iter([False, True])
    monkeypatch.setattr(passes, "same_logits", lambda fast, full, quantised: next(answers))
    expected = {InterventionSite(1): FullPass, InterventionSite(2): SuffixPass}
    for _ in range(2):
        for place, kind in expected.items():
            assert isinstance(lm.intervention(rows, positions, place, columns), kind)


@pytest.mark.parametrize("kind", BENDING)
def test_targets_are_those_of_full_passes(kind: str) -> None:
    lm = bending(kind)
    made: Any = method("memit", contexts=0, steps=6, lr=0.3, layers=(1,))
    settings = made.resolve(lm, made.prepare(lm, TEXTS))
    limits, units = torch.full((3, 1), 9.0), torch.full((3, 1), 5.0)
    actual, expected = (
        target_search.find_deltas(lm, EDITS, InterventionSite(1), CONTEXTS, settings, limits, units, plain=plain)
        for plain in (False, True)
    )
    assert expected.delta.norm(dim=-1).min() > 0.1
    assert torch.allclose(actual.delta, expected.delta, atol=1e-8)


@pytest.mark.parametrize("name", ["memit", "pmet", "r-rome"])
@pytest.mark.parametrize("kind", BENDING)
def test_the_edit_is_that_of_full_passes(
    kind: str, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(closed_form, "contexts_of", lambda *args: CONTEXTS)
    lm = bending(kind)
    settings: dict[str, Any] = {"steps": 6, "lr": 0.3, "layers": (1,) if name == "r-rome" else (0, 1)}
    made = method(name, **settings)
    before, state = weights(lm.model), made.prepare(lm, TEXTS)
    with caplog.at_level(logging.WARNING, "errata"):
        patch = made.edit(lm, EDITS, state)
    assert any(WARNING in record.getMessage() for record in caplog.records)
    plain = method(name, **settings, plain=True).edit(lm, EDITS, state)
    actual, expected = (dict(p.parts[0].tensors()) for p in (patch, plain))
    assert actual.keys() == expected.keys()
    for tensor, target in zip(actual.values(), expected.values(), strict=True):
        assert torch.allclose(tensor, target, atol=1e-5 * float(target.abs().max()))
    assert same_weights(lm.model, before)


def test_logits_agree_as_far_as_their_precision_goes() -> None:
    """Far apart they never agree, rounding is forgiven, and what is not finite agrees with nothing."""
    full = torch.randn(5, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for dtype, rounding, off in ((torch.float64, 1e-11, 1e-5), (torch.float32, 1e-5, 0.1), (torch.bfloat16, 0.0, 3.0)):
        logits = full.to(dtype)
        for near, expected in ((rounding, True), (off, False)):
            moved = logits.clone()
            moved[3, logits[3].argmax()] += near
            assert same_logits(moved, logits) is expected, (dtype, near)
        broken = logits.clone()
        broken[0, 0] = float("nan")
        assert not same_logits(broken, logits)
    assert same_logits(full + 7.0, full)  # the same probabilities
    unlikely = full.clone()
    full[:, 0], unlikely[:, 0] = -60.0, -60.0 - 1e-6
    assert same_logits(unlikely, full)  # what has no probability may differ


def test_a_ragged_batch_is_checked_though_an_even_one_came_first() -> None:
    lm = bending("positions of its own")
    rows, positions, columns = inputs(lm)
    lm.intervention(rows[:1], positions[:1], InterventionSite(1), columns[:1])
    assert isinstance(lm.intervention(rows, positions, InterventionSite(1), columns), FullPass)
    assert isinstance(lm.intervention(rows[:1], positions[:1], InterventionSite(1), columns[:1]), SuffixPass)


def test_a_batch_with_a_prefix_is_checked_though_one_without_came_first() -> None:
    lm = bending("running mean")
    rows, positions, columns = inputs(lm)
    site, last = InterventionSite(1), [[len(row) - 1] for row in rows]
    assert isinstance(lm.intervention(rows[:1], [0], site, last[:1]), SuffixPass)
    assert isinstance(lm.intervention(rows[:1], positions[:1], site, columns[:1]), FullPass)


def test_beginnings_of_several_lengths_are_checked_though_what_is_behind_them_is_even() -> None:
    """Where the prefixes are equally long, and the beginnings that rows share are padded."""
    lm = bending("positions of its own")
    kinds = [(first, n, i) for first, n in ((8, 6), (9, 8)) for i in (50, 60)]
    rows = [[first, *range(10, 9 + n), *range(i, i + 10 - n), 70, 71] for first, n, i in kinds]
    positions, columns = [10] * 4, [[1]] * 4
    assert shared_lengths([row[:10] for row in rows]) == [6, 6, 8, 8]
    lm.intervention(rows[:1], positions[:1], InterventionSite(1), columns[:1])
    assert isinstance(lm.intervention(rows, positions, InterventionSite(1), columns), FullPass)


def test_the_row_with_most_padding_is_among_those_compared() -> None:
    lm = bending("positions of its own")
    rows, positions, columns = inputs(lm)
    longest, shortest = (pick(range(len(rows)), key=positions.__getitem__) for pick in (max, min))
    order = [longest] * 37 + [shortest] + [longest] * 2
    rows, positions, columns = ([values[i] for i in order] for values in (rows, positions, columns))
    assert isinstance(lm.intervention(rows, positions, InterventionSite(1), columns), FullPass)


def test_each_sort_of_batch_is_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = HFLM(build("gpt2", vocab_size=320), tokenizer())
    rows, positions, columns = inputs(lm)
    compared: list[int] = []

    def same(fast: Tensor, full: Tensor, *quantised: bool) -> bool:
        compared.append(len(fast))
        return same_logits(fast, full, *quantised)

    monkeypatch.setattr(passes, "same_logits", same)
    for n in (1, len(rows), 1, len(rows), len(rows) - 1):
        lm.intervention(rows[:n], positions[:n], InterventionSite(1), columns[:n])
    assert compared == [1, len(rows)]


@pytest.mark.parametrize("kind", BENDING)
def test_keys_behind_shared_contexts_are_those_of_whole_rows(kind: str) -> None:
    lm = bending(kind)
    plain = Plain(lm.model, tokenizer(), "gpt2")
    contexts = ["", "It was a night in Rome and Oslo. ", "The mayor of Lima went by night to the baker. "]
    edits = [Edit(f"{who} was born in", who, "Oslo") for who in ("Ann Lee", "Bob", "The old king")]
    sites = [("transformer.h.3", "out")]
    with hooks.frozen(lm.model):
        actual = key_readings.read_at_subjects(lm, edits, contexts, sites)[sites[0]]
    for edit, mean in zip(edits, actual.mean, strict=True):
        each = [plain.at_subject(context + edit.prompt, edit.subject, *sites[0]) for context in contexts]
        assert torch.allclose(mean, torch.stack(each).mean(0), atol=1e-9)


def beginning_alike(*sizes: tuple[int, int]) -> list[list[int]]:
    """Rows of 12 tokens: for each (n, count), ``count`` of them that share their first n tokens."""
    kinds = [(first, n, i) for first, (n, count) in enumerate(sizes, 8) for i in range(count)]
    rows = [[first, *range(20, 19 + n), 50 + i, *range(120, 131 - n)] for first, n, i in kinds]
    assert shared_lengths(rows) == [n for n, count in sizes for _ in range(count)]
    return rows


def read_last(lm: HFLM, rows: list[list[int]]) -> Tensor:
    site = ("transformer.h.3", "out")
    return lm.read(rows, [[11]] * len(rows), [site])[site]


def whole(lm: HFLM, rows: list[list[int]]) -> Tensor:
    plain = Plain(lm.model, tokenizer(), "gpt2")
    return torch.stack([plain.flow(row, "transformer.h.3", "out")[-1] for row in rows])


def test_padded_beginnings_are_checked_though_equal_ones_came_first(caplog: pytest.LogCaptureFixture) -> None:
    """Also where few rows have another beginning than the others; with one warning."""
    lm = bending("positions of its own")
    for sizes in ([(6, 3)], [(6, 49), (8, 2)], [(6, 2), (8, 2)]):
        with caplog.at_level(logging.WARNING, "errata"):
            actual = read_last(lm, beginning_alike(*sizes))
        assert torch.allclose(actual, whole(lm, beginning_alike(*sizes)), atol=1e-9), sizes
    assert [lm.name in record.getMessage() for record in caplog.records] == [True]


def test_shared_beginnings_are_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = HFLM(build("gpt2", vocab_size=320).double(), tokenizer())
    compared: list[int] = []

    def same(fast: Tensor, full: Tensor, *quantised: bool) -> bool:
        compared.append(len(fast))
        return same_logits(fast, full, *quantised)

    monkeypatch.setattr(passes, "same_logits", same)
    for sizes in ([(6, 3)], [(7, 4)], [(6, 2), (8, 2)], [(6, 3), (9, 3)], [(6, 3)]):
        rows = beginning_alike(*sizes)
        assert torch.allclose(read_last(lm, rows), whole(lm, rows), atol=1e-9)
    assert compared == [3, 4]
