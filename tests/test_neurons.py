"""Added neurons: what they add, which facts they are made for, taking one out; and what a model believes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import EDIT, EDITS, TEXTS, tiny_lm

from errata.errors import BadInput, Unsupported, WrongModel
from errata.locate import believes
from errata.methods.memory.log import EditRecord
from errata.methods.neurons.added import MostActive, Neurons
from errata.methods.neurons.silence import Memory, added_noise
from errata.methods.neurons.t_patcher import TPatcherNeurons
from errata.methods.neurons.training import TargetTokens
from errata.methods.registry import method
from errata.model import hooks
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


def record(i: int, prompt: str = "", target: int = 0) -> EditRecord:
    return EditRecord(f"e{i}", prompt or f"prompt {i}", "prompt", "target", None, [i], [target])


def some(lm: HFLM, layer: int = 3, n: int = 6) -> TPatcherNeurons:
    """Random neurons, each of an edit of its own, large enough to change scores."""
    draw = torch.Generator().manual_seed(0)
    k, v = torch.randn(n, 32, generator=draw), torch.randn(n, 32, generator=draw)
    rows = {"keys": k.to(lm.dtype), "biases": torch.zeros(n), "values": v.to(lm.dtype), "owner": torch.arange(n)}
    neurons = Neurons.empty(lm, layer, "relu").extended(list(range(n)), **rows)
    log = tuple(record(i) for i in range(n))
    return TPatcherNeurons(lm.sites.mlp_out[layer], log, MostActive(decoder=lm.seq2seq), neurons)


@pytest.mark.parametrize("arch", ["gpt2", "llama", "opt", "falcon", "gemma2", "t5"])
def test_neurons_are_more_of_the_mlp(arch: str) -> None:
    """What they read is what the MLP reads, at every token, in every kind of block."""
    lm = tiny_lm(arch)
    part, seen = some(lm, 2), []
    assert part.reads
    reader = lm.model.get_submodule(part.reads)

    def keep(call: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        output = part.out(None, x, y)
        expected = y + torch.relu(x @ part.payload.keys.T) @ part.payload.values
        seen.append(torch.allclose(output, expected, atol=1e-5) and x.shape[-1] == 32 and x.shape[:2] == y.shape[:2])
        return output

    before = lm.score(["Ann Lee was born in", "Rome"], ["Oslo", "Lima"])
    with output_replaced(lm, part.site, keep, part.reads):
        after = lm.score(["Ann Lee was born in", "Rome"], ["Oslo", "Lima"])
    assert seen and all(seen) and after != before
    assert not reader._forward_hooks
    with Patch((part,)).applied(lm) as edited:
        assert edited.score(["Ann Lee was born in", "Rome"], ["Oslo", "Lima"]) == after


@pytest.mark.parametrize("arch", ["gpt2", "llama", "opt", "gemma2"])
def test_the_suffix_is_as_good_as_the_whole_pass(arch: str) -> None:
    lm = tiny_lm(arch, torch.float64)
    neurons, results = some(lm).payload, []
    for plain in (False, True):
        k = neurons.keys.clone().requires_grad_()
        tokens = TargetTokens(lm, 3, FACTS, plain=plain)
        assert tokens.fast != plain
        losses, right = tokens.backward(lambda x, k=k: torch.relu(x @ k.T) @ neurons.values, smooth=0.1)
        results.append((tokens.queries, tokens.outputs, losses, right, k.grad))
    for one, two in zip(*results, strict=True):
        assert torch.allclose(one.double(), two.double(), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arch", ["gpt2", "llama", "gpt_neox", "gemma2", "granite"])
def test_the_head_alone_is_as_good_as_the_whole_pass(arch: str, dtype: torch.dtype) -> None:
    """Where it gives the model's logits: not behind a norm or a scale. What is in force already counts too."""
    lm = tiny_lm(arch, dtype)
    neurons, results = some(lm).payload, []
    keys, values = neurons.keys.float(), 0.1 * neurons.values.float()
    for how in ({"plain": True}, {}, {"head": False}):
        k = (keys + 0.1).requires_grad_()
        tokens = TargetTokens(lm, 3, FACTS, lambda q: torch.relu(q @ keys.T) @ values, **how)
        assert (tokens.hidden is not None) == (not how and arch not in ("gemma2", "granite"))
        with hooks.frozen(lm.model):
            losses, right = tokens.backward(lambda q, k=k: torch.relu(q @ k.T) @ values, smooth=0.1)
        assert torch.equal(tokens.wrong(), torch.zeros_like(right)) or tokens.wrong().any()
        results.append((losses, k.grad))
    loss, gradient = results[0]
    tolerance = 1e-4 if dtype is torch.float32 else 0.1
    for other_loss, other_gradient in results[1:]:
        assert torch.allclose(loss, other_loss, rtol=tolerance, atol=tolerance)
        assert (gradient - other_gradient).norm() < tolerance * gradient.norm()


