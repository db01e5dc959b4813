"""What a training step of MALMEN holds in memory, by the number of edits that it makes at once. As JSON.

    python benchmarks/trained.py [--model world] [--threads N] [--edits 25 50 100 200] [--budget 512]

Passes hold at most ``--budget`` tokens. Each number of edits in a process of its own: the peak above what was in use
before the step, the size of the keys and gradients of its tokens, and the peak's ratio to that of the fewest edits;
beside it the same step as one graph, through the model and the network at once, as the meta-gradient is written down.
"""

import argparse
import json
import platform
import subprocess
import sys
from typing import Any

import torch

import errata
from errata.methods.state import State
from errata.methods.trained import objective
from errata.methods.trained.examples import Stream, compatible, examples_of, training_cases
from errata.methods.trained.gradient.changes import dense
from errata.model import hooks
from errata.model.peak import PeakMemory


def plain(made: Any, lm: Any, network: Any, examples: Any) -> None:
    """One graph through everything."""
    gradients = made.gradients(lm, examples)
    made.observe(network, gradients)
    weights = objective.changed(lm, dense(made.changes(network, gradients)))
    follow = [a.ids(lm) for e in examples for a in (e.asked, *e.follow)]
    keep = [a.ids(lm) for e in examples for a in e.keep]
    loss: Any = 0
    for pairs, weight in ((follow, made.c_edit), (keep, made.c_keep)):
        for some in objective.batches(lm, pairs):
            logits = lm.target_logits(some, weights)
            if weight == made.c_edit and pairs is follow:
                part = objective.nll(logits, some)
            else:
                with torch.no_grad():
                    before = lm.target_logits(some).log_softmax(-1)
                part = objective.kl(before, logits, some)
            loss = loss + weight * part.sum() / len(pairs)
    loss.backward()


def measure(model: str, edits: int, way: str, budget: int) -> dict[str, Any]:
    """Of one training step: the peak and the size of its keys and gradients, in MiB."""
    lm = errata.load(model)
    lm.budget = budget
    made: Any = errata.method("malmen", batch=edits).resolve(lm, State())
    stream = Stream(examples_of(lm, "malmen", training_cases(lm, "malmen", None)), 0)
    rng, network = stream.rng(0), made.network(lm)
    batch = [e.sampled(rng, made.follow, made.keep) for e in compatible(stream.batch(0, edits))]
    with hooks.frozen(lm.model):
        held = sum(t.numel() for g in made.gradients(lm, batch).values() for t in (g.u, g.delta)) * 4 / 2**20
        made.backward(lm, network, batch[:2], rng)  # what a first step allocates for good
        memory = PeakMemory(lm)
        if way == "plain":
            plain(made, lm, network, batch)
        else:
            made.backward(lm, network, batch, rng)
    return {"edits": len(batch), "way": way, "keys_and_gradients_mib": round(held, 1), "peak_mib": memory.mib()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="world")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--edits", type=int, nargs="+", default=[25, 50, 100, 200])
    parser.add_argument("--budget", type=int, default=512)
    parser.add_argument("--way", choices=["stages", "plain"], help="one measurement, in this process")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.way:
        print(json.dumps(measure(given.model, given.edits[0], given.way, given.budget)))
        return
    rows: list[dict[str, Any]] = []
    for way in ("stages", "plain"):
        for edits in given.edits:
            words = [sys.executable, __file__, "--model", given.model, "--threads", str(given.threads)]
            words += ["--edits", str(edits), "--way", way, "--budget", str(given.budget)]
            done = subprocess.run(words, check=True, capture_output=True, text=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    for row in rows:
        first = next(other for other in rows if other["way"] == row["way"])
        row["ratio"] = round(row["peak_mib"] / first["peak_mib"], 2)
    machine = {"machine": platform.processor() or platform.machine(), "threads": given.threads}
    print(json.dumps({**machine, "torch": torch.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
