"""Asking a model everything that cases ask, against one prompt at a time: figures as JSON on stdout.

    python benchmarks/evaluate.py [--model world] [--cases 100] [--threads N] [--repeats 3]

Both ways in one run, on the same prompts (each distinct one once), with the same stop; their texts and scores must
agree. The plain way is the loop of the field: for each prompt one ``generate`` until the answer is complete, or one
pass with the answer fed.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import errata


def seconds(what: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    made = what()
    return time.perf_counter() - began, made


def compared(fast: Callable[[], Any], plain: Callable[[], Any], repeats: int) -> tuple[dict[str, Any], Any, Any]:
    """Times of both ways by turns, and what they gave."""
    times: list[tuple[float, float]] = []
    a = b = None
    for _ in range(repeats):
        (fast_s, a), (plain_s, b) = seconds(fast), seconds(plain)
        times.append((fast_s, plain_s))
    ratio = statistics.median(p / f for f, p in times)
    figures = {"fast_s": [round(f, 2) for f, _ in times], "plain_s": [round(p, 2) for _, p in times]}
    return {**figures, "ratio": round(ratio, 1)}, a, b


def generated(lm: Any, cases: Any, repeats: int) -> dict[str, Any]:
    """Answers in our own protocol."""
    before = errata.baseline(lm, cases)
    prompts = list(before.replies.answers)
    figures, fast, plain = compared(
        lambda: list(errata.baseline(lm, cases).replies.answers.values()),
        lambda: [lm.generate([prompt], before.protocol.answer.tokens, until_answer=True)[0] for prompt in prompts],
        repeats,
    )
    return {"prompts": len(prompts), **figures, "same_texts": sum(a == b for a, b in zip(fast, plain, strict=True))}


def forced(lm: Any, cases: Any, repeats: int, protocol: str) -> dict[str, Any]:
    """Scores of fed answers; two for each prompt by ROME's protocol."""
    asked = list(errata.baseline(lm, cases, ["forced"], protocol=protocol).replies.scores)
    figures, fast, plain = compared(
        lambda: list(errata.baseline(lm, cases, ["forced"], protocol=protocol).replies.scores.values()),
        lambda: [lm.score([prompt], [answer])[0] for prompt, answer in asked],
        repeats,
    )
    differ = max(abs(a.total - b.total) for a, b in zip(fast, plain, strict=True))
    same = sum((a.tokens, a.argmax) == (b.tokens, b.argmax) for a, b in zip(fast, plain, strict=True))
    return {"scores": len(asked), **figures, "same_argmax": same, "logprobs_differ_by": float(f"{differ:.1e}")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="world")
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    lm = errata.load(args.model)
    cases = errata.cases("world", limit=args.cases)
    lm.generate(["warm"], 2)
    figures = {
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__},
        "generated": generated(lm, cases, args.repeats),
        "forced": forced(lm, cases, args.repeats, "errata"),
        "forced_by_rome": forced(lm, cases, args.repeats, "rome"),
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
