"""A bench with workers of one thread each against one process of one thread: figures as JSON on stdout.

    python benchmarks/workers.py [--workers 2] [--model world] [--methods r-rome memit ft-m] [--cases 100] [--few 4]
        [--repeats 2] [--ceiling]

Each way is the whole command ``errata bench`` as a user types it, from the start of its process to its end, and their
rows must be equal. ``ratio`` is how much sooner the workers are through. Both are also run on a ``few`` cases of each
method, so that what a command takes beside its units (``fixed``) is told from what a unit takes (``per_unit``).

``cpu`` is processor time of the command and all that it starts, which a busy machine changes less than the clock;
``ratio_by_cpu`` is the ratio if no processor were ever idle: what there is to gain. ``ceiling`` is what the machine
lets processes gain that have nothing to do with each other: the one-process command, as many times at once as there
are workers. Two cores that share one core's units have a low one.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from errata.report.rows import read_rows

MEASURED = ("seconds_per_edit", "peak_mib")  # which no two runs share
LOOK = 0.1  # seconds between two looks at the processes


@dataclass(frozen=True)
class Taken:
    """Seconds on the clock, and processor seconds by the kind of process."""

    wall: float
    cpu: dict[str, float]

    @property
    def cpu_all(self) -> float:
        """Processor seconds of all processes."""
        return sum(self.cpu.values())


def kind_of(process: psutil.Process, command: int) -> str:
    """What a process is to the command with that number."""
    if process.pid == command:
        return "driver"
    return "workers" if "Worker" in process.name() else "ray"


def run(folder: Path, plan: Path, name: str, workers: int, copies: int = 1) -> Taken:
    """What the command takes that writes the rows ``name``, ``copies`` of it at once."""
    command = [sys.executable, "-m", "errata", "bench", str(plan), "--quiet"]
    command += ["--workers", str(workers)] if workers else []
    alone = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    began, seen = time.perf_counter(), dict[int, tuple[str, float]]()
    each = [
        subprocess.Popen([*command, "-o", str(folder / f"{name}{n or ''}.jsonl")], env=os.environ | alone)
        for n in range(copies)
    ]
    while any(one.poll() is None for one in each):
        for one in each:
            look(one.pid, seen)
        time.sleep(LOOK)
    wall = time.perf_counter() - began
    if any(one.returncode for one in each):
        raise SystemExit(f"{' '.join(command)} failed")
    cpu = dict[str, float]()
    for kind, seconds in seen.values():
        cpu[kind] = cpu.get(kind, 0.0) + seconds
    return Taken(wall, cpu)


def look(command: int, seen: dict[int, tuple[str, float]]) -> None:
    """Notes the processor time of a command's processes: the last that is seen of each."""
    try:
        processes = [psutil.Process(command), *psutil.Process(command).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in processes:
        try:
            times = process.cpu_times()
            seen[process.pid] = (kind_of(process, command), times.user + times.system)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue


def rows_of(path: Path) -> list[Any]:
    """The rows, without what the clock says."""
    return [replace(row, after=None) if row.metric in MEASURED else row for row in read_rows(path)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--model", default="world")
    parser.add_argument("--methods", nargs="+", default=["r-rome", "memit", "ft-m"])
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--few", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--ceiling", action="store_true")
    args = parser.parse_args()
    taken: dict[str, list[Taken]] = {}
    equal: list[bool] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        plans = {"few": args.few, "all": args.cases}
        for name, cases in plans.items():
            about = f'models = ["{args.model}"]\nmethods = {json.dumps(args.methods)}\nsettings = ["single"]\n'
            (folder / f"{name}.toml").write_text(f'{about}data = [{{ name = "world", limit = {cases} }}]\n')
        run(folder, folder / "few.toml", "first", 0)  # key statistics are cached from here on
        for n in range(args.repeats):
            for name in plans:
                for way, workers in (("alone", 0), ("workers", args.workers)):
                    one = run(folder, folder / f"{name}.toml", f"{name} {way} {n}", workers)
                    taken.setdefault(f"{name} {way}", []).append(one)
                    print(name, way, json.dumps(asdict(one)), file=sys.stderr)
                mine, theirs = (rows_of(folder / f"{name} {way} {n}.jsonl") for way in ("alone", "workers"))
                equal.append(mine == theirs)
        if args.ceiling:
            taken["at once"] = [run(folder, folder / "all.toml", "copy ", 0, args.workers)]
    print(json.dumps(figures(args, taken, equal), indent=1))


def figures(args: Any, taken: dict[str, list[Taken]], equal: list[bool]) -> dict[str, Any]:
    """What is printed: medians over the repeats."""
    wall = {name: statistics.median(one.wall for one in each) for name, each in taken.items()}
    cpu = {name: statistics.median(one.cpu_all for one in each) for name, each in taken.items()}
    units = {name: len(args.methods) * count for name, count in (("few", args.few), ("all", args.cases))}

    def parts(seconds: dict[str, float], way: str) -> dict[str, float]:
        more = (seconds[f"all {way}"] - seconds[f"few {way}"]) / (units["all"] - units["few"])
        return {"fixed": round(seconds[f"few {way}"] - units["few"] * more, 1), "per_unit": round(more, 4)}

    shown: dict[str, Any] = {
        "workers": args.workers,
        "units": units["all"],
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "ratio": round(wall["all alone"] / wall["all workers"], 2),
        "ratio_by_cpu": round(args.workers * cpu["all alone"] / cpu["all workers"], 2),
        "equal_rows": all(equal),
    }
    for way in ("alone", "workers"):
        shown[way] = {
            "wall": {"all": round(wall[f"all {way}"], 1), **parts(wall, way)},
            "cpu": {"all": round(cpu[f"all {way}"], 1), **parts(cpu, way)},
            "cpu_by": {kind: round(seconds, 1) for kind, seconds in taken[f"all {way}"][-1].cpu.items()},
        }
    shown["ratio_per_unit"] = round(shown["alone"]["wall"]["per_unit"] / shown["workers"]["wall"]["per_unit"], 2)
    if "at once" in wall:
        shown["ceiling"] = round(args.workers * wall["all alone"] / wall["at once"], 2)
    return shown


if __name__ == "__main__":
    main()
