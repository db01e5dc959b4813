"""What an edit by a method that trains costs, against the same method run the plain way. As JSON.

    python benchmarks/neurons.py [--methods t-patcher calinet …] [--singles 3] [--batch 100] [--scores] [--threads 1]

The plain way takes the same steps in whole passes over every layer: nothing is kept that no step can change, gradients
of penalties go through all states, the strongest of which are looked for at each step. Seconds are of the process, in
turns (fast, plain, fast, plain …), on the world's validation subjects; the ratio is plain over fast. ``--scores`` asks
every case of the batch by generation, in both ways.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch as replaced

import torch
from torch import Tensor

import errata
from errata.methods.finetune.above import LogitsAbove
from errata.methods.neurons import calinet, t_patcher
from errata.methods.neurons.training import TargetTokens
from errata.methods.side_memory import margins, memoir, wise
from errata.methods.side_memory.training import SiteLosses

METHODS = ("t-patcher", "calinet", "wise", "memoir", "locft-bf", "ft", "ft-l", "ft-m")


def whole_noise(act: Callable[[Tensor], Tensor], x: Tensor, keys: Tensor, biases: Tensor, values: Tensor) -> Tensor:
    return (act(x @ keys.T + biases) @ values).square().mean(-1).sum() / max(1, len(x))


class Norms:
    @staticmethod
    def apply(w: Tensor, x: Tensor) -> Tensor:
        return (x @ w.T).norm(dim=-1)


@contextmanager
def plainly() -> Iterator[None]:
    """Context manager: methods take the plain way."""
    tokens, losses = partial(TargetTokens, plain=True), partial(SiteLosses, plain=True)
    ways: list[tuple[Any, str, Any]] = [
        (t_patcher, "TargetTokens", tokens),
        (t_patcher, "AGAIN", 1),
        (calinet, "TargetTokens", tokens),
        (calinet, "added_noise", whole_noise),
        (wise, "SiteLosses", losses),
        (margins, "_Norms", Norms),
        (margins, "MANY", -1.0),
        (memoir, "SiteLosses", losses),
        (LogitsAbove, "hold", lambda self, pairs: None),
    ]
    with ExitStack() as stack:
        for module, name, plain in ways:
            stack.enter_context(replaced.object(module, name, plain))
        yield


def seconds(method: Any, lm: Any, edits: Sequence[Any], state: Any, plain: bool) -> tuple[float, Any]:
    with ExitStack() as stack:
        if plain:
            stack.enter_context(plainly())
        began = time.process_time()
        made = method.edit(lm, edits, state)
        return time.process_time() - began, made


def scores(lm: Any, before: Any, patch: Any, cases: Any) -> dict[str, tuple[float, int]]:
    """Kind of probe -> the share that is right, or as before where it shall be, and of how many."""
    with patch.applied(lm) as edited:
        rows = errata.evaluate(before, edited, cases)
    found: dict[str, list[float]] = {}
    for row in rows:
        if isinstance(row.after, bool):
            found.setdefault(f"{row.kind} {row.metric}", []).append(float(row.after))
    return {kind: (round(sum(some) / len(some), 4), len(some)) for kind, some in found.items()}


def compared(lm: Any, name: str, args: argparse.Namespace) -> dict[str, Any]:
    method = errata.method(name)
    state = method.prepare(lm)
    cases = errata.cases("world", limit=max(args.batch, args.singles + 1), seed=args.seed, split=args.split)
    edits = [edit for case in cases for edit in case.edits]
    method.edit(lm, edits[:1], state)  # warm
    groups = {
        f"{n} at once": some for n, some in ((1, edits[1 : args.singles + 1]), (args.batch, [edits])) if n and some
    }
    figures: dict[str, Any] = {"method": name}
    for label, group in groups.items():
        times: dict[bool, list[float]] = {False: [], True: []}
        made: dict[bool, Any] = {}
        for some in group:
            for plain in (False, True):
                took, made[plain] = seconds(method, lm, some if isinstance(some, list) else [some], state, plain)
                times[plain].append(took)
        fast, slow = (sum(times[plain]) / len(times[plain]) for plain in (False, True))
        figures[label] = {"fast_s": round(fast, 3), "plain_s": round(slow, 3), "ratio": round(slow / fast, 2)}
        if args.scores and label != "1 at once":
            before = errata.baseline(lm, cases)
            figures["scores"] = {
                way: scores(lm, before, made[plain], cases) for way, plain in (("fast", False), ("plain", True))
            }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default="world")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--split", default="validation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--singles", type=int, default=3)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--scores", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lm = errata.load(args.model)
    machine = {"processor": platform.machine(), "threads": args.threads, "torch": torch.__version__}
    print(json.dumps({"machine": machine}), flush=True)
    for name in args.methods:
        print(json.dumps(compared(lm, name, args)), flush=True)


if __name__ == "__main__":
    main()
