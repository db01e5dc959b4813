"""Added neurons: what they say, which facts they are made for, taking one out; and what a model believes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import EDIT, EDITS, TEXTS, tiny_lm

from errata.errors import BadInput, Unsupported, WrongModel
from errata.locate import believes
from errata.methods.neurons.base import Lesson, Taught
from errata.methods.neurons.t_patcher import TPatcherNeurons
from errata.methods.registry import method
from errata.model.hf import HFLM
from errata.model.passes import at_least_float32
from errata.patch.parts import output_replaced
from errata.patch.patch import Patch
from errata.types import Edit, Score

QUICK: dict[str, dict[str, Any]] = {
    "t-patcher": {"steps": 60, "lr": 0.5, "texts": 40},
    "calinet": {"steps": 60, "slots": 8, "contexts": 0, "texts": 40},
}
BOTH = ("t-patcher", "calinet")
FACTS = [([5, 6, 7], [8, 9]), ([10, 11], [12]), ([13, 14, 15, 16], [17, 18, 19])]


def empty(lm: HFLM, layer: int) -> TPatcherNeurons:
    site, source = lm.sites.mlp_out[layer], lm.sites.mlp_in[layer][0]
    return TPatcherNeurons.empty(site, source, {"act": "relu", "decoder": lm.seq2seq}, 32, 32)


def some(lm: HFLM, layer: int = 3, n: int = 6) -> TPatcherNeurons:
    """Random neurons, each of an edit of its own, loud enough to be heard."""
    log = [Taught(f"e{i}", f"prompt {i}", [i], [i], i) for i in range(n)]
    draw = torch.Generator().manual_seed(0)
    k, v = torch.randn(n, 32, generator=draw), torch.randn(n, 32, generator=draw)
    return empty(lm, layer).longer(
        log, keys=k.to(lm.dtype), biases=torch.zeros(n), values=v.to(lm.dtype), owner=torch.arange(n)
    )


@pytest.mark.parametrize("arch", ["gpt2", "llama", "opt", "falcon", "gemma2", "t5"])
def test_neurons_are_more_of_the_mlp(arch: str) -> None:
    """What they read is what the MLP reads, at every token, in every kind of block."""
    lm = tiny_lm(arch)
    part, seen = some(lm, 2), []
    reader = lm.model.get_submodule(part.source)

    def keep(call: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        said = part.out(None, x, y)
        wanted = y + torch.relu(x @ part.keys.T) @ part.values
        seen.append(torch.allclose(said, wanted, atol=1e-5) and x.shape[-1] == 32 and x.shape[:2] == y.shape[:2])
        return said

    before = lm.score(["Ann Lee was born in", "Rome"], ["Oslo", "Lima"])
    with output_replaced(lm, part.site, keep, part.source):
        after = lm.score(["Ann Lee was born in", "Rome"], ["Oslo", "Lima"])
    assert seen and all(seen) and after != before
    assert not reader._forward_hooks
    with Patch((part,)).applied(lm) as edited:
        assert edited.score(["Ann Lee was born in", "Rome"], ["Oslo", "Lima"]) == after


@pytest.mark.parametrize("arch", ["gpt2", "llama", "opt", "gemma2"])
def test_the_suffix_is_as_good_as_the_whole_pass(arch: str) -> None:
    lm = tiny_lm(arch, torch.float64)
    part, found = some(lm), []
    for plain in (False, True):
        k = part.keys.clone().requires_grad_()
        lesson = Lesson(lm, part, FACTS, plain=plain)
        assert lesson.fast != plain
        losses, right = lesson.descend(lambda x, k=k: torch.relu(x @ k.T) @ part.values, smooth=0.1)
        found.append((lesson.queries, lesson.outs, losses, right, k.grad))
    for one, two in zip(*found, strict=True):
        assert torch.allclose(one.double(), two.double(), atol=1e-6)


def test_queries_are_where_the_answers_tokens_are_said() -> None:
    for arch in ("gpt2", "t5"):
        lm = tiny_lm(arch)
        lesson = Lesson(lm, empty(lm, 3), FACTS)
        assert lesson.targets.tolist() == [8, 9, 12, 17, 18, 19] and lesson.of.tolist() == [0, 0, 1, 2, 2, 2]
        for fact, (p, t) in enumerate(FACTS):
            alone = Lesson(lm, empty(lm, 3), [(p, t)])
            assert torch.allclose(alone.queries, lesson.queries[lesson.of == fact], atol=1e-5)
    seen: list[torch.Tensor] = []
    lm = tiny_lm("gpt2")

    def keep(call: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.append(at_least_float32(x))
        return y

    part = empty(lm, 3)
    with output_replaced(lm, part.site, keep, part.source):
        lm.target_logits(FACTS[:1])
    assert torch.allclose(seen[0][0, 2:4], Lesson(lm, part, FACTS[:1]).queries, atol=1e-5)


def test_a_neuron_for_each_wrong_token_and_none_for_a_right_one() -> None:
    lm = tiny_lm("gpt2")
    made = method("t-patcher", **QUICK["t-patcher"])
    state = made.prepare(lm, TEXTS)
    target = lm.tokens.target(EDIT.prompt, "New York, Paris and Lima")
    patch: Any = made.edit(lm, [Edit(EDIT.prompt, EDIT.subject, "New York, Paris and Lima")], state).parts[0]
    with torch.no_grad():
        likeliest = lm.target_logits([(lm.tokens.prompt(EDIT.prompt), target)]).argmax(-1).tolist()
    wrong = sum(a != b for a, b in zip(likeliest, target, strict=True))
    assert len(patch.keys) == min(wrong, made.tokens) > 1
    said = lm.generate([EDIT.prompt], 1)[0].strip()
    right: Any = made.edit(lm, [Edit(EDIT.prompt, EDIT.subject, said)], state).parts[0]
    if lm.score([EDIT.prompt], [said])[0].correct:
        assert not len(right.keys) and right.entries()[0]["neurons"] == 0


def test_patches_are_silent_at_their_memory() -> None:
    """What is no edit is answered as before, bit for bit, where relu neurons are silent."""
    lm = tiny_lm("llama")
    made = method("t-patcher", texts=60, steps=200)
    patch = made.edit(lm, EDITS[:2], made.prepare(lm, TEXTS))
    part: Any = patch.parts[0]
    own = (part.queries * part.keys).sum(-1) + part.biases
    assert (own > 0).all()
    others = ["A baker went by night to", "The old king is the mayor of"]
    before = lm.score(others, ["Lima", "Oslo"])
    with patch.applied(lm) as edited:
        assert all(
            score.correct for score in edited.score([e.prompt for e in EDITS[:2]], [e.target_new for e in EDITS[:2]])
        )
        assert edited.score(others, ["Lima", "Oslo"]) == before
        assert edited.explain(others) == [[], []]
        (line,) = edited.explain([EDIT.prompt])[0]
        assert EDIT.id in line and EDIT.prompt in line
    assert all(entry["radius"] > 0 for entry in part.entries())


def test_memory_of_a_neuron() -> None:
    """Not the texts that name the subject, nor the same question; older edits and the others of the call."""
    lm = tiny_lm("gpt2")
    made: Any = method("t-patcher", **QUICK["t-patcher"])
    state = made.prepare(lm, [text for text in TEXTS if "Ann" in text or "baker" in text])
    old = replace(some(lm, n=1), queries=torch.ones(1, 32))
    log = [Taught("a", EDIT.prompt, [0], [1], 1), Taught("b", "Bob Ray lives in", [7], [2, 3], 2)]
    lesson = Lesson(lm, old, [(its.asked, its.answer) for its in log])
    memory, silent = made._memory(old, [EDIT.subject, EDITS[1].subject], log, lesson, lesson.of, state)
    texts = [state.info["texts"][i] for i in state.tensors["of"].tolist()]
    assert len(memory) == len(texts) + 1 + 3 and silent.shape == (3, len(memory))
    assert silent[0].tolist() == ["Ann Lee" not in text for text in texts] + [False, False, True, True]
    assert silent[1].tolist() == [True] * len(texts) + [True, True, False, False] == silent[2].tolist()
    assert any("Ann Lee" in text for text in texts) and not silent[0].all()


def test_the_losses_that_hold_a_neuron() -> None:
    made: Any = method("t-patcher", top=0.5)
    q, memory = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.0], [0.0, 1.0], [-1.0, 0.0], [9.0, 0.0]])
    silent = torch.tensor([[True, True, True, False]])
    near, far = made._held(torch.tensor([[2.0, 0.0]]), torch.tensor([-1.0]), q, memory, silent)[0]
    assert float(near) == pytest.approx(torch.tensor(-1.0).exp().item())  # the neuron gives 1
    # the two that fire most of those that shall not: 0 and -1
    wanted = sum(torch.tensor([a + 3.0, a - 1.0 + 3.0]).exp().sum().item() for a in (0.0, -1.0)) / 2
    assert float(far) == pytest.approx(wanted)


def test_an_edit_taken_out_takes_its_neurons() -> None:
    lm = tiny_lm("gpt2")
    part = some(lm)
    less: Any = part.without("e2")
    assert [edit.id for edit in less.log] == ["e0", "e1", "e3", "e4", "e5"]
    assert torch.equal(less.keys, part.keys[[0, 1, 3, 4, 5]]) and less.owner.tolist() == [0, 1, 3, 4, 5]
    assert part.without("unknown") is part
    made = method("t-patcher", **QUICK["t-patcher"])
    state = made.prepare(lm, TEXTS)
    first = made.edit(lm, [EDITS[0]], state)
    second = made.edit(lm, [EDITS[1]], state, first)
    assert second.without(EDITS[1].id) == first
    again = made.edit(lm, [Edit(EDIT.prompt, EDIT.subject, "Lima")], state, first)
    with pytest.raises(Unsupported, match="on top of it"):
        again.without(EDIT.id)
    assert again.without(again.edits[-1].id) == first


@pytest.mark.parametrize("name", BOTH)
def test_the_same_question_again_has_its_new_answer(name: str) -> None:
    lm = tiny_lm("gpt2")
    made = method(name, **{**QUICK[name], "steps": 200})
    state = made.prepare(lm, TEXTS)
    again = Edit(EDIT.prompt, EDIT.subject, "Lima")
    for patch in (made.edit(lm, [again], state, made.edit(lm, [EDIT], state)), made.edit(lm, [EDIT, again], state)):
        assert len(patch.edits) == len(patch.parts[0].entries()) == 2
        with patch.applied(lm) as edited:
            assert edited.score([EDIT.prompt], ["Lima"])[0].correct


@pytest.mark.parametrize("name", BOTH)
def test_a_model_in_half_precision(name: str) -> None:
    lm = tiny_lm("llama", torch.bfloat16)
    made = method(name, **QUICK[name])
    patch = made.edit(lm, [EDIT], made.prepare(lm, TEXTS))
    before = lm.score([EDIT.prompt], [EDIT.target_new])[0].total
    with patch.applied(lm) as edited:
        assert edited.score([EDIT.prompt], [EDIT.target_new])[0].total > before
    assert all(its.dtype in (torch.float32, torch.int64) for its in patch.parts[0].tensors().values())


def test_slots_of_a_call_stay_together() -> None:
    lm = tiny_lm("gpt2")
    made = method("calinet", **QUICK["calinet"])
    state = made.prepare(lm, TEXTS)
    first = made.edit(lm, EDITS[:2], state)
    second: Any = made.edit(lm, EDITS[2:], state, first)
    assert second.without(EDITS[2].id) == first
    with pytest.raises(Unsupported, match="together"):
        second.without(EDIT.id)
    assert len(second.parts[0].keys) == 16 and second.parts[0].owner.tolist() == [0] * 8 + [1] * 8
    with second.applied(lm) as edited:
        assert all(s.correct for s in edited.score([e.prompt for e in EDITS], [e.target_new for e in EDITS]))
        (line,) = edited.explain([EDIT.prompt])[0]
        assert line.startswith("calinet: edit")


def test_slots_are_still_where_they_are_asked_to_be() -> None:
    """Other texts hear less of the slots where ``keep`` has a weight; those that name the subject do not count."""
    lm, moved = tiny_lm("gpt2"), []
    for keep in (0.0, 10.0):
        made: Any = method("calinet", **QUICK["calinet"], keep=keep)
        state = made.prepare(lm, TEXTS)
        part: Any = made.edit(lm, [EDIT], state).parts[0]
        foreign = made._foreign([EDIT], state)
        texts = [state.info["texts"][i] for i in state.tensors["of"].tolist()]
        assert foreign.tolist() == ["Ann Lee" not in text for text in texts]
        moved.append(float(part.says(state.tensors["states"][foreign]).norm()))
    assert moved[1] < moved[0] / 2
    made = method("calinet", **QUICK["calinet"])
    state = made.prepare(lm, [text for text in TEXTS if "Ann Lee" in text])  # none is left to be still in
    part = made.edit(lm, [EDIT], state).parts[0]
    assert all(its.isfinite().all() for its in part.tensors().values())


@pytest.mark.parametrize("name", BOTH)
def test_bad_input(name: str) -> None:
    lm = tiny_lm("gpt2")
    made = method(name, **QUICK[name])
    state = made.prepare(lm, TEXTS)
    patch = made.edit(lm, [EDIT], state)
    with pytest.raises(BadInput, match="0 to 3"):
        method(name, layer=4).edit(lm, [EDIT], state)
    with pytest.raises(BadInput, match="same settings"):
        replace(made, act="gelu").edit(lm, [EDITS[1]], state, patch)
    lower = replace(made, layer=1)
    with pytest.raises(BadInput, match="same settings"):
        lower.edit(lm, [EDITS[1]], lower.prepare(lm, TEXTS), patch)
    with pytest.raises(BadInput, match="one of"):
        replace(made, act="tanh")
    with pytest.raises(BadInput, match="prepare anew"):
        lower.edit(lm, [EDIT], state)
    with pytest.raises(BadInput, match="prepare anew"):
        made.edit(lm, [EDIT], method("grace", layer=3).prepare(lm, TEXTS))
    with pytest.raises(BadInput, match="no text"):
        made.prepare(lm, ["Rome"])
    with pytest.raises(WrongModel):
        made.edit(tiny_lm("llama"), [EDIT], state)
    with pytest.raises(BadInput, match="shares"):
        method("t-patcher", top=2.0)


# What a model believes -----------------------------------------------------------------------------


class FactPrompt:
    """Says what it is told: the log-probability of an answer's first token behind each prompt."""

    def __init__(self, **logprobs: float) -> None:
        self.logprobs = logprobs

    def score(self, prompts: list[str], targets: list[str]) -> list[Score]:
        return [Score((1, 2), (self.logprobs[p], -9.0), (1, 2)) for p in prompts]


