"""Looks for settings of EasyEdit's methods on the validation subjects of the bundled model, as JSON lines.

    python benchmarks/peers/tune.py --checkout ../EasyEdit --method memit [--edits 10] [--only v_lr=9]

Each line is a setting of the grid in ``recipes.py``, the share of right answers by kind, their mean, and seconds. The
last line is the best. What is kept of it stands in ``recipes.py`` as ``tuned``; no test subject is asked.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import torch
from beside import KINDS, Side, measured
from easyedit import EASYEDIT, EasyEdit
from place import Place
from recipes import RECIPES
from runner import given

import errata
from errata.errors import unknown


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--checkout", type=Path, required=True)
    parser.add_argument("--method", nargs="+", required=True)
    parser.add_argument("--edits", type=int, default=10)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME=VALUE", help="a part of the grid")
    args = parser.parse_args()
    torch.set_num_threads(1)
    EASYEDIT.check(args.checkout)
    if wrong := [name for name in args.method if name not in RECIPES]:
        raise unknown("method of EasyEdit", wrong[0], list(RECIPES))
    lm = errata.load("world", device="cpu")
    cases = errata.cases("world", limit=args.edits, split="validation")
    before = errata.baseline(lm, cases)
    with TemporaryDirectory() as folder:
        place = Place(Path(folder), lm)
        for name in args.method:
            lines: list[dict[str, Any]] = []
            for setting in chosen(RECIPES[name].grid(), given(args.only)):
                peer = EasyEdit(args.checkout.resolve(), name, place, setting, own=True)
                lines.append(line_of(name, setting, measured(peer, before, cases)))
                print(json.dumps(lines[-1]), flush=True)
            print(json.dumps({"best": max(lines, key=lambda line: (line["mean"], -sum(line["seconds"])))}), flush=True)


def chosen(grid: list[dict[str, Any]], only: dict[str, Any]) -> list[dict[str, Any]]:
    """The settings that agree with ``only``."""
    return [setting for setting in grid if setting == setting | {k: v for k, v in only.items() if k in setting}]


def line_of(name: str, setting: dict[str, Any], side: Side) -> dict[str, Any]:
    shares = {kind: values for kind in KINDS if (values := side.values(kind))}
    scores = {kind: round(mean(values), 3) for kind, values in shares.items()}
    of_all = round(mean(scores.values()), 3) if scores else 0.0
    return {"method": name, "setting": setting, "mean": of_all, **scores, "seconds": side.seconds, "error": side.error}


if __name__ == "__main__":
    sys.exit(main())
