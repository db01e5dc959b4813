"""MEMIT against the plain loop, and its memory: figures as JSON on stdout.

    python benchmarks/memit.py [--model world] [--edits 100] [--many 1000] [--threads N]

The plain loop: parameters frozen, one fact at a time with all its contexts and the KL row in one batch, full forward
passes, the same early stop. Both in one run, on the same facts, with the same settings.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from typing import Any

import torch

import errata


def peak_mib() -> float:
    """Peak resident memory of this process, MiB."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / (2**20 if platform.system() == "Darwin" else 2**10)


def speed(model: str, n: int, repeats: int) -> dict[str, Any]:
    """Seconds of the search for targets and of the whole edit, fast and plain, and how far their targets differ."""
    lm = errata.load(model)
    edits = [case.edits[0] for case in errata.cases("world", limit=n)]
    memit: Any = errata.method("memit")
    plain: Any = errata.method("memit", plain=True)
    state = memit.prepare(lm)
    memit.edit(lm, edits[:4], state)  # warm
    fast_s, plain_s, patches = [], [], {}
    for _ in range(repeats):
        for name, method, seconds in (("fast", memit, fast_s), ("plain", plain, plain_s)):
            began = time.perf_counter()
            patches[name] = method.edit(lm, edits, state)
            seconds.append(time.perf_counter() - began)
    scores = {}
    for name, patch in patches.items():
        with patch.applied(lm) as edited:
            answers = edited.score([e.prompt for e in edits], [e.target_new for e in edits])
        scores[name] = sum(answer.correct for answer in answers) / n
    weights = {k: p.parts[0].weights for k, p in patches.items()}
    differ = [
        float((dense(weights["fast"][name]) - dense(w)).norm() / dense(w).norm())
        for name, w in weights["plain"].items()
    ]
    ratios = sorted(p / f for p, f in zip(plain_s, fast_s, strict=True))
    return {
        "edits": n,
        "fast_seconds": fast_s,
        "plain_seconds": plain_s,
        "ratio_median": ratios[len(ratios) // 2],
        "forced_reliability": scores,
        "relative_difference_of_deltas": max(differ),
    }


def dense(weight: Any) -> torch.Tensor:
    return weight if isinstance(weight, torch.Tensor) else weight.dense()


def memory(model: str, n: int) -> dict[str, Any]:
    """Peak memory above the loaded model and its statistics, MiB, of one edit call with n facts."""
    lm = errata.load(model)
    memit: Any = errata.method("memit")
    state = memit.prepare(lm)
    edits = [case.edits[0] for case in errata.cases("world", limit=n)]
    memit.edit(lm, edits[:1], state)  # factors of C, allocator
    loaded = peak_mib()
    began = time.perf_counter()
    patch = memit.edit(lm, edits, state)
    return {
        "edits": n,
        "peak_above_loaded_mib": round(peak_mib() - loaded, 1),
        "patch_mib": round(patch.nbytes / 2**20, 1),
        "seconds": round(time.perf_counter() - began, 1),
        "budget_tokens": lm.budget,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="world")
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--many", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--memory", type=int, default=0, help="only measure the memory of so many edits")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.memory:
        print(json.dumps(memory(args.model, args.memory)))
        return
    figures: dict[str, Any] = {
        "machine": {
            "processor": platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
        "speed": speed(args.model, args.edits, args.repeats),
        "memory": [
            json.loads(
                subprocess.run(
                    [sys.executable, __file__, "--model", args.model, "--memory", str(n)],
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout
            )
            for n in (args.edits, args.many)
        ],
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
