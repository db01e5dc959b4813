"""The suffix pass against the full pass, and batches against one at a time, in every architecture."""

import pytest
import torch
from conftest import tiny_lm
from tiny import CAUSAL, HYBRID, IMAGE_TEXT, ONE_LAYER
from torch import Tensor

from errata.model import hooks
from errata.model.added import InterventionSite
from errata.model.caches import Caching
from errata.model.intervention import FullPass
from errata.model.passes import budgeted
from errata.model.projection import Projection
from errata.model.resumed import SuffixPass
from errata.model.weights import is_linear
from errata.patch.delta import trainable
from errata.types import Score

PROMPTS = [
    "Ann Lee was born in",
    "Rome",
    "The old king Bob Ray went by night to",
    "It is said that Cy Moor is the",
]
READERS = [*CAUSAL, *HYBRID, *ONE_LAYER]
# These begin anew at each pass of several tokens, or keep no cache that rows can be taken from.
NO_SUFFIX = {"openai-gpt", "jamba", "recurrent_gemma", "mamba", "falcon_mamba"}
SINGLE = (
    "bloom",
    "mpt",
    "gemma2",
    "vaultgemma",
    "xglm",
    *HYBRID,
    *ONE_LAYER,
)  # their float64 breaks on padding, or their states are float32


def rows_of(lm: object) -> list[list[int]]:
    return [lm.tokens.prompt(text) for text in PROMPTS]  # pyright: ignore