def test_tokens_that_are_likely_enough_have_no_graph() -> None:
    lm = tiny_lm("gpt2")
    values, results = some(lm).payload.values, []
    keys = some(lm).payload.keys
    for plain in (True, False):
        tokens = TargetTokens(lm, 3, FACTS, plain=plain)
        with hooks.frozen(lm.model):
            first, _ = tokens.backward(lambda q: torch.relu(q @ keys.T) @ values)
        stop = float(first.median())
        for quiet in (None, first < stop, first >= stop, first > 0):  # those that are not quiet go on
            k = keys.clone().requires_grad_()
            with hooks.frozen(lm.model):
                losses, right = tokens.backward(lambda q, k=k: torch.relu(q @ k.T) @ values, stop=stop, quiet=quiet)
            results.append((losses, right, k.grad))
    for other in results[1:]:
        assert all(torch.allclose(a.float(), b.float(), atol=1e-5) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("n", [3, 20])
def test_the_states_where_neurons_are_most_active(n: int) -> None:
    draw = torch.Generator().manual_seed(0)
    keys = torch.randn(n, 8, generator=draw, dtype=torch.float64).requires_grad_()
    states, silent = torch.randn(50, 8, generator=draw, dtype=torch.float64), torch.rand(n, 50, generator=draw) < 0.8
    silent[0] = False
    silent[0, :3] = True  # fewer than are asked for
    expected = (keys @ states.T).masked_fill(~silent, -torch.inf).topk(5, -1).values
    found = Memory.of(states, silent).strongest(keys, 5).activity(keys)
    assert torch.allclose(found.sort(-1).values, expected.sort(-1).values) and found[0].isinf().sum() == 2
    gradients = [torch.autograd.grad(x.exp().sum(), keys, retain_graph=True)[0] for x in (found, expected)]
    assert torch.allclose(*gradients) and gradients[0].any()


def test_the_noise_of_neurons() -> None:
    draw = torch.Generator().manual_seed(0)
    x, k, v = (torch.randn(n, 8, generator=draw, dtype=torch.float64) for n in (30, 4, 4))
    b = torch.randn(4, generator=draw, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in (k, b, v)]
    expected = (torch.relu(x @ k.T + b) @ v).square().mean(-1).mean()
    found = added_noise(torch.relu, x, k, b, v)
    assert torch.allclose(found, expected)
    for one, two in zip(*(torch.autograd.grad(y, leaves) for y in (found, expected)), strict=True):
        assert torch.allclose(one, two) and one.any()
    assert added_noise(torch.relu, x[:0], k, b, v).item() == 0


def test_queries_are_the_inputs_that_precede_the_targets_tokens() -> None:
    for arch in ("gpt2", "t5"):
        lm = tiny_lm(arch)
        tokens = TargetTokens(lm, 3, FACTS)
        assert tokens.targets.tolist() == [8, 9, 12, 17, 18, 19] and tokens.of.tolist() == [0, 0, 1, 2, 2, 2]
        for fact, (p, t) in enumerate(FACTS):
            alone = TargetTokens(lm, 3, [(p, t)])
            assert torch.allclose(alone.queries, tokens.queries[tokens.of == fact], atol=1e-5)
    seen: list[torch.Tensor] = []
    lm = tiny_lm("gpt2")

    def keep(call: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.append(at_least_float32(x))
        return y

    with output_replaced(lm, lm.sites.mlp_out[3], keep, lm.sites.mlp_in[3][0]):
        lm.target_logits(FACTS[:1])
    assert torch.allclose(seen[0][0, 2:4], TargetTokens(lm, 3, FACTS[:1]).queries, atol=1e-5)


def test_a_neuron_for_each_wrong_token_and_none_for_a_right_one() -> None:
    lm = tiny_lm("gpt2")
    made = method("t-patcher", **QUICK["t-patcher"])
    state = made.prepare(lm, TEXTS)
    target = lm.tokens.target(EDIT.prompt, "New York, Paris and Lima")
    patch: Any = made.edit(lm, [Edit(EDIT.prompt, EDIT.subject, "New York, Paris and Lima")], state).parts[0]
    with torch.no_grad():
        likeliest = lm.target_logits([(lm.tokens.prompt(EDIT.prompt), target)]).argmax(-1).tolist()
    wrong = sum(a != b for a, b in zip(likeliest, target, strict=True))
    assert len(patch.payload.keys) == min(wrong, made.tokens) > 1
    answer = lm.generate([EDIT.prompt], 1)[0].strip()
    right: Any = made.edit(lm, [Edit(EDIT.prompt, EDIT.subject, answer)], state).parts[0]
    if lm.score([EDIT.prompt], [answer])[0].correct:
        assert not len(right.payload.keys) and right.entries()[0]["neurons"] == 0


def test_patches_are_silent_at_their_memory() -> None:
    """What is no edit is answered as before, bit for bit, where relu neurons are silent."""
    lm = tiny_lm("llama")
    made = method("t-patcher", texts=60, steps=200)
    patch = made.edit(lm, EDITS[:2], made.prepare(lm, TEXTS))
    part: Any = patch.parts[0]
    neurons = part.payload
    own = (neurons.queries * neurons.keys).sum(-1) + neurons.biases
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
    old = some(lm, n=1)
    old = replace(old, payload=replace(old.payload, queries=torch.ones(1, 32)))
    facts = [
        EditRecord("a", EDIT.prompt, EDIT.subject, "x", None, [0], [1]),
        EditRecord("b", EDITS[1].prompt, EDITS[1].subject, "y z", None, [7], [2, 3]),
    ]
    tokens = TargetTokens(lm, 3, [(fact.prompt_ids, fact.target_ids) for fact in facts])
    memory, silent = made._memory(old, facts, [0, 1], tokens, tokens.of, state)
    texts = [state.info["texts"][i] for i in state.tensors["of"].tolist()]
    assert len(memory) == len(texts) + 1 + 3 and silent.shape == (3, len(memory))
    assert silent[0].tolist() == ["Ann Lee" not in text for text in texts] + [False, False, True, True]
    assert silent[1].tolist() == [True] * len(texts) + [True, True, False, False] == silent[2].tolist()
    assert any("Ann Lee" in text for text in texts) and not silent[0].all()


def test_the_losses_that_hold_a_neuron() -> None:
    made: Any = method("t-patcher", top=0.5)
    q, memory = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.0], [0.0, 1.0], [-1.0, 0.0], [9.0, 0.0]])
    silent = torch.tensor([[True, True, True, False]])
    keys = torch.tensor([[2.0, 0.0]])
    nearest = Memory.of(memory, silent).strongest(keys, 2)
    near, far = made._losses(keys, torch.tensor([-1.0]), q, nearest)[0]
    assert float(near) == pytest.approx(torch.tensor(-1.0).exp().item())  # the neuron gives 1
    # the two that fire most of those that shall not: 0 and -1
    expected = sum(torch.tensor([a + 3.0, a - 1.0 + 3.0]).exp().sum().item() for a in (0.0, -1.0)) / 2
    assert float(far) == pytest.approx(expected)


