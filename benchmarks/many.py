"""Many edits in one call: operations counted against those planned, and what each edit more holds. As JSON.

    python benchmarks/many.py [--method memit] [--edits 1000 10000] [--steps 3] [--layers 1 2] [--threads N]

A small random Llama (d = 64, f = 256, four blocks), so that a call of 10,000 edits has forty times as many as its keys
have directions. Operations are torch's count of products, and LAPACK's textbook figures of factors, which torch does
not count. Memory is the process's peak above what it held before the call.
"""

import argparse
import json
import sys
from collections.abc import Callable
from itertools import islice
from random import Random
from string import ascii_letters
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import errata
from errata.model.peak import PeakMemory
from errata.model.size import Size, Work

FACTORS: dict[Any, Callable[..., float]] = {
    torch.ops.aten.linalg_cholesky_ex: lambda a, *_, **__: a[-1] ** 3 // 3,
    torch.ops.aten.cholesky_inverse: lambda a, *_, **__: 2 * a[-1] ** 3 // 3,
    torch.ops.aten._linalg_eigh: lambda a, *_, **__: 9 * a[-1] ** 3,
    torch.ops.aten._linalg_solve_ex: lambda a, b, *_, **__: 2 * a[-1] ** 3 // 3 + 2 * a[-1] * b[0] * b[1],
    torch.ops.aten.linalg_solve_triangular: lambda a, b, *_, **__: a[-1] * b[0] * b[1],
}
COUNTED = ("inverse", "targets", "keys", "solve", "sums", "ask")


def small(tokenizer: Any) -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig

    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.2, **sizes)
    torch.manual_seed(0)
    return errata.load(AutoModelForCausalLM.from_config(config), tokenizer=tokenizer)


def facts(n: int) -> list[errata.Edit]:
    draw = Random(0)
    names = ["".join(draw.choices(ascii_letters, k=6)) for _ in range(n)]
    return [errata.Edit(f"{name} was born in", name, " Oslo") for name in names]


def measured(lm: Any, method: Any, state: Any, n: int) -> dict[str, Any]:
    some = facts(n)
    planned = method.cost(Size.of(lm, True), Work.of(lm, some))
    told = sum(sum((step.flop or {}).values()) for step in planned if step.name in COUNTED)
    memory = PeakMemory(lm)
    patch = method.edit(lm, some, state)
    peak = memory.mib()
    with FlopCounterMode(display=False, custom_mapping=FACTORS) as counter:  # apart: it holds much for each operation
        method.edit(lm, some, state)
    found = counter.get_total_flops()
    size = sum(t.nbytes for part in patch.parts for t in part.tensors().values())
    size += sum(t.nbytes for t in patch.memory.values())
    return {
        "edits": n,
        "counted": float(f"{found:.4g}"),
        "planned": float(f"{told:.4g}"),
        "planned / counted": round(told / found, 2),
        "peak_mib": peak,
        "patch_mib": round(size / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", default="memit")
    parser.add_argument("--edits", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--layers", type=int, nargs="+", help="the method's own where none are given")
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    world: Any = errata.load("world")
    lm: Any = small(world.tokenizer)
    layers = tuple(args.layers) if args.layers else None
    method: Any = errata.method(args.method, contexts=0, steps=args.steps, stop=0.0, layers=layers)
    state = method.prepare(lm, list(islice(world.resources.texts(), 500)))
    method.edit(lm, facts(8), state)  # the first time fast passes are compared with plain ones
    rows: list[dict[str, Any]] = []
    for n in args.edits:
        rows.append(measured(lm, method, state, n))
        print(rows[-1], file=sys.stderr)
    held: list[Any] = [row["peak_mib"] for row in rows]
    figures: dict[str, Any] = {"method": args.method, "rows": rows}
    if len(rows) > 1 and None not in held:
        more = (held[-1] - held[0]) * 2**20 / (args.edits[-1] - args.edits[0])
        figures["bytes_for_each_edit_more"] = round(more)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