@pytest.mark.parametrize("name", [*READERS, *IMAGE_TEXT])
def test_suffix_pass_gives_the_full_pass(name: str) -> None:
    dtype = torch.float32 if name in SINGLE else torch.float64
    tolerance = 1e-4 if name in SINGLE else 1e-8
    lm = tiny_lm(name, dtype)
    rows = rows_of(lm)
    positions = [min(1, len(row) - 1) for row in rows]
    columns = [list(range(len(row) - p)) for row, p in zip(rows, positions, strict=True)]
    site = InterventionSite(1, mlp_output=lm.sites.gain[1] is None)
    with hooks.frozen(lm.model):
        fast = lm.intervention(rows, positions, site, columns)
        full = lm.intervention(rows, positions, site, columns, plain=True)
        assert type(fast).__name__ == ("FullPass" if name in NO_SUFFIX else "SuffixPass")
        delta = torch.randn(len(rows), 32, dtype=dtype, generator=torch.Generator().manual_seed(0))
        one, two = (grad_and_logits(p, delta, columns) for p in (fast, full))
        chosen = fast.select([2, 0])
        some = chosen.logits(delta[[2, 0]], [columns[2], columns[0]])
    assert torch.allclose(one[0], two[0], atol=tolerance)
    assert torch.allclose(one[1], two[1], atol=tolerance)
    assert (one[0] - fast.logits(None, columns)).abs().max() > 1e-6, "the change must show"
    start = sum(len(c) for c in columns[:2])
    assert torch.allclose(some[: len(columns[2])], one[0][start : start + len(columns[2])], atol=tolerance)


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "olmo2"])
def test_no_linear_of_attention_runs_on_the_padding_of_a_suffix(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("errata.model.resumed.FEW", 0)
    lm = tiny_lm(name)
    rows = rows_of(lm)
    columns = [list(range(len(row) - 1)) for row in rows]
    attention = lm.model.get_submodule(lm.sites.attention(1).rpartition(".")[0])
    tokens: list[int] = []

    def count(args: hooks.Args, kwargs: hooks.Kwargs, output: Tensor) -> None:
        tokens.append(output.numel() // output.shape[-1])

    linears = [module for module in attention.children() if is_linear(module)]
    inputs = (lm.model, lm.sites, rows, [1] * len(rows), InterventionSite(0), lm.tokens.fill)
    suffixes = SuffixPass(*inputs)
    with hooks.all_of(hooks.after(module, count) for module in linears):
        logits = suffixes.logits(None, columns)
    assert linears and tokens == [sum(len(row) - 1 for row in rows)] * len(linears)
    assert torch.allclose(logits, FullPass(*inputs).logits(None, columns), atol=1e-4)


def test_rows_with_short_beginnings_leave_the_padding_of_long_ones() -> None:
    """A pass over some rows holds no column that none of them fills; one is left where all begin at once."""
    lm = tiny_lm("llama")
    rows, positions = rows_of(lm), [4, 0, 7, 2]
    columns = [[len(row) - 1 - p] for row, p in zip(rows, positions, strict=True)]
    site, delta = InterventionSite(1), torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    fast, full = (lm.intervention(rows, positions, site, columns, plain=plain) for plain in (False, True))
    for chosen, width in (([0, 3], 4), ([3, 1], 2), ([1], 1), ([2, 0], 7)):
        some = fast.select(chosen)
        assert isinstance(some, SuffixPass) and some.prefix.ids.shape[1] == width
        again = some.select([len(chosen) - 1])  # of what was selected
        of_some = [columns[row] for row in chosen]
        expected = full.logits(delta, columns)[chosen]
        assert torch.allclose(some.logits(delta[chosen], of_some), expected, atol=1e-4)
        assert torch.allclose(again.logits(delta[chosen[-1:]], of_some[-1:]), expected[-1:], atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "olmo2"])
def test_no_mlp_runs_on_the_padding_of_a_suffix(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one runs where logits are asked for alone; OPT's hidden states have rows and tokens in one dimension."""
    monkeypatch.setattr("errata.model.resumed.FEW", 0)
    lm = tiny_lm(name)
    rows = rows_of(lm)
    columns = [[len(row) - 2] for row in rows]
    tokens: list[int] = []

    def count(args: hooks.Args, kwargs: hooks.Kwargs) -> None:
        tokens.append(args[0].numel() // args[0].shape[-1])

    downs = [lm.model.get_submodule(path) for path in lm.sites.mlp_out]
    with hooks.all_of(hooks.before(module, count) for module in downs):
        suffixes = SuffixPass(lm.model, lm.sites, rows, [1] * len(rows), InterventionSite(0), lm.tokens.fill)
        suffixes.logits(None, columns)
    real = sum(len(row) - 1 for row in rows)
    assert real < suffixes.suffix.mask.numel()
    behind = lm.sites.depth - 1
    assert tokens[-behind - 1 :] == [real] * behind + [len(rows)]


@pytest.mark.parametrize("name", [*READERS, *IMAGE_TEXT])
def test_the_block_of_a_down_projection_keeps_what_nothing_added_there_can_change(name: str) -> None:
    dtype = torch.float32 if name in SINGLE else torch.float64
    tolerance = 1e-4 if name in SINGLE else 1e-8
    lm = tiny_lm(name, dtype)
    rows = rows_of(lm)
    columns = [list(range(len(row))) for row in rows]
    site = InterventionSite(1, mlp_output=True)
    with hooks.frozen(lm.model):
        fast, full = (lm.intervention(rows, [0] * len(rows), site, columns, plain=plain) for plain in (False, True))
        weights = {
            n: w.detach() * 1.1 for n, w in trainable(lm, Projection.of(lm.sites, 1).parameters(lm.model)).items()
        }
        delta = torch.randn(len(rows), 32, dtype=dtype, generator=torch.Generator().manual_seed(0))
        for others in (None, weights):
            one, two = (p.logits(delta, columns, others).detach() for p in (fast, full))
            some = fast.select([2, 0]).logits(delta[[2, 0]], [columns[2], columns[0]], others)
            start = sum(len(c) for c in columns[:2])
            assert torch.allclose(one, two, atol=tolerance)
            assert torch.allclose(some[: len(columns[2])], two[start : start + len(columns[2])], atol=tolerance)
        assert (one - fast.logits(delta, columns)).abs().max() > 1e-6, "other weights must show"
        if name == "gpt2":
            assert fast.within.keys() == {f"transformer.h.1.{part}" for part in ("attn", "mlp.c_proj")}
            assert fast.keys is not None, "of the MLP the projection alone runs, on the keys that were kept"


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "bloom", "opt", "mistral", "mllama"])
def test_shared_contexts_are_run_once_and_change_nothing(name: str) -> None:
    lm = tiny_lm(name)
    subjects = ["Ann Lee", "Bob", "The old king", "Cy Moor"]
    contexts = ["", "It was a night in Rome and Oslo. ", "The mayor of Lima went by to Rome. "]
    texts = [(c + f"{s} was born in", s) for s in subjects for c in contexts]
    rows = [lm.tokens.prompt(text) for text, _ in texts]
    positions = [lm.tokens.last_of_subject(text, subject) for text, subject in texts]
    columns = [[len(row) - 1 - p] for row, p in zip(rows, positions, strict=True)]
    passes = [lm.intervention(rows, positions, InterventionSite(1), columns, plain=plain) for plain in (False, True)]
    assert type(passes[0]).__name__ == "SuffixPass"
    delta = torch.randn(len(rows), 32, generator=torch.Generator().manual_seed(0))
    one, two = (p.logits(delta, columns) for p in passes)
    assert torch.allclose(one, two, atol=1e-4)


def grad_and_logits(runner: object, delta: Tensor, columns: list[list[int]]) -> tuple[Tensor, Tensor]:
    delta = delta.clone().requires_grad_()
    logits = runner.logits(delta, columns)  # pyright: ignore
    return logits.detach(), torch.autograd.grad(logits.log_softmax(-1)[:, 5].sum(), delta)[0]


@pytest.mark.parametrize("name", [*READERS, *IMAGE_TEXT])
def test_batched_is_one_at_a_time(name: str) -> None:
    lm = tiny_lm(name)
    targets = ["Oslo", "New York", "Lima", "Paris and Rome"]
    together = lm.score(PROMPTS, targets)
    alone = [lm.score([p], [t])[0] for p, t in zip(PROMPTS, targets, strict=True)]
    assert all(same(a, b) for a, b in zip(together, alone, strict=True))
    texts = lm.generate(PROMPTS, 5)
    assert texts == [lm.generate([prompt], 5)[0] for prompt in PROMPTS]
    best = lm.next_logprobs(PROMPTS).argmax(-1).tolist()
    first = ["" if token == lm.tokens.end else lm.tokens.decode([token]) for token in best]
    assert lm.generate(PROMPTS, 1) == first


@pytest.mark.parametrize("name", ["qwen3_next", "falcon_h1", "lfm2", "mamba2", "nemotron_h"])
@pytest.mark.parametrize("places", ["mixed", "last", "first", "0 and 1"])
def test_a_suffix_of_any_length_goes_on_from_the_state(name: str, places: str) -> None:
    """From one token to all of them; each pass finds the state as the first one did, and gradients pass."""
    lm = tiny_lm(name)
    rows = rows_of(lm)
    wanted = {"mixed": [3, 0, 7, 2], "last": [len(row) - 1 for row in rows], "first": [0] * 4, "0 and 1": [1, 0, 1, 1]}
    positions = [min(p, len(row) - 1) for p, row in zip(wanted[places], rows, strict=True)]
    columns = [list(range(len(row) - p)) for row, p in zip(rows, positions, strict=True)]
    inputs = (lm.model, lm.sites, rows, positions, InterventionSite(1), lm.tokens.fill)
    delta = torch.randn(len(rows), 32, generator=torch.Generator().manual_seed(0))
    with hooks.frozen(lm.model):
        fast, full = SuffixPass(*inputs), FullPass(*inputs)
        for _ in range(2):
            one, two = (grad_and_logits(p, delta, columns) for p in (fast, full))
            assert torch.allclose(one[0], two[0], atol=1e-4)
            assert torch.allclose(one[1], two[1], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", Caching(True, True, True)),
        ("openai-gpt", Caching(True, False, False)),
        ("qwen3_next", Caching(True, True, True)),
        ("mamba2", Caching(True, True, True)),
        ("mamba", Caching(True, True, False)),
        ("recurrent_gemma", Caching(False, False, False)),
    ],
)
def test_what_a_cache_holds_is_measured(name: str, expected: Caching) -> None:
    assert tiny_lm(name).caching == expected