def test_an_edit_taken_out_takes_its_neurons() -> None:
    lm = tiny_lm("gpt2")
    part = some(lm)
    less: Any = part.without("e2")
    assert [edit.id for edit in less.log] == ["e0", "e1", "e3", "e4", "e5"]
    assert torch.equal(less.payload.keys, part.payload.keys[[0, 1, 3, 4, 5]])
    assert less.payload.owner.tolist() == less.payload.groups.tolist() == [0, 1, 3, 4, 5]
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


def test_the_newest_answer_wins_in_other_words_too() -> None:
    lm, made = tiny_lm("gpt2"), method("t-patcher", **{**QUICK["t-patcher"], "steps": 150})
    state = made.prepare(lm, [text for text in TEXTS if "Ann" in text])  # none is a reason to be silent
    first = made.edit(lm, [EDIT], state)
    other = Edit("Ann Lee was then born in", EDIT.subject, "Lima", EDIT.target_true)
    with first.applied(lm) as edited:
        assert edited.score([other.prompt], [EDIT.target_new])[0].correct
    patch: Any = made.edit(lm, [other], state, first)
    with patch.applied(lm) as edited:
        assert [s.correct for s in edited.score([other.prompt, EDIT.prompt], ["Lima"] * 2)] == [True, True]
    assert patch.without(other.id) == first


@pytest.mark.parametrize("name", BOTH)
def test_a_model_in_half_precision(name: str) -> None:
    lm = tiny_lm("llama", torch.bfloat16)
    made = method(name, **QUICK[name])
    patch = made.edit(lm, [EDIT], made.prepare(lm, TEXTS))
    before = lm.score([EDIT.prompt], [EDIT.target_new])[0].total
    with patch.applied(lm) as edited:
        assert edited.score([EDIT.prompt], [EDIT.target_new])[0].total > before
    assert all(t.dtype in (torch.float32, torch.int64) for t in patch.parts[0].tensors().values())


