"""A method that locates and edits against the published loop, and its memory: figures as JSON on stdout.

    python benchmarks/memit.py [--method memit] [--model world] [--edits 100] [--many 1000] [--threads N] [--repeats 3]

``published``: parameters frozen, one fact at a time with all its contexts and the KL row in one batch, full forward
passes, Adam, the same early stop. ``plain`` takes the steps and rows of the fast way in such passes, for the same
targets. All in one run, on the same facts. With ``--threads 1`` seconds are the process's own, whatever else runs.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from statistics import mean, stdev
from typing import Any

import torch

import errata


def peak_mib() -> float:
    """Peak resident memory of this process, MiB."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / (2**20 if platform.system() == "Darwin" else 2**10)


def speed(name: str, model: str, n: int, repeats: int) -> dict[str, Any]:
    """Seconds of the whole edit in each way, scores, and how far the plain way's change is from the fast one's."""
    lm = errata.load(model)
    cases = errata.cases("world", limit=n)
    edits = [case.edits[0] for case in cases]
    of_time = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    alone = {"together": 1} if "together" in errata.method(name).settings else {}
    ways: dict[str, Any] = {
        "fast": errata.method(name),
        "plain": errata.method(name, plain=True),
        "published": errata.method(name, plain=True, optimizer="adam", search_contexts=20, **alone),
    }
    state = ways["fast"].prepare(lm)
    ways["fast"].edit(lm, edits[:4], state)  # warm
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    patches: dict[str, Any] = {}
    for _ in range(repeats):
        for way, method in ways.items():
            began = of_time()
            patches[way] = method.edit(lm, edits, state)
            seconds[way].append(round(of_time() - began, 2))
    scores = {way: score(lm, patch, cases) for way, patch in patches.items()}
    fast, plain = patches["fast"].parts[0].weights, patches["plain"].parts[0].weights
    differ = [float((dense(fast[at]) - dense(w)).norm() / dense(w).norm()) for at, w in plain.items()]
    ratios = {
        way: sorted(slow / quick for slow, quick in zip(seconds[way], seconds["fast"], strict=True))[repeats // 2]
        for way in ("plain", "published")
    }
    return {
        "method": name,
        "edits": n,
        "seconds": seconds,
        "ratio_median": ratios,
        "generated": scores,
        "relative_difference_of_plain_deltas": max(differ),
    }


def score(lm: Any, patch: Any, cases: Any) -> dict[str, str]:
    """Kind of probe -> mean of generated answers ± standard error."""
    before = errata.baseline(lm, cases)
    with patch.applied(lm) as edited:
        rows = errata.evaluate(before, edited, cases)
    values: dict[str, list[float]] = {}
    for row in rows:
        if row.mode == "generated" and row.metric == "accuracy" and row.after is not None:
            values.setdefault(row.kind, []).append(float(row.after))
    return {kind: f"{mean(v):.3f} ± {stdev(v) / len(v) ** 0.5:.3f}" for kind, v in values.items() if len(v) > 1}


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
    parser.add_argument("--method", default="memit")
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
        "speed": speed(args.method, args.model, args.edits, args.repeats),
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
            if n
        ],
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
