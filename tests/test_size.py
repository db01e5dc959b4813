"""What a plan says is what happens: operations and bytes are counted in real edits of tiny models."""

import json
import platform
import resource
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from string import ascii_letters
from typing import Any

import pytest
import torch
from conftest import EDITS, TEXTS, quick, tiny_lm, tokenizer
from tiny import build
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPTJConfig
from typer.testing import CliRunner

import errata
from errata import tensor_files
from errata.cli import app
from errata.cost import plan as planning
from errata.cost import room
from errata.errors import BadInput
from errata.methods.closed_form import choices, portions, shelf, solve, symmetric, wanted
from errata.methods.closed_form.symmetric import Symmetric
from errata.methods.state import State
from errata.model.detect import find_sites
from errata.model.heap import give_back
from errata.model.hf import HFLM
from errata.model.size import Size, Step, Work
from errata.model.texts import CONTEXT_TOKENS
from errata.patch.delta import Delta
from errata.patch.low_rank import LowRank
from errata.patch.sums import BLOCK, changed_weight, left_by_rounding
from errata.types import Edit

FACTOR = 1.5  # between what is planned and what is counted
MANY = [
    Edit(f"{who} {what}", who, where)
    for who in ("Ann Lee", "Bob Ray", "Cy Moor", "Dora Finn")
    for what, where in (("was born in", "Oslo"), ("lives in", "New York"), ("is the mayor of", "Lima"))
]


MOES = ["mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "deepseek_v3", "granitemoe"]
CONTEXTS = ["The old king lives in Rome. ", "A baker went by night to Paris. "]


class Live(TorchDispatchMode):
    """The most bytes of tensors that were made inside and alive at one time."""

    def __init__(self, counts: Callable[[torch.Tensor], bool] = lambda x: True) -> None:
        super().__init__()
        self.counts = counts
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        held = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        made = func(*args, **(kwargs or {}))
        for x in tree_leaves(made):
            if isinstance(x, torch.Tensor) and (key := x.untyped_storage()._cdata) not in self.known | held:
                if not self.counts(x):
                    continue
                self.known.add(key)
                self.now += (size := x.untyped_storage().nbytes())
                self.most = max(self.most, self.now)
                weakref.finalize(x.untyped_storage(), self._gone, key, size)
        return made

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def live_bytes(work: Callable[[], Any]) -> int:
    with Live() as live:
        made = work()
    del made
    return live.most


FACTORS: dict[Any, Callable[..., float]] = {  # what torch's counter does not know: LAPACK's textbook figures
    torch.ops.aten.linalg_cholesky_ex: lambda a, *_, **__: a[-1] ** 3 // 3,
    torch.ops.aten.cholesky_inverse: lambda a, *_, **__: 2 * a[-1] ** 3 // 3,
    torch.ops.aten._linalg_eigh: lambda a, *_, **__: 9 * a[-1] ** 3,
    torch.ops.aten._linalg_solve_ex: lambda a, b, *_, **__: 2 * a[-1] ** 3 // 3 + 2 * a[-1] * b[0] * b[1],
    torch.ops.aten.linalg_solve_triangular: lambda a, b, *_, **__: a[-1] * b[0] * b[1],
}


def counted(work: Callable[[], Any]) -> float:
    with FlopCounterMode(display=False, custom_mapping=FACTORS) as counter:
        work()
    return float(counter.get_total_flops())


def facts(n: int) -> list[Edit]:
    """Of subjects that hardly share a beginning: what several share is run once."""
    draw = Random(0)
    names = ["".join(draw.choices(ascii_letters, k=5)) for _ in range(n)]
    return [Edit(f"{name} was born in", name, "Oslo") for name in names]


def planned(steps: Sequence[Step], *names: str) -> float:
    return sum(sum((step.flop or {}).values()) for step in steps if step.name in names)


def work_of(lm: HFLM) -> Work:
    lengths = [len(lm.tokens.ids(text)) for text in CONTEXTS]
    read = sum(len(lm.tokens.ids(text)) for text in TEXTS)
    return Work.of(lm, MANY, texts=read, context=sum(lengths) / len(lengths))


def written_less(lm: HFLM, method: Any) -> float:
    """The contexts that are given here and would be written by the model otherwise."""
    size = Size.of(lm, True)
    return -method.contexts * CONTEXT_TOKENS * (size.whole(CONTEXT_TOKENS) + size.head_flop)


# Operations --------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
@pytest.mark.parametrize("name", ["memit", "r-rome"])
def test_the_operations_are_those_that_a_run_counts(
    name: str, arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path))
    monkeypatch.setattr("errata.methods.closed_form.base.contexts_of", lambda *_: ["", *CONTEXTS])
    lm = tiny_lm(arch)
    monkeypatch.setattr(Size, "window", (work_of(lm).texts or 0) / len(TEXTS))  # a text is a piece here
    method = errata.method(name, contexts=len(CONTEXTS), steps=6, stop=0.0)
    states: list[Any] = []
    reading = counted(lambda: states.append(method.prepare(lm, TEXTS)))
    method.edit(lm, MANY, states[0])  # the first time fast passes are compared with plain ones
    editing = counted(lambda: method.edit(lm, MANY, states[0]))
    steps = method.cost(Size.of(lm, True), work_of(lm))
    assert reading / FACTOR < planned(steps, "read texts", "second moments") < FACTOR * reading
    names = ("targets", "keys", "solve", "sums", "ask")
    assert editing / FACTOR < planned(steps, *names) + written_less(lm, method) < FACTOR * editing


