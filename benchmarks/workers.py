"""A bench with workers of one thread each against one process of one thread: figures as JSON on stdout.

    python benchmarks/workers.py [--workers 2] [--model world] [--cases 40] [--repeats 3]

Both ways measure the same units in one run, by turns, and their rows must be equal. Ray and the workers are started
before the clock starts (``started_s``); they load the model within it, which the one process has done.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import errata
from errata.bench.plan import Plan
from errata.bench.run import run
from errata.distributed.pool import Pool
from errata.report.rows import read_rows

MEASURED = ("seconds_per_edit", "peak_mib")  # which no two runs share


def rows_of(path: Path) -> list[Any]:
    """The rows, without what the clock says."""
    return [replace(row, after=None) if row.metric in MEASURED else row for row in read_rows(path)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--model", default="world")
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    about: Any = {"models": [args.model], "methods": ["r-rome"], "settings": ["single"]}
    plan = Plan.of({**about, "data": [{"name": "world", "limit": args.cases}]})
    lm = errata.load(args.model)
    made: Any = {"method": errata.method, "cases": errata.cases}
    errata.method("r-rome").prepare(lm)  # its statistics are cached
    times: list[tuple[float, float]] = []
    equal: list[bool] = []
    with tempfile.TemporaryDirectory() as folder, Pool(args.workers) as pool:
        began = time.perf_counter()
        pool.load(partial(errata.load, args.model))
        pool.map(_depth, [()] * args.workers)
        started = time.perf_counter() - began
        for n in range(args.repeats):
            alone, shared = Path(folder) / f"alone {n}.jsonl", Path(folder) / f"shared {n}.jsonl"
            began = time.perf_counter()
            run(plan, alone, load=lambda name: lm, **made)
            between = time.perf_counter()
            run(plan, shared, load=partial(errata.load), **made, workers=pool)
            times.append((time.perf_counter() - between, between - began))
            equal.append(rows_of(alone) == rows_of(shared))
    figures = {
        "workers": args.workers,
        "cases": args.cases,
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "started_s": round(started, 1),
        "workers_s": [round(a, 1) for a, _ in times],
        "alone_s": [round(b, 1) for _, b in times],
        "ratio": round(statistics.median(b / a for a, b in times), 2),
        "equal_rows": equal,
    }
    print(json.dumps(figures, indent=1))


def _depth(lm: Any) -> int:
    return lm.sites.depth


if __name__ == "__main__":
    main()
