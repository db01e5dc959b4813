"""Who may use a model: threads, blocks that are left in another order, two views of one module, training mode."""

import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import pytest
import torch
from conftest import EDIT, EDITS, data_for, quick, same_weights, tiny_lm, tokenizer, weights
from tiny import build
from torch.utils.hooks import RemovableHandle

from errata.errors import BadInput, InForce, Unsupported
from errata.methods.registry import METHODS, method_class
from errata.methods.state import State
from errata.model import hooks
from errata.model.added import InterventionSite
from errata.model.fingerprint import PIECE, fingerprint
from errata.model.hf import HFLM
from errata.model.intervention import FullPass
from errata.model.resumed import SuffixPass
from errata.model.second_moment import second_moments
from errata.patch.delta import Delta
from errata.patch.low_rank import LowRank
from errata.patch.patch import EMPTY, Patch

NO_WEIGHTS: dict[str, Any] = {}
PROMPTS = [EDIT.prompt, "Bob Ray lives in", "Rome"]


def fresh(architecture: str = "gpt2") -> HFLM:
    """A model that nobody has asked anything, its fingerprint included."""
    return HFLM(build(architecture, vocab_size=320), tokenizer())


def changing(lm: HFLM, seed: int = 0) -> Patch:
    """A patch without a base model's fingerprint, which changes every answer."""
    name = f"{lm.sites.mlp_out[1]}.weight"
    draw = torch.Generator().manual_seed(seed)
    return Patch((Delta({name: LowRank(torch.randn(32, 2, generator=draw), torch.randn(2, 64, generator=draw))}),))