def test_slots_of_a_call_stay_together() -> None:
    lm = tiny_lm("gpt2")
    made = method("calinet", **QUICK["calinet"])
    state = made.prepare(lm, TEXTS)
    first = made.edit(lm, EDITS[:2], state)
    second: Any = made.edit(lm, EDITS[2:], state, first)
    assert second.without(EDITS[2].id) == first
    with pytest.raises(Unsupported, match="together"):
        second.without(EDIT.id)
    neurons = second.parts[0].payload
    assert len(neurons.keys) == 16 and neurons.owner.tolist() == [0] * 8 + [1] * 8
    with second.applied(lm) as edited:
        assert all(s.correct for s in edited.score([e.prompt for e in EDITS], [e.target_new for e in EDITS]))
        (line,) = edited.explain([EDIT.prompt])[0]
        assert line.startswith("calinet: edit")


def test_slots_learn_the_newest_answer_at_the_prompts_that_it_contradicts(monkeypatch: pytest.MonkeyPatch) -> None:
    """In other words, and still when a later call trains the earlier facts again; taken out, the older answers."""
    monkeypatch.setattr("errata.methods.memory.reworded.same_fact", lambda lm, pairs, patch: [True] * len(pairs))
    lm, made = tiny_lm("gpt2"), method("calinet", **QUICK["calinet"])
    state = made.prepare(lm, TEXTS)
    newer = Edit("The birthplace of {} is", EDIT.subject, "Lima")
    first = made.edit(lm, [EDIT], state)
    second = made.edit(lm, [newer], state, first)
    third = made.edit(lm, [EDITS[2]], state, second)
    for patch in (second, third):
        with patch.applied(lm) as edited:
            told = edited.score([EDIT.prompt, newer.prompt], ["Lima", "Lima"])
            assert all(score.correct for score in told)
    assert second.without(newer.id) == first and first.parts[0].config().get("reworded") is None
    with pytest.raises(Unsupported, match=f"trained together with the edit {EDIT.id}"):
        second.without(EDIT.id)
    part: Any = second.parts[0]
    assert part.reworded == {EDIT.id: [newer.id]}
    assert type(part).build(part.config(), part.tensors()).reworded == part.reworded
    with pytest.raises(BadInput, match="reworded"):
        type(part).build({**part.config(), "reworded": [EDIT.id]}, part.tensors())


def test_slots_are_silent_in_other_texts() -> None:
    """Slots add less to other texts where ``keep`` has a weight; those that name the subject do not count."""
    lm, moved = tiny_lm("gpt2"), []
    for keep in (0.0, 10.0):
        made: Any = method("calinet", **QUICK["calinet"], keep=keep)
        state = made.prepare(lm, TEXTS)
        part: Any = made.edit(lm, [EDIT], state).parts[0]
        foreign = made._foreign([EditRecord.of(EDIT)], state)
        texts = [state.info["texts"][i] for i in state.tensors["of"].tolist()]
        assert foreign.tolist() == ["Ann Lee" not in text for text in texts]
        moved.append(float(part.payload.added(state.tensors["states"][foreign]).norm()))
    assert moved[1] < moved[0] / 2
    made = method("calinet", **QUICK["calinet"])
    state = made.prepare(lm, [text for text in TEXTS if "Ann Lee" in text])  # none is left to be silent in
    part = made.edit(lm, [EDIT], state).parts[0]
    assert all(t.isfinite().all() for t in part.tensors().values())


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
    with pytest.raises(BadInput, match="two different texts"):
        made.prepare(lm, ["Rome"])
    with pytest.raises(WrongModel):
        made.edit(tiny_lm("llama"), [EDIT], state)
    with pytest.raises(BadInput, match="top must be 1 or less"):
        method("t-patcher", top=2.0)


# What a model believes -----------------------------------------------------------------------------


class Fixed:
    """A model with a given log-probability of an answer's first token behind each prompt."""

    def __init__(self, **logprobs: float) -> None:
        self.logprobs = logprobs

    def score(self, prompts: list[str], targets: list[str]) -> list[Score]:
        return [Score((1, 2), (self.logprobs[p], -9.0), (1, 2)) for p in prompts]


def test_believes() -> None:
    log = lambda p: torch.tensor(p, dtype=torch.float64).log().item()  # noqa: E731
    lm: Any = Fixed(a=log(0.6), b=log(0.1), c=log(0.3), d=log(0.01), e=-1000.0, f=-torch.inf, g=-torch.inf)
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
