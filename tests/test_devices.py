"""Models that are spread over devices: the same patches, sums in float64 on the host, generators left as they were."""

import copy
from typing import Any

import pytest
import torch
from conftest import EDITS, TEXTS, data_for, quick, tiny_lm, tiny_model, tokenizer
from devices import KIND, FakeDevices, put, spread, tag
from torch import Tensor

import errata
from errata.locate.attribution import attributions
from errata.methods import isolation
from errata.methods.closed_form.inverses import kept
from errata.methods.isolation import frozen_rng
from errata.model.hf import HFLM

pytest.importorskip("accelerate")
PROMPTS = [edit.prompt for edit in EDITS]


def spread_lm() -> HFLM:
    """Of four blocks, two are on each of two devices. To be made inside FakeDevices."""
    model: Any = copy.deepcopy(tiny_model("llama", torch.float32))
    body = model.model
    spread(model, body.layers, [body.embed_tokens, body.rotary_emb], [body.norm, model.lm_head])
    return HFLM(model, tokenizer(), name="tiny llama")


def everywhere(patch: errata.Patch) -> list[Tensor]:
    return [*patch.memory.values(), *(x for part in patch.parts for x in part.tensors().values())]


def test_the_test_sees_tensors_of_two_devices_meet() -> None:
    with FakeDevices():
        on_one, on_two, at = (put(torch.arange(3.0), where) for where in (0, 1, 0))
        assert on_two.device == torch.device(KIND, 1) and on_two.cpu().device.type == "cpu"
        for meet in (
            lambda: on_one + on_two,
            lambda: on_two[at.long()],
            lambda: torch.cat([on_one, on_two]),
            lambda: on_one + torch.arange(3.0),
        ):
            with pytest.raises(RuntimeError, match="several devices"):
                meet()
        assert tag(on_two[torch.tensor([0, 2])]) == tag(on_one.to(on_two) + on_two) == tag(2 * on_two) == 1
        assert tag(torch.zeros(2, device=on_two.device)) == tag(torch.zeros_like(on_two)) == 1


@pytest.mark.parametrize(
    "name",
    ["memit", "alphaedit", "pmet", "ft-m", "grace", "melo", "memoir", "t-patcher"]
    + ["ultraedit", "mend", "malmen", "ke", "slag", "enn", "remedi"],
)
def test_a_model_on_two_devices_is_edited_as_on_one(name: str) -> None:
    whole, made = tiny_lm("llama"), quick(name)
    edits = EDITS[:2]
    expected = made.edit(whole, edits, made.prepare(whole, data_for(made)))
    with expected.applied(whole) as edited:
        answers, scores = edited.generate(PROMPTS, 3), edited.score(PROMPTS, ["Oslo", "New York", "Lima"])
    with FakeDevices():
        lm = spread_lm()
        assert lm.device == torch.device(KIND, 0) and lm.fingerprint == whole.fingerprint
        patch = made.edit(lm, edits, made.prepare(lm, data_for(made)))
        assert all(tag(x) is None for x in everywhere(patch))
        with patch.applied(lm) as edited:
            assert edited.generate(PROMPTS, 3) == answers
            again = edited.score(PROMPTS, ["Oslo", "New York", "Lima"])
    if name == "ft-m":  # Adam's steps are fused on the CPU alone, and round otherwise
        assert [s.argmax for s in again] == [s.argmax for s in scores]
        assert all(s.logprobs == pytest.approx(t.logprobs, abs=1e-5) for s, t in zip(again, scores, strict=True))
        pairs = zip(everywhere(patch), everywhere(expected), strict=True)
        assert all(torch.allclose(x, y, atol=1e-6) for x, y in pairs)
    else:
        assert again == scores and patch == expected


def test_rows_leave_and_neurons_are_found_on_two_devices() -> None:
    whole = tiny_lm("llama")
    rows = [whole.tokens.prompt(prompt) for prompt in PROMPTS]
    questions = [(row, 5) for row in rows]
    expected = whole.prolong(PROMPTS, [len(row) + n for row, n in zip(rows, (1, 3, 2), strict=True)])
    found = attributions(whole, questions, 3)
    with FakeDevices():
        lm = spread_lm()
        assert lm.prolong(PROMPTS, [len(row) + n for row, n in zip(rows, (1, 3, 2), strict=True)]) == expected
        assert torch.equal(attributions(lm, questions, 3), found)


@pytest.mark.parametrize("name", ["memit", "alphaedit"])
@pytest.mark.parametrize("float64", [True, False])
def test_inverses_are_on_the_host_and_float64_is_where_there_is_some(name: str, float64: bool) -> None:
    made: Any = errata.method(name, contexts=0, steps=3, history=True)
    whole = tiny_lm("llama")
    expected = made.edit(whole, EDITS[:1], made.prepare(whole, TEXTS))
    with FakeDevices(float64):
        lm = spread_lm()
        state = made.prepare(lm, TEXTS)
        patch = made.edit(lm, EDITS[:1], state)
        held = list(kept(state)._held.values())
        assert len(held) == len(made.chosen_layers(lm))
        strips = [strip for one in held for x in (one.initial, one.current) for strip in x.strips]
        assert strips and all(tag(strip) is None and strip.dtype == torch.float64 for strip in strips)
    assert patch == expected


# Random generators -------------------------------------------------------------------------------------


class Accelerator:
    """A device module of torch as of CUDA (``every``) or of Apple's, with generators that are seeds."""

    def __init__(self, every: bool, used: bool = True) -> None:
        self.seeds, self.used = [11, 12] if every else [11], used
        end = "_all" if every else ""
        setattr(self, f"get_rng_state{end}", lambda: list(self.seeds))
        setattr(self, f"set_rng_state{end}", lambda seeds: setattr(self, "seeds", seeds))
        setattr(self, f"manual_seed{end}", lambda seed: setattr(self, "seeds", [seed] * len(self.seeds)))
        if every:
            self.is_initialized = lambda: self.used


@pytest.mark.parametrize("every", [True, False])
def test_generators_of_accelerators_are_seeded_and_left_as_they_were(
    every: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = Accelerator(every)
    was, before = list(devices.seeds), torch.get_rng_state()
    monkeypatch.setattr(
        isolation.torch.accelerator, "current_accelerator", lambda check_available=False: torch.device(KIND)
    )
    monkeypatch.setattr(isolation.torch, "get_device_module", lambda _: devices)
    with pytest.raises(ZeroDivisionError), frozen_rng(5):
        assert set(devices.seeds) == {5} and torch.initial_seed() == 5
        raise ZeroDivisionError
    assert devices.seeds == was and torch.equal(torch.get_rng_state(), before)


def test_generators_that_are_not_in_use_are_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = Accelerator(True, used=False)
    monkeypatch.setattr(
        isolation.torch.accelerator, "current_accelerator", lambda check_available=False: torch.device(KIND)
    )
    monkeypatch.setattr(isolation.torch, "get_device_module", lambda _: devices)
    with frozen_rng(5):
        assert devices.seeds == [11, 12]
        first = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), first)