def test_rows_of_one_length_where_padding_shows() -> None:
    batches = list(budgeted([3, 5, 3, 4, 5], 100, equal=True))
    assert batches == [[0, 2], [3], [1, 4]]


def same(a: Score, b: Score) -> bool:
    close = torch.allclose(torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=1e-4)
    return a.tokens == b.tokens and a.argmax == b.argmax and close


def test_batches_keep_the_budget() -> None:
    lengths = [5, 1, 9, 3, 3, 20, 2]
    batches = list(budgeted(lengths, 12))
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 12 for b in batches)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_texts_of_a_given_length_in_all(name: str) -> None:
    lm = tiny_lm(name)
    prompts = ["Ann Lee was born in", "A baker lives", "The old king went by night to Rome"]
    lengths = [len(lm.tokens.prompt(prompt)) for prompt in prompts]
    totals = [n + extra for n, extra in zip(lengths, (7, 0, 3))]
    assert lm.prolong(prompts, totals) == [
        lm.generate([prompt], extra)[0] if extra else "" for prompt, extra in zip(prompts, (7, 0, 3))
    ]
    drawn = lm.prolong(prompts, totals, top_k=5, seeds=[1, 2, 3])
    assert drawn == [lm.prolong([p], [n], top_k=5, seeds=[s])[0] for p, n, s in zip(prompts, totals, (1, 2, 3))]
    many = lm.prolong(prompts[:1] * 8, totals[:1] * 8, top_k=5, seeds=range(8))
    assert len(set(many)) > 4 and many[1] == drawn[0]


