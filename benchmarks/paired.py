"""What a change of the code does to scores and seconds: two trees, the same edits, differences paired by case. As JSON.

    python benchmarks/paired.py [OLD] [NEW] [--methods t-patcher wise …] [--draws 3] [--cases 40] [--split test]

OLD and NEW are checkouts (a ``git worktree`` of an earlier commit); each defaults to this one, and the same tree twice
shows how much seconds differ by chance. A draw is so many cases, edited in one call and asked by generation, in a
process of each tree, one behind the other; which is first alternates. Seconds are of the process, for the call alone.
A column is a kind of question, its value for a case the share that is right (or as before, where it shall be).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
Values = Mapping[str, Mapping[str, float]]  # column -> case -> value


def paired(old: Values, new: Values) -> dict[str, dict[str, Any]]:
    """Column -> both means over the cases that both trees have, the mean of new less old, and its standard error.

    ``error`` is None of a single case. ``alone`` counts cases that one tree alone has; it is left out where it is 0.
    """
    found: dict[str, dict[str, Any]] = {}
    for column in dict.fromkeys([*old, *new]):
        of_old, of_new = old.get(column, {}), new.get(column, {})
        cases = [case for case in of_old if case in of_new]
        alone = len(of_old.keys() ^ of_new.keys())
        found[column] = {"cases": len(cases)} | ({"alone": alone} if alone else {})
        if not cases:
            continue
        differences = [of_new[case] - of_old[case] for case in cases]
        error = statistics.stdev(differences) / len(cases) ** 0.5 if len(cases) > 1 else None
        found[column] |= {
            "old": round(statistics.fmean(of_old[case] for case in cases), 3),
            "new": round(statistics.fmean(of_new[case] for case in cases), 3),
            "difference": round(statistics.fmean(differences), 4),
            "error": None if error is None else round(error, 4),
        }
    return found


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """One draw by one method, with whichever tree Python finds: the seconds and the values."""
    import errata

    if Path(errata.__file__).resolve().parents[2] != args.old:
        raise SystemExit(f"there is no errata in {args.old / 'src'}: Python found {errata.__file__}")
    lm, method = errata.load(args.model), errata.method(args.methods[0])
    state = method.prepare(lm)
    cases = errata.cases(args.data, limit=args.cases, seed=args.seed, split=args.split)
    edits = [edit for case in cases for edit in case.edits]
    method.edit(lm, edits[:1], state)  # warm
    began = time.process_time()
    patch = method.edit(lm, edits, state)
    seconds = time.process_time() - began
    before = errata.baseline(lm, cases, modes=["generated"])
    with patch.applied(lm) as edited:
        rows = errata.evaluate(before, edited, cases)
    of_case: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row.metric == "accuracy" and row.after is not None:
            of_case.setdefault(row.kind, {}).setdefault(f"{args.seed} {row.case}", []).append(float(row.after))
    values = {kind: {case: statistics.fmean(x) for case, x in of.items()} for kind, of in of_case.items()}
    return {"seconds": seconds, "values": values}


def run(tree: Path, method: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """What :func:`measured` returns in a process of its own with that tree's code."""
    command = [
        sys.executable,
        str(HERE),
        str(tree),
        "--one",
        "--methods",
        method,
        "--seed",
        str(seed),
        "--model",
        args.model,
    ]
    command += ["--data", args.data, "--cases", str(args.cases), "--split", args.split]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(args.threads))
    env = os.environ | threads | {"PYTHONPATH": str(tree / "src")}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{method} failed with the code of {tree}, draw {seed}")
    return json.loads(done.stdout.splitlines()[-1])


def compared(method: str, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each draw by both trees, how many times as fast the new one is, and the columns, of all draws."""
    seconds: dict[str, list[float]] = {"old": [], "new": []}
    values: dict[str, dict[str, dict[str, float]]] = {"old": {}, "new": {}}
    for seed in range(args.seed, args.seed + args.draws):
        trees = [("old", args.old), ("new", args.new)]
        for way, tree in trees if seed % 2 == 0 else reversed(trees):
            one = run(tree, method, seed, args)
            seconds[way].append(round(one["seconds"], 2))
            for column, of in one["values"].items():
                values[way].setdefault(column, {}).update(of)
    ratio = round(sum(seconds["old"]) / sum(seconds["new"]), 2) if sum(seconds["new"]) else None
    return {"method": method, **seconds, "ratio": ratio, "columns": paired(values["old"], values["new"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", nargs="?", type=Path, default=HERE.parents[1])
    parser.add_argument("new", nargs="?", type=Path, default=HERE.parents[1])
    parser.add_argument("--methods", nargs="+", default=["t-patcher", "calinet", "wise"])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--split", default="test")
    parser.add_argument("--seed", type=int, default=0, help="of the first draw")
    parser.add_argument("--model", default="world")
    parser.add_argument("--data", default="world")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.old, args.new = args.old.resolve(), args.new.resolve()
    if args.one:
        print(json.dumps(measured(args)))
        return
    for method in args.methods:
        print(json.dumps(compared(method, args)), flush=True)


if __name__ == "__main__":
    main()