@pytest.fixture
def eager() -> Iterator[None]:
    """Threads that take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def at_once(*works: Callable[[], Any]) -> list[Any]:
    """What each function returned, all started together, each in a thread of its own; errors are raised."""
    barrier = threading.Barrier(len(works))

    def run(work: Callable[[], Any]) -> Any:
        barrier.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return [done.result() for done in [pool.submit(run, work) for work in works]]


# Threads -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("eager")
def test_many_threads_put_patches_on_a_model_that_nobody_has_asked_yet() -> None:
    expected = fingerprint(fresh().model)
    for _ in range(20):
        lm = fresh()
        before, patches = weights(lm.model), [changing(lm, seed) for seed in range(3)]

        def work(patch: Patch, lm: HFLM = lm) -> bool:
            try:
                with patch.applied(lm):
                    return True
            except InForce:
                return False

        assert any(at_once(*(lambda p=patch: work(p) for patch in patches)))
        assert same_weights(lm.model, before)
        assert lm.fingerprint == expected and lm.unedited
    with changing(untouched := fresh()).applied(untouched) as edited:
        assert edited.fingerprint == expected


@pytest.mark.usefixtures("eager")
def test_each_thread_hears_the_model_that_it_asks_or_an_error() -> None:
    lm = fresh()
    lm.budget = 8  # several batches in each call
    before, patch = weights(lm.model), changing(lm)
    own = lm.generate(PROMPTS, 3), [s.total for s in lm.score(PROMPTS, ["Oslo"] * 3)]
    with patch.applied(lm) as edited:
        other = edited.generate(PROMPTS, 3), [s.total for s in edited.score(PROMPTS, ["Oslo"] * 3)]
    assert own[1] != other[1]
    heard: list[tuple[Any, Any]] = []

    def through_the_patch() -> None:
        for _ in range(8):
            try:
                with patch.applied(lm) as edited:
                    heard.append((edited.generate(PROMPTS, 3), other[0]))
                    heard.append(([s.total for s in edited.score(PROMPTS, ["Oslo"] * 3)], other[1]))
            except InForce:
                pass

    def without_it() -> None:
        for _ in range(8):
            try:
                heard.append((lm.generate(PROMPTS, 3), own[0]))
                heard.append(([s.total for s in lm.score(PROMPTS, ["Oslo"] * 3)], own[1]))
            except InForce:
                pass

    at_once(through_the_patch, without_it, through_the_patch, without_it)
    assert heard and all(one == expected for one, expected in heard)
    assert same_weights(lm.model, before)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("name", ["memit", "ft", "grace"])
def test_who_asks_while_another_thread_edits_waits_for_it(name: str, architecture: str) -> None:
    lm = tiny_lm(architecture)
    made = quick(name)
    state = made.prepare(lm, PROMPTS * 3) if made.needs_prepare else State()
    alone = made.edit(lm, EDITS[:2], state)
    expected = lm.generate(PROMPTS, 4)
    patches = at_once(
        lambda: made.edit(lm, EDITS[:2], state),
        lambda: [lm.generate(PROMPTS, 4) for _ in range(20)],
        lambda: made.edit(lm, EDITS[:2], state),
        lambda: [lm.generate(PROMPTS, 4) for _ in range(20)],
    )
    assert patches[1] == patches[3] == [expected] * 20
    assert patches[0] == patches[2] == alone


def test_edits_of_two_models_do_not_share_random_numbers() -> None:
    one, two, made = fresh(), fresh("llama"), quick("lora")
    expected = [made.edit(lm, [EDIT]) for lm in (one, two)]
    assert at_once(lambda: made.edit(one, [EDIT]), lambda: made.edit(two, [EDIT])) == expected


class Calling(Delta):
    """Calls functions when it is put on and when it is taken off."""

    kind = "calling"

    def __init__(self, on: Callable[[], Any], off: Callable[[], Any], weights: Any = NO_WEIGHTS) -> None:
        super().__init__(weights)
        self.on, self.off = on, off

    @contextmanager
    def in_force(self, model: Any) -> Generator[None, None, None]:
        with super().in_force(model):
            self.on()
            yield
            self.off()


class Waiting:
    """When first called, sees whether another thread can run the model meanwhile."""

    def __init__(self, lm: HFLM) -> None:
        self.thread = threading.Thread(target=self.ask, args=(lm,))
        self.waits: bool | None = None

    def ask(self, lm: HFLM) -> None:
        with suppress(InForce):
            lm.generate(["Rome"], 1)

    def __call__(self) -> None:
        if self.waits is None:
            self.waits = False
            self.thread.start()
            self.thread.join(0.2)  # in which it would have come to an end, or have called this again
            self.waits = self.thread.is_alive()

    def finished(self) -> None:
        self.thread.join()
        assert self.waits


def test_nobody_runs_the_model_while_a_patch_is_put_on_or_taken_off() -> None:
    lm = fresh()
    on, off = Waiting(lm), Waiting(lm)
    with Patch((Calling(on, off),)).applied(lm):
        pass
    on.finished()
    off.finished()


def test_the_model_itself_is_refused_from_the_first_change_on() -> None:
    lm = fresh()

    def ask() -> None:
        with pytest.raises(InForce):
            lm.generate(["Rome"], 1)

    with Patch((Calling(ask, ask),)).applied(lm):
        pass


SITE = InterventionSite(1)
ONE = [[5, 6]], [1], SITE  # a row, the position of a change in it, and where
RUNS: dict[str, Callable[[HFLM], Callable[[], Any]]] = {
    "generate": lambda lm: lambda: lm.generate(["Rome"], 1),
    "score": lambda lm: lambda: lm.score(["Rome"], ["Oslo"]),
    "read": lambda lm: lambda: lm.read([[5, 6]], [[0]], [(lm.sites.layer[3], "out")]),
    "run": lambda lm: lambda: lm.run({"input_ids": torch.tensor([[5, 6]])}),
    "watch": lambda lm: (
        lambda: lm.watch(torch.tensor([[5]]), torch.ones(1, 1).long(), {(lm.sites.layer[3], "out"): lambda x: None})
    ),
    "full pass": lambda lm: lambda: FullPass(lm.model, lm.sites, *ONE, 0).logits(None, [[0]]),
    "prefix of a suffix pass": lambda lm: lambda: SuffixPass(lm.model, lm.sites, *ONE, 0),
    "suffix pass": lambda lm: partial(SuffixPass(lm.model, lm.sites, *ONE, 0).logits, None, [[0]]),
    "second moments": lambda lm: lambda: second_moments(lm, [[5, 6]], [lm.sites.mlp_out[3]]),
}


@pytest.mark.parametrize("name", RUNS)
def test_whoever_runs_the_model_runs_it_alone(name: str) -> None:
    lm = fresh()
    run, see = RUNS[name](lm), Waiting(lm)
    with hooks.before(lm.model.get_submodule(lm.sites.layer[0]), lambda args, kwargs: see()):
        run()
    see.finished()


def test_nobody_puts_a_patch_on_between_the_checks_of_an_edit_and_the_edit(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, made, see = fresh(), quick("ft"), Waiting(fresh())
    see.thread = threading.Thread(target=see.ask, args=(lm,))
    lm.fingerprint  # noqa: B018
    checked = type(made).check_state
    monkeypatch.setattr(type(made), "check_state", lambda *args: (see(), checked(*args))[1])
    made.edit(lm, [EDIT])
    see.finished()


# Interrupted ---------------------------------------------------------------------------------------


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("when", [("on",), ("off",), ("on", "off")], ids=" and ".join)
def test_an_interruption_waits_until_a_patch_is_on_or_off(when: tuple[str, ...]) -> None:
    lm, reached = fresh(), list[str]()
    before, answers = weights(lm.model), lm.generate(PROMPTS, 2)

    def at(side: str) -> Callable[[], None]:
        return lambda: (interrupt() if side in when else None, reached.append(side))[1]

    patch = Patch((Calling(at("on"), at("off"), changing(lm).of_kind(Delta)[0].weights),))
    with pytest.raises(KeyboardInterrupt), patch.applied(lm):
        assert "on" not in when and not same_weights(lm.model, before)
    assert reached == ["on", "off"]
    assert same_weights(lm.model, before) and lm.unedited
    assert at_once(lambda: lm.generate(PROMPTS, 2)) == [answers]  # another thread's, which the lock lets in
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_hook_is_taken_off_whatever_comes_between(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = fresh()
    answers = lm.generate(PROMPTS, 2)
    remove = RemovableHandle.remove

    def interrupted(handle: RemovableHandle) -> None:
        interrupt()
        remove(handle)

    monkeypatch.setattr(RemovableHandle, "remove", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lm.generate(PROMPTS, 2)
    monkeypatch.undo()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())
    assert lm.generate(PROMPTS, 2) == answers


# The model itself, and whatever torch is set to ----------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in METHODS if method_class(name).needs_prepare])
def test_a_model_with_a_patch_in_force_is_not_prepared(name: str) -> None:
    lm, made = fresh(), quick(name)
    with changing(lm).applied(lm) as edited, pytest.raises(Unsupported, match="edit the model itself"):
        made.prepare(edited, data_for(made))


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
@pytest.mark.parametrize("name", ["ft", "rome", "grace"])
def test_an_edit_is_the_same_whatever_torch_is_set_to(name: str, around: Callable[[], Any]) -> None:
    lm, made = fresh(), quick(name)
    state = made.prepare(lm, data_for(made)) if made.needs_prepare else State()
    expected = made.edit(lm, [EDIT], state)
    with around():
        assert made.edit(lm, [EDIT], state) == expected


# Order ---------------------------------------------------------------------------------------------


def test_blocks_that_are_left_in_the_wrong_order_are_undone_exactly(caplog: pytest.LogCaptureFixture) -> None:
    lm = fresh()
    before, answers = weights(lm.model), lm.generate(PROMPTS, 4)
    first = changing(lm).applied(lm)
    outer = first.__enter__()
    second = changing(lm, 1).applied(outer)
    inner = second.__enter__()
    inner.generate(PROMPTS, 1)
    first.__exit__(None, None, None)
    assert "taken off before" in caplog.text
    assert same_weights(lm.model, before) and lm.generate(PROMPTS, 4) == answers
    for left in (outer, inner):
        with pytest.raises(InForce, match="has been left"):
            left.generate(PROMPTS, 1)
    with changing(lm, 2).applied(lm):
        second.__exit__(None, None, None)  # undoes nothing of what is in force now
        assert not same_weights(lm.model, before)
    assert same_weights(lm.model, before)


def test_a_block_that_cannot_be_entered_leaves_the_model_as_it_was() -> None:
    lm = fresh()
    before, wrong = weights(lm.model), Patch((*changing(lm).parts, Delta({"no.such.weight": torch.zeros(2, 2)})))
    for _ in range(2):
        with pytest.raises(BadInput, match=r"no\.such\.weight"), wrong.applied(lm):
            pass
        assert same_weights(lm.model, before) and lm.generate(PROMPTS, 1)


# Two views of one module -----------------------------------------------------------------------------


def test_a_second_view_of_a_module_knows_what_is_in_force_on_it() -> None:
    lm = fresh()
    other = HFLM(lm.model, tokenizer())
    with changing(lm).applied(lm):
        for ask in (lambda: other.generate(PROMPTS, 1), lambda: HFLM(lm.model, tokenizer())):
            with pytest.raises(InForce):
                ask()
        with pytest.raises(InForce), EMPTY.applied(other):
            pass
    assert other.fingerprint == lm.fingerprint


def test_the_fingerprint_is_the_unedited_models_until_it_is_forgotten() -> None:
    lm = fresh()
    first = lm.fingerprint
    with changing(lm).applied(lm) as edited:
        assert edited.fingerprint == lm.fingerprint == first
        with pytest.raises(InForce):
            lm.forget_fingerprint()
    other = HFLM(lm.model, tokenizer())
    assert other.fingerprint == first
    changing(lm).merge(lm)
    assert lm.fingerprint != first and other.fingerprint == lm.fingerprint


def test_a_view_that_is_made_anew_sees_weights_that_were_changed_by_hand() -> None:
    lm = fresh()
    first = lm.fingerprint
    lm.model.get_parameter(f"{lm.sites.mlp_out[1]}.weight").data += 1
    assert HFLM(lm.model, tokenizer()).fingerprint != first


# The fingerprint -----------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "t5"])
def test_any_weight_that_changes_changes_the_fingerprint(architecture: str) -> None:
    model = build(architecture, vocab_size=320)
    seen = {fingerprint(model)}
    params = dict(model.named_parameters())
    for number, param in enumerate(params.values()):
        at = (7919 * number) % param.numel()
        flat = param.data.view(-1)
        old = flat[at].item()
        for new in (old + 0.02 * abs(old) + 0.001, float("nan")):
            flat[at] = new
            seen.add(fingerprint(model))
        flat[at] = old
    assert len(seen) == 1 + 2 * len(params)
    assert fingerprint(model) in seen


def test_rows_that_change_places_and_entries_of_a_later_piece_count() -> None:
    lm = fresh()
    linear = torch.nn.Linear(1024, PIECE // 1024 + 3, bias=False)
    lm.model.add_module("more", linear)
    seen = {fingerprint(lm.model)}
    linear.weight.data[-1, -1] += 1
    seen.add(fingerprint(lm.model))
    linear.weight.data = linear.weight.data.flip(0)
    seen.add(fingerprint(lm.model))
    linear.weight.data[:, [3, 7]] = linear.weight.data[:, [7, 3]]  # the same place of two words
    seen.add(fingerprint(lm.model))
    assert len(seen) == 4


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16, torch.float16])
def test_one_model_has_one_fingerprint_in_every_type_it_is_read_in(saved: torch.dtype) -> None:
    model = build("llama", vocab_size=320).to(saved)
    model.get_parameter("model.norm.weight").data[:4] = torch.tensor([3e-5, -3.1e-5, 1e-7, 0.0])
    read = [torch.float32, torch.bfloat16, torch.float64]
    read += [torch.float16] * (saved != torch.float32)  # which rounds what float32 holds otherwise than bfloat16
    found = set()
    for dtype in read:
        again = build("llama", vocab_size=320)
        again.load_state_dict(model.state_dict())
        found.add(fingerprint(again.to(saved).to(dtype)))
    assert len(found) == 1


def test_what_only_says_how_texts_end_is_no_other_model_and_a_saved_buffer_is() -> None:
    model = build("bart", vocab_size=320)
    first = fingerprint(model)
    for name in ("pad_token_id", "eos_token_id", "output_hidden_states"):
        setattr(model.config, name, 1)
    assert fingerprint(model) == first
    model.get_buffer("final_logits_bias")[0, 3] += 0.5
    assert fingerprint(model) != first


# Training mode -------------------------------------------------------------------------------------


def test_a_model_in_training_mode_is_named_and_not_asked() -> None:
    lm = fresh()
    lm.model.get_submodule(lm.sites.layer[2]).train()
    for ask in (
        lambda: lm.generate(PROMPTS, 1),
        lambda: lm.score(PROMPTS, ["Oslo"] * 3),
        lambda: quick("ft").edit(lm, [EDIT]),
    ):
        with pytest.raises(BadInput, match=r"lm\.model\.eval\(\)"):
            ask()
    lm.model.eval()
    lm.generate(PROMPTS, 1)