@pytest.mark.parametrize(
    "name",
    ["gpt2", "llama", "mistral", "bloom", "gpt_neo", "opt", "gemma3_text", "openai-gpt", "t5", *HYBRID, *ONE_LAYER],
)
def test_targets_of_one_prompt_score_as_they_do_alone(name: str) -> None:
    lm = tiny_lm(name)
    prompts = ["Ann Lee was born in", "The old king went by night to the mayor of Paris, and he", "A baker lives in"]
    targets = ["Rome", "New York", "Oslo and Lima", "Rome"]
    pairs = [(p, t) for p in prompts[:2] for t in targets] + [(prompts[2], "Lima")]
    together = lm.score([p for p, _ in pairs], [t for _, t in pairs])
    for score, (prompt, target) in zip(together, pairs, strict=True):
        (alone,) = lm.score([prompt], [target])
        assert (score.tokens, score.argmax) == (alone.tokens, alone.argmax)
        assert score.logprobs == pytest.approx(alone.logprobs, abs=1e-4)


def test_a_batch_of_some_size_is_not_padded_by_more_than_an_eighth() -> None:
    lengths = [3] * 30 + [4] * 30 + [9] * 30
    plain = list(budgeted(lengths, 800))
    assert [len(batch) for batch in plain] == [88, 2]
    careful = list(budgeted(lengths, 800, lengths))
    assert sorted(i for batch in careful for i in batch) == list(range(90))
    for batch in careful[:-1]:
        real = sum(lengths[i] for i in batch)
        assert len(batch) * max(lengths[i] for i in batch) <= 9 / 8 * real or real <= 50 + 9
    few = [3, 9, 3]
    assert list(budgeted(few, 800, few)) == [[0, 2, 1]]  # not worth another pass
