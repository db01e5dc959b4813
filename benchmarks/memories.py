"""What a memory costs while the model generates: stored kilobytes an edit, and how much slower it is. As a table.

    python benchmarks/memories.py [--model world] [--methods grace rag …] [--facts 1 100 1000] [--threads N]

Tokens per second with the patch on against those of the bare model, in one run, in turns, on the same prompts: half of
them ask for edited facts, half for others. How well a memory was trained does not change its speed, so methods that
train take one step an edit here.
"""

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

import errata
from errata.patch.patch import EMPTY, Patch
from errata.types import Case

PROMPTS, TOKENS = 64, 8
AT_ONCE = 100  # edits of one call


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default="world")
    parser.add_argument("--methods", nargs="+", help="which; those whose patches leave the weights alone")
    parser.add_argument("--facts", nargs="+", type=int, default=[1, 100, 1000])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    lm = errata.load(args.model)
    args.facts.sort()
    cases = errata.cases("world", limit=max(args.facts) + PROMPTS)
    print("| method | KB an edit | " + " | ".join(f"{n:,} facts" for n in args.facts) + " |")
    print("|" + " --- |" * (len(args.facts) + 2))
    of_weights = ("fine-tuning", "locate, then edit", "neuron attribution")
    for name in args.methods or [name for name, about in errata.methods().items() if about.family not in of_weights]:
        figures = [measured(lm, patch, cases, n, args.repeats) for n, patch in patches(lm, name, cases, args.facts)]
        slower = " | ".join(f"{ratio:.2f}" for _, ratio in figures)
        print(f"| {name} | {figures[-1][0]:.2f} | {slower} |", flush=True)


def quick(name: str) -> Any:
    made = errata.method(name)
    return errata.method(name, steps=1) if "steps" in made.settings else made


def patches(lm: Any, name: str, cases: Sequence[Case], facts: Sequence[int]) -> Iterator[tuple[int, Patch]]:
    """The patch of the first n cases, for each n: one fold."""
    method, patch, done = quick(name), EMPTY, 0
    state = method.prepare(lm)
    for n in facts:
        for at in range(done, n, AT_ONCE):
            patch = method.edit(
                lm, [edit for case in cases[at : min(n, at + AT_ONCE)] for edit in case.edits], state, patch
            )
        yield n, patch
        done = n


def measured(lm: Any, patch: Patch, cases: Sequence[Case], n: int, repeats: int) -> tuple[float, float]:
    """Kilobytes an edit with n edits, and how many times longer the same prompts take."""
    with_patch, without = [], []
    inside, outside = cases[:n][: PROMPTS // 2], cases[n:]
    prompts = [case.edits[0].prompt for case in (*inside, *outside[: PROMPTS - len(inside)])]

    def tokens_per_second(asked: Any) -> float:
        began = time.perf_counter()
        texts = asked.generate(prompts, TOKENS)
        tokens = sum(len(lm.tokens.target(p, text)) if text.strip() else 1 for p, text in zip(prompts, texts))
        return tokens / (time.perf_counter() - began)

    for turn in range(repeats + 1):  # the first one warms up
        bare = tokens_per_second(lm)
        with patch.applied(lm) as edited:
            patched = tokens_per_second(edited)
        if turn:
            without.append(bare)
            with_patch.append(patched)
    return patch.nbytes / 1000 / n, statistics.median(without) / statistics.median(with_patch)


if __name__ == "__main__":
    main()