def test_believes() -> None:
    log = lambda p: torch.tensor(p, dtype=torch.float64).log().item()  # noqa: E731
    lm: Any = FactPrompt(a=log(0.6), b=log(0.1), c=log(0.3), d=log(0.01), e=-1000.0, f=-torch.inf, g=-torch.inf)
    scores = believes(lm, ["a", "d", "a", "f", "a"], ["x"] * 5, [["b", "c"], ["b"], ["e"], ["f", "g"], ["f"]])
    assert scores[:2] == pytest.approx([0.6 / 0.2, 0.1])
    assert scores[2] > 1e300 and scores[3] == 0.0 and scores[4] == torch.inf
    smooth = believes(lm, ["a", "d", "f"], ["x"] * 3, [["b", "c"], ["e"], ["f"]], alpha=0.01)
    assert smooth == pytest.approx([0.61 / 0.21, 2.0, 1.0])
    with pytest.raises(BadInput, match="alpha"):
        believes(lm, ["a"], ["x"], [["b"]], alpha=-1.0)
    with pytest.raises(BadInput, match="something else"):
        believes(lm, ["a"], ["x"], [[]])
    with pytest.raises(BadInput, match="something else"):
        believes(lm, ["a"], ["x"], ["bc"])  # type: ignore[list-item]
    with pytest.raises(BadInput, match="2 prompts"):
        believes(lm, ["a", "b"], ["x"], [["b"]])
