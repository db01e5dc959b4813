"""What an edit costs beside its search: solves in a long sequence, key statistics, putting a patch on. As JSON.

    python benchmarks/core.py [--model world] [--threads N] [--repeats 5] [--only statistics]

Each figure is a ratio of two times in one run: the 30th batch of a sequence against the first, key statistics against a
bare forward pass over the same texts (in pairs, by the clock and by seconds of the process), ``applied`` and undo
against copying the weights that the patch touches.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

import errata
from errata.methods.closed_form import solve
from errata.methods.closed_form.symmetric import Symmetric
from errata.model import passes
from errata.model.padding import pad
from errata.model.second_moment import second_moments
from errata.model.weights import weight_shape
from errata.patch.delta import Delta
from errata.patch.low_rank import LowRank
from errata.patch.memory import GRAM, KEYS, remember

BATCHES, FACTS = 30, 50


def seconds(what: Callable[[], Any]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def both_seconds(what: Callable[[], Any]) -> tuple[float, float]:
    """By the clock, and of this process."""
    began = time.process_time()
    return seconds(what), time.process_time() - began


def median(what: Callable[[], Any], repeats: int) -> float:
    what()  # warm
    return statistics.median(seconds(what) for _ in range(repeats))


def sequence(lm: Any, repeats: int) -> dict[str, Any]:
    """Milliseconds of one layer's solve, with all that history needs, in the 1st and the last batch of a sequence."""
    memit: Any = errata.method("memit")
    state = memit.prepare(lm)
    lam, site = memit.resolve(lm, state).lam, lm.sites.mlp_out[memit.chosen_layers(lm)[0]]
    c = state.tensors[f"C/{site}"].double()
    start, width = solve.inverse_of(c), lm.config.hidden_size
    factor = torch.linalg.cholesky(c + 1e-6 * c.diagonal().mean() * torch.eye(len(c)))
    found: list[list[float]] = []
    for _ in range(repeats):
        running, memory, times = solve.RunningInverse(Symmetric.of(start)), {}, []
        for _ in range(BATCHES):
            keys = (factor @ torch.randn(len(c), FACTS, dtype=torch.float64)).float()  # (f, n), distributed as C says
            residuals = torch.randn(width, FACTS)

            def one_batch(keys: Any = keys, residuals: Any = residuals, running: Any = running) -> None:
                nonlocal memory
                inverse = running.after(memory.get(KEYS + site), memory.get(GRAM + site), lam)
                solve.least_squares([inverse], [keys], residuals, lam)
                memory = remember(memory, site, keys.T)
                running.add(keys.T, memory.get(GRAM + site, memory.get(KEYS + site)), lam)

            times.append(seconds(one_batch))
        found.append(times)
    first, last = (statistics.median(times[i] for times in found) * 1e3 for i in (0, -1))
    return {
        "facts_a_batch": FACTS,
        "first_ms": round(first, 1),
        f"batch_{BATCHES}_ms": round(last, 1),
        "ratio": round(last / first, 2),
    }


def key_statistics(lm: Any, layers: Sequence[int], repeats: int, tokens: int = 20_000) -> dict[str, Any]:
    """Throughput of C for some layers, in parts of that of a bare forward pass of the model."""
    pieces: list[list[int]] = []
    for text in lm.resources.texts():
        pieces.append(lm.tokens.prompt(text))
        if sum(map(len, pieces)) >= tokens:
            break

    def bare() -> None:
        with torch.no_grad():
            for batch in passes.budgeted([len(p) for p in pieces], lm.budget):
                rows = pad([pieces[i] for i in batch], "right", lm.tokens.fill, lm.device)
                lm.model(**passes.inputs_of(lm.model, rows.ids, rows.mask))

    sites = [lm.sites.mlp_out[layer] for layer in layers]

    def read() -> None:
        second_moments(lm, pieces, sites)

    bare(), read()  # warm
    pairs = [(both_seconds(bare), both_seconds(read)) for _ in range(repeats)]  # A B A B: what else runs meets both
    one, two = (statistics.median(pair[i][0] for pair in pairs) for i in range(2))
    by_clock, by_process = ([a[i] / b[i] for a, b in pairs] for i in range(2))
    n = sum(map(len, pieces))
    return {
        "layers": list(layers),
        "bare_tokens_per_second": round(n / one),
        "statistics_tokens_per_second": round(n / two),
        "ratio": round(statistics.median(by_clock), 2),
        "ratios_of_process_seconds": [round(ratio, 2) for ratio in sorted(by_process)],
    }


def large(lm: Any) -> Any:
    """A model of three blocks whose down projections are as large as those of a model of some billions."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 3, "num_attention_heads": 16}
    config = LlamaConfig(vocab_size=len(lm.tokenizer), **sizes)
    return errata.load(AutoModelForCausalLM.from_config(config), tokenizer=lm.tokenizer)


def applied(lm: Any, repeats: int, ranks: Sequence[int] = (1, 10, 100)) -> dict[str, Any]:
    """Milliseconds of putting a patch on and taking it off, and of copying the weights it touches."""
    figures: dict[str, Any] = {}
    for rank in ranks:
        names = [f"{site}.weight" for site in lm.sites.mlp_out]
        out, in_ = weight_shape(lm.model, names[0])
        weights = {name: LowRank(torch.randn(out, rank), torch.randn(rank, in_)) for name in names}
        patch = errata.Patch((Delta(weights),))
        touched = [lm.model.get_parameter(name).data for name in names]

        def on_and_off(patch: Any = patch) -> None:
            with patch.applied(lm):
                pass

        def copies(touched: Any = touched) -> None:
            [w.clone() for w in touched]

        on, copied = median(on_and_off, repeats), median(copies, repeats)
        figures[f"rank_{rank}"] = {
            "applied_ms": round(on * 1e3, 2),
            "copy_ms": round(copied * 1e3, 2),
            "ratio": round(on / copied, 2),
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="world")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=20_000, help="that key statistics are made of")
    parser.add_argument("--only", choices=["sequence", "statistics", "applied"])
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    lm, repeats = errata.load(args.model), args.repeats
    critical = errata.method("memit").chosen_layers(lm)  # pyright: ignore
    parts: dict[str, Callable[[], Any]] = {
        "sequence": lambda: sequence(lm, repeats),
        "statistics": lambda: [
            key_statistics(lm, layers, repeats, args.tokens) for layers in (critical, range(lm.sites.depth))
        ],
        "applied": lambda: {
            "bundled model": applied(lm, 20 * repeats),
            "2048 x 8192": applied(large(lm), repeats),
        },
    }
    machine = {"processor": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    figures = {name: part() for name, part in parts.items() if args.only in (None, name)}
    print(json.dumps({"machine": machine, **figures}, indent=1))


if __name__ == "__main__":
    main()