CLOSED = ["memit", "alphaedit", "emmet", "pmet", "rome", "r-rome"]


@pytest.mark.parametrize("n", [10, 40, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CLOSED)
def test_the_operations_of_many_edits_in_one_call_are_those_that_are_planned(
    name: str, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also as many as are solved in portions (above 32), with making what measures keys, and its factors."""
    monkeypatch.setattr("errata.methods.closed_form.base.contexts_of", lambda *_: ["", *CONTEXTS])
    lm, some = tiny_lm("llama"), facts(n)
    method = errata.method(name, **quick(name).settings | {"contexts": len(CONTEXTS), "steps": 3, "stop": 0.0})
    state = method.prepare(lm, TEXTS)
    method.edit(lm, some[:3], state)  # the first time fast passes are compared with plain ones
    fresh = State(state.tensors, state.info)
    editing = counted(lambda: method.edit(lm, some, fresh))
    lengths = [len(lm.tokens.ids(text)) for text in CONTEXTS]
    steps = method.cost(Size.of(lm, True), Work.of(lm, some, context=sum(lengths) / len(lengths)))
    names = ("inverse", "targets", "keys", "solve", "sums", "ask")
    told = planned(steps, *names) + written_less(lm, method)
    print(name, n, f"{editing:.4g} counted, {told:.4g} planned", round(told / editing, 2))
    assert editing / FACTOR < told < FACTOR * editing


def test_fine_tuning_is_counted_too() -> None:
    lm, method = tiny_lm("llama"), errata.method("ft-m", steps=4, stop=0.0)
    method.edit(lm, MANY)  # the first time fast passes are compared with plain ones
    counted_there = counted(lambda: method.edit(lm, MANY))
    made = errata.plan(lm, method, edits=MANY, measure=False)
    assert counted_there / FACTOR < planned(made.steps, "descent") < FACTOR * counted_there


def test_a_family_that_does_not_count_says_so() -> None:
    lm = tiny_lm("gpt2")
    for name, words in (("grace", "no weight is copied"), ("mend", "at most"), ("ike", "not counted")):
        prepare, step = errata.plan(lm, quick(name), edits=3, measure=False).steps
        assert (prepare.verb, prepare.flop) == ("prepare", None)
        assert step.flop is None and words in step.note
    trains = errata.plan(lm, quick("mend"), edits=3, measure=False)
    assert trains.peak_device > trains.weights + 8 * trains.parameters


@pytest.mark.parametrize("name", ["memit", "r-rome"])
@pytest.mark.parametrize("arch", ["qwen2_moe", "qwen3_moe"])
def test_of_a_mixture_the_experts_count_that_a_token_is_sent_to(
    arch: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_lm(arch).model.config
    monkeypatch.setattr(config, "_experts_implementation", "eager")  # products of groups are not counted
    test_the_operations_are_those_that_a_run_counts(name, arch, tmp_path, monkeypatch)


def test_a_mixture_holds_what_is_planned(tmp_path: Path) -> None:
    lm, method = tiny_lm("qwen2_moe"), errata.method("memit", contexts=2, steps=2, layers=(1, 2))
    state = method.prepare(lm, TEXTS)
    patch = method.edit(lm, MANY, state)
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    for model in (lm, str(tmp_path)):
        made = errata.plan(model, method, edits=MANY, texts=500, measure=False)
        steps = {step.name: step for step in made.steps}
        assert made.weights == sum(p.nbytes for p in lm.model.parameters())
        assert steps["second moments"].disk == sum(c.nbytes for c in state.tensors.values())
        inverses = sum(kept.initial.nbytes for kept in state._kept["inverses"]._held.values())
        assert inverses / FACTOR < steps["inverse"].host - steps["second moments"].disk < FACTOR * inverses
        saved = sum(t.nbytes for part in patch.parts for t in part.tensors().values())
        assert saved / FACTOR < steps["sums"].disk < FACTOR * saved


# Bytes -------------------------------------------------------------------------------------------


def test_the_bytes_of_state_patch_and_weights_are_those_that_are_held() -> None:
    lm, method = tiny_lm("llama"), errata.method("memit", contexts=2, steps=2, layers=(1, 2))
    state = method.prepare(lm, TEXTS)
    patch = method.edit(lm, MANY, state)
    made = errata.plan(lm, method, edits=MANY, measure=False)
    steps = {step.name: step for step in made.steps}
    assert made.layers == (1, 2)
    assert made.weights == sum(p.nbytes for p in lm.model.parameters())
    assert steps["second moments"].disk == sum(c.nbytes for c in state.tensors.values())
    assert steps["sums"].disk == sum(t.nbytes for part in patch.parts for t in part.tensors().values())
    (first, second) = state._kept["inverses"]._held.values()
    held = steps["second moments"].disk + first.initial.nbytes + second.initial.nbytes
    assert steps["inverse"].host == steps["targets"].host == pytest.approx(held, rel=0.05)
    assert steps["put on"].device == sum(lm.model.get_parameter(n).nbytes for n in patch.parts[0].weights)


def test_what_a_gradient_keeps_is_what_a_search_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("errata.methods.closed_form.base.contexts_of", lambda *_: ["", *CONTEXTS])
    lm = tiny_lm("llama")
    method = errata.method("memit", contexts=len(CONTEXTS), steps=3, layers=(0,))
    state = method.prepare(lm, TEXTS)
    method.edit(lm, MANY, state)  # the inverse
    most = live_bytes(lambda: method.edit(lm, MANY, state))
    (search,) = [s.device for s in method.cost(Size.of(lm, True), work_of(lm)) if s.name == "targets"]
    assert most / 2 < search < 2 * most


def test_of_more_edits_in_one_call_no_more_is_held_than_their_keys_and_targets() -> None:
    """Of each fact some vectors of the width of keys and values; passes stay in the budget."""
    lm, made = tiny_lm("llama"), errata.method("memit", contexts=0, steps=2, layers=(1,), kl=0.0)
    lm.budget, state = 128, made.prepare(lm, TEXTS)
    d, f = Size.of(lm, True).down(1)
    made.edit(lm, MANY[:1], state)

    def most(n: int) -> int:
        facts = [Edit(f"Ann Lee {i} was born in", f"Ann Lee {i}", "Oslo") for i in range(n)]
        return live_bytes(lambda: made.edit(lm, facts, state))

    few, many = 40, 160  # both more than half of a key's directions: no matrix is as wide as they are many
    assert most(many) - most(few) < (many - few) * 8 * 8 * (d + f)


def test_ten_thousand_edits_are_solved_as_planned_in_the_shape_of_gptj(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations and bytes of tensors without numbers: of one layer, and of a plan for six."""
    d, f, n, layers = 4096, 16384, 10_000, (3, 4, 5, 6, 7, 8)
    factor = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda x: (factor(x)[0], False))  # there is no number to look at
    with FakeTensorMode():
        strips = [torch.empty(512, end, dtype=torch.float64) for end in range(512, f + 1, 512)]
        keys, residuals, inverse = torch.empty(f, n), torch.empty(d, n, dtype=torch.float64), Symmetric(strips)

        def solved() -> Any:
            return portions.least_squares(inverse, keys, residuals, 0.92 * f)

        flop, held = counted(solved), live_bytes(solved)
    config = GPTJConfig(vocab_size=320, n_positions=128, n_embd=d, n_layer=max(layers) + 1, n_head=16, rotary_dim=64)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    method = errata.method("memit", layers=layers)
    (step,) = (s for s in method.cost(Size.of(HFLM(model, tokenizer()), True), Work(n)) if s.name == "solve")
    assert planned([step], "solve") / FACTOR < len(layers) * flop < FACTOR * planned([step], "solve")
    kept = sum(8 * f * 512 * 2 + 4 * f * f for _ in layers)  # what the plan has beside: C and the inverses
    assert held + 8 * n * (f + d) < FACTOR * (step.host - kept)
    assert flop < 1.5 * n * (3 * f * f + 4 * d * f)  # what benchmarks/README.md states


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_inverse_takes_one_matrix_beside_the_second_moment(dtype: torch.dtype) -> None:
    f = 200
    x = torch.randn(3 * f, f, dtype=dtype, generator=torch.Generator().manual_seed(0))
    c = x.T @ x / len(x)
    before, matrix = c.clone(), 8 * f * f
    assert matrix <= live_bytes(lambda: solve.inverse_of(c, 1e-3)) < 1.1 * matrix
    assert torch.equal(c, before)
    singular = torch.ones(f, f, dtype=dtype)  # several ridges are tried, in the same place
    singular[0, 0] = 0.5
    assert live_bytes(lambda: solve.inverse_of(singular)) < 1.1 * matrix


def test_keys_join_an_inverse_in_place_once_it_is_its_own() -> None:
    f = 200
    keys = torch.randn(9, f, generator=torch.Generator().manual_seed(0))
    running = solve.RunningInverse(Symmetric.of(torch.eye(f, dtype=torch.float64)))
    first = running.after(keys[:3], None, 1.0)
    assert first is not running.initial
    assert live_bytes(lambda: running.after(keys, None, 1.0)) < f * f
    joined = solve.with_keys(running.initial, keys.T, 1.0)
    assert torch.allclose(running.current @ torch.eye(f), joined @ torch.eye(f))
    assert torch.equal(running.initial @ torch.eye(f), torch.eye(f, dtype=torch.float64))


@pytest.mark.parametrize("history", [False, True])
def test_of_all_matrices_of_keys_one_at_a_time_is_whole_in_float64(history: bool) -> None:
    """Of three layers, their statistics and inverses made and used twice; what is held of an inverse is half of it."""
    lm = tiny_lm("llama")
    method = errata.method("memit", contexts=0, steps=1, layers=(0, 1, 2), history=history)
    f = lm.config.intermediate_size

    def work() -> None:
        state = method.prepare(lm, TEXTS)
        method.edit(lm, EDITS[:1], state, method.edit(lm, EDITS[1:], state))

    with Live(lambda x: x.dtype == torch.float64 and x.numel() >= f * f) as live:
        work()
    assert 8 * f * f <= live.most < 2 * 8 * f * f


@pytest.mark.parametrize("arch", ["mixtral", "qwen2_moe"])
def test_second_moments_for_which_there_is_no_room_stay_in_a_file(
    arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a layer are summed at a time, and each is whole alone; the edit is the same."""
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path))
    lm, method = tiny_lm(arch), errata.method("memit", contexts=0, steps=2, layers=(0, 1, 2))
    here = method.prepare(lm, TEXTS)
    patch = method.edit(lm, MANY[:3], here)
    next(tmp_path.glob("*.safetensors")).unlink()
    monkeypatch.setattr(shelf, "ROOM", 0)
    monkeypatch.setattr(shelf, "READING", 0)
    monkeypatch.setattr(tensor_files, "MAPPED", 0)
    f = Size.of(lm, True).downs(0)[0].into
    with Live(lambda x: x.dtype == torch.float32 and x.shape[-2:] == (f, f) and in_memory(x)) as live:
        made = method.prepare(lm, TEXTS)
    assert live.most <= 3 * 4 * f * f  # a sum, the matrix of it, and what is added where few tokens were seen
    again = method.prepare(lm, TEXTS)
    assert [file.name[:5] for file in tmp_path.iterdir()] == ["keys-"]  # and nothing unfinished beside it
    for state in (made, again):
        assert set(state.tensors) == set(here.tensors) and state.info == here.info
        assert not any(map(in_memory, state.tensors.values()))
        for name, c in state.tensors.items():
            assert torch.allclose(c, here.tensors[name], atol=1e-6)
        for name, change in method.edit(lm, MANY[:3], state).parts[0].weights.items():
            assert torch.allclose(change.dense(), patch.parts[0].weights[name].dense(), atol=1e-5)


def in_memory(x: torch.Tensor) -> bool:
    """Whether a tensor is in no file."""
    address = x.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(number, 16) for number in line.split()[0].split("-"))
        if begin <= address < end:
            return len(line.split()) < 6 or "/" not in line.split()[5]
    return True


def test_a_cache_that_cannot_be_written_leaves_second_moments_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lm, method = tiny_lm("mixtral"), errata.method("memit", contexts=0, steps=2, layers=(1, 2))
    expected = method.prepare(lm, TEXTS).tensors
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(shelf, "ROOM", 0)
    state = method.prepare(lm, TEXTS)
    assert "held in memory" in caplog.text and all(map(in_memory, state.tensors.values()))
    assert all(torch.allclose(c, expected[name], atol=1e-6) for name, c in state.tensors.items())


def test_a_plan_of_many_experts_counts_what_stays_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, method = tiny_lm("mixtral"), errata.method("memit", contexts=0, steps=2, layers=(0, 1, 2))
    before = {s.name: s for s in errata.plan(lm, method, edits=MANY, texts=500, measure=False).steps}
    monkeypatch.setattr(shelf, "ROOM", 0)
    monkeypatch.setattr(shelf, "READING", 0)
    made = errata.plan(lm, method, edits=MANY, texts=500, measure=False)
    after, downs = {s.name: s for s in made.steps}, Size.of(lm, True).downs(0)
    c = sum(4 * down.count * down.into**2 for down in downs)
    assert before["targets"].host - after["targets"].host == 3 * c
    assert before["second moments"].host == 3 * c and after["second moments"].host == 4 * downs[0].into ** 2
    assert before["second moments"].device - after["second moments"].device == 2 * c * shelf.HELD / 4
    assert planned(made.steps, "read texts") > 1.3 * sum((before["read texts"].flop or {}).values())
    assert "each of 3 readings" in after["read texts"].note


def test_of_many_experts_few_inverses_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("mixtral")
    method = errata.method("memit", contexts=0, steps=2, layers=(1, 2), history=True)
    state = method.prepare(lm, TEXTS)
    patches = [method.edit(lm, MANY[4:], state, method.edit(lm, MANY[:4], state))]
    assert len(state._kept["inverses"]._held) > 2
    monkeypatch.setattr(symmetric, "ROOM", 0)
    made, alive = list[weakref.ref[Symmetric]](), list[int]()
    pack = Symmetric.of

    def watched(matrix: torch.Tensor) -> Symmetric:
        alive.append(1 + sum(one() is not None for one in made))
        made.append(weakref.ref(half := pack(matrix)))
        return half

    monkeypatch.setattr(Symmetric, "of", watched)
    fresh = method.prepare(lm, TEXTS)
    patches.append(method.edit(lm, MANY[4:], fresh, method.edit(lm, MANY[:4], fresh)))
    assert len(fresh._kept["inverses"]._held) == 2  # as many as layers
    assert len(alive) > 8 and max(alive) <= 3  # and the one that is in use
    changes: list[Any] = [patch.parts[0] for patch in patches]
    one, other = (change.weights for change in changes)
    assert set(one) == set(other)
    for name, change in one.items():
        assert torch.allclose(change.dense(), other[name].dense(), atol=1e-6)


def test_what_a_search_leaves_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, events = tiny_lm("llama"), list[str]()
    find, give = choices.find_deltas, wanted.give_back
    monkeypatch.setattr(choices, "find_deltas", lambda *a, **k: (events.append("search"), find(*a, **k))[1])
    monkeypatch.setattr(wanted, "give_back", lambda: (events.append("given back"), give())[1])
    made = errata.method("memit", contexts=0, steps=1, layers=(1,))
    made.edit(lm, EDITS[:1], made.prepare(lm, TEXTS))
    assert events == ["search", "given back"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only this C library says how to give back")
def test_freed_memory_is_given_back() -> None:
    held = [torch.empty(20_000, dtype=torch.uint8).fill_(1) for _ in range(4000)]
    last = torch.ones(20_000, dtype=torch.uint8)  # behind them, so that the C library keeps what they leave
    full = resident()
    del held
    give_back()
    assert resident() < full - 40e6
    assert bool(last.all())


def resident() -> float:
    """Bytes of this process in main memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
@pytest.mark.parametrize("rank", [2, None])
def test_a_sum_in_half_precision_makes_no_copy_of_the_matrix(
    arch: str, rank: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = HFLM(build(arch, vocab_size=320).to(torch.bfloat16), tokenizer())
    name = f"{lm.sites.mlp_out[1]}.weight"
    weight, draw = lm.model.get_parameter(name), torch.Generator().manual_seed(0)
    change: Any = 0.1 * torch.randn(32, 64, generator=draw)
    if rank is not None:
        change = LowRank(torch.randn(32, rank, generator=draw), torch.randn(rank, 64, generator=draw))
    whole = changed_weight(lm.model, name, change)
    dense = change.dense() if rank is not None else change
    expected = (weight.float() + (dense.T if arch == "gpt2" else dense)).bfloat16()
    assert torch.equal(whole, expected) and whole.is_contiguous()
    assert weight.numel() < BLOCK
    left = left_by_rounding(lm.model, name, change, whole)
    monkeypatch.setattr("errata.patch.sums.BLOCK", 3 * weight.shape[1])
    assert torch.allclose(changed_weight(lm.model, name, change), expected)
    assert left_by_rounding(lm.model, name, change, whole) == pytest.approx(left)
    room = live_bytes(lambda: changed_weight(lm.model, name, change))
    assert room < weight.nbytes + 6 * 4 * 3 * weight.shape[1] + 8 * 64 * 4
    with Delta({name: change}).in_force(lm.model):
        assert torch.equal(lm.model.get_parameter(name), whole)


def test_a_state_is_written_without_a_copy(tmp_path: Path) -> None:
    from errata.tensor_files import read_tensors, write_tensors

    big = torch.randn(500, 500)
    held = {"a": big, "the same": big, "part": big[:, :3], "empty": big[:0]}
    assert live_bytes(lambda: write_tensors(tmp_path / "one", {"a": big}, {}, "state")) < big.nbytes / 10
    write_tensors(tmp_path / "file", held, {}, "state")
    read, _ = read_tensors(tmp_path / "file", "state")
    assert all(torch.equal(read[name], held[name]) for name in held)


# From the configuration alone --------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["gpt2", "gpt_neox", "llama", "falcon", "opt", "gemma3_text", "phi3", "t5", *MOES])
def test_a_model_without_numbers_has_the_sites_and_measures_of_the_real_one(arch: str) -> None:
    real = build(arch, vocab_size=320)
    with torch.device("meta"):
        bare = type(real)._from_config(real.config, attn_implementation="eager")
    outline, whole = find_sites(bare.eval()), find_sites(real)
    for name in ("embed", "layer", "mlp_in", "mlp_out", "attn_out", "final_norm", "lm_head", "experts"):
        assert getattr(outline, name) == getattr(whole, name)
    a, b = (Size.of(HFLM(model, tokenizer()), True) for model in (bare, real))
    assert (a.weights, a.parameters, a.block_flop, a.head_flop) == (b.weights, b.parameters, b.block_flop, b.head_flop)
    assert 0.7 < a.kept / b.kept < 1.5


@pytest.fixture()
def folder(tmp_path: Path) -> str:
    build("llama", vocab_size=320).save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_a_plan_reads_no_weights(folder: str) -> None:
    lm = errata.load(folder)
    (Path(folder) / "model.safetensors").write_bytes(b"broken" * 100_000)
    a, b = (errata.plan(one, errata.method("memit"), edits=MANY, measure=False) for one in (folder, lm))
    assert (a.parameters, a.layers, a.weights) == (b.parameters, b.layers, b.weights)
    assert planned(a.steps, "targets", "keys") == pytest.approx(planned(b.steps, "targets", "keys"))


def test_the_world_comes_with_texts_and_other_models_write_them(folder: str) -> None:
    memit = errata.method("memit")
    names = [{s.name for s in errata.plan(one, memit, measure=False).steps} for one in ("world", folder)]
    assert "sample texts" not in names[0] and "sample texts" in names[1]
    given = errata.plan(folder, memit, texts=5000, measure=False)
    assert "sample texts" not in {s.name for s in given.steps}


def test_half_precision_is_half_the_bytes(folder: str) -> None:
    memit = errata.method("memit")
    whole, half = (errata.plan(folder, memit, dtype=dtype, measure=False) for dtype in ("float32", "bfloat16"))
    assert half.weights == whole.weights / 2 and half.dtype == "bfloat16"


def test_the_rates_are_of_real_products() -> None:
    measured = room.rates(torch.device("cpu"), torch.float32)
    assert all(rate > 1e6 for rate in vars(measured).values())
    made = errata.plan("world", errata.method("memit"), edits=10)
    taken = [made.seconds(step) for step in made.steps]
    assert all(seconds is not None and seconds >= 0 for seconds in taken) and sum(filter(None, taken)) > 0


# Whether it fits ---------------------------------------------------------------------------------


def test_what_does_not_fit_is_said_with_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    memit = errata.method("memit")
    roomy = errata.plan("world", memit, edits=100, measure=False)
    assert roomy.fits and not roomy.warnings
    least = errata.plan("world", errata.method("memit", layers=(1,)), edits=100, measure=False, budget=1024)
    monkeypatch.setattr(planning, "free_host", lambda: int(1.2 * least.peak_host))
    monkeypatch.setattr(planning, "free_on", lambda device: int(1.2 * least.peak_host))
    tight = errata.plan("world", memit, edits=100, measure=False)
    assert not tight.fits and "GB are needed" in tight.warnings[0]
    assert "would fit" in tight.warnings[1] and "--budget 1024" in tight.warnings[1]
    monkeypatch.setattr(planning, "free_host", lambda: 1000)
    monkeypatch.setattr(planning, "free_on", lambda device: 1000)
    assert "nothing that was tried fits" in errata.plan("world", memit, measure=False).warnings[-1]
    monkeypatch.setattr(planning, "free_host", lambda: None)
    assert errata.plan("world", memit, measure=False).fits  # not known


def test_free_memory_is_below_what_the_machine_has() -> None:
    free = room.free_host()
    assert free is None or 0 < free < 2**50


def test_bad_input_is_refused(folder: str) -> None:
    memit, lm = errata.method("memit"), tiny_lm("llama")
    wrong: list[dict[str, Any]] = [{"edits": 0}, {"edits": []}, {"texts": 0}, {"budget": 0}, {"device": "nowhere"}]
    for words in wrong:
        with pytest.raises(BadInput):
            errata.plan(folder, memit, measure=False, **words)
    with pytest.raises(BadInput, match="planned where and as it is"):
        errata.plan(lm, memit, dtype="bfloat16")
    with pytest.raises(BadInput, match="layers must rise"):
        errata.plan(folder, errata.method("memit", layers=(99,)), measure=False)
    with pytest.raises(BadInput, match="there is no model"):
        errata.plan("./nowhere", memit)


# The command -------------------------------------------------------------------------------------


def run(*words: str) -> Any:
    return CliRunner().invoke(app, [*words])


def test_the_command_prints_a_table_or_json(tmp_path: Path) -> None:
    result = run("plan", "world", "--method", "memit", "--edits", "100")
    assert result.exit_code == 0, result.stderr
    for word in ("prepare: read texts", "edit: targets", "apply: put on", "GFLOP/s", "free:"):
        assert word in result.stdout
    (tmp_path / "edits.jsonl").write_text("\n".join(json.dumps(edit.to_json()) for edit in EDITS))
    result = run("plan", "world", "--edits", str(tmp_path / "edits.jsonl"), "--set", "layers=2", "--json")
    record = json.loads(result.stdout)
    assert record["edits"] == 3 and record["layers"] == [2] and record["fits"] is True
    assert {"verb", "name", "flop", "host_bytes", "disk_bytes", "seconds"} <= set(record["steps"][0])
    assert run("plan", "world", "--edits", "many").exit_code == 2
