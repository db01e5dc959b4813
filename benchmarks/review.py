"""Where the limits of a review's guards come from: its numbers on good patches and on bad ones, as JSON lines.

    python benchmarks/review.py [--model world] [--cases 4]

Edits are of the world's validation subjects, which no table uses. Good patches are those that a careful user would
make; bad ones are MEMIT's made eight times as strong, and fine-tuning that goes on long after it has arrived.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Any

import errata
from errata.review.reviewing import before_review, reviewed

LONG: dict[str, Any] = {"lr": 5e-3, "steps": 100, "stop": 0.0}


def patches(lm: Any, edits: Sequence[errata.Edit], states: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(good or bad or between, name, patch) of the same edits."""
    n = len(edits)
    for name in ("memit", "r-rome", "ft-l") if n == 1 else ("memit", "alphaedit"):
        method = errata.method(name)
        if name not in states:
            states[name] = method.prepare(lm)
        patch = method.edit(lm, edits, states[name])
        yield "between" if name == "ft-l" else "good", f"{name}, {n}", patch
        if name == "memit":
            yield "between", f"{name}, {n}, x 3", patch * 3
            yield "bad", f"{name}, {n}, x 8", patch * 8
    yield "between", f"ft, {n}", errata.method("ft").edit(lm, edits)
    yield "bad", f"ft, {n}, long", errata.method("ft", **LONG).edit(lm, edits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="world")
    parser.add_argument("--cases", type=int, default=4)
    given = parser.parse_args()
    lm = errata.load(given.model)
    cases = errata.cases(given.model, limit=given.cases + 10, split="validation")
    edits, states = [case.edits[0] for case in cases], dict[str, Any]()
    for batch in [*([edit] for edit in edits[: given.cases]), edits[given.cases :]]:
        before = None
        for sort, name, patch in patches(lm, batch, states):
            before = before or before_review(lm, patch)
            made = reviewed(before, patch)
            numbers = {guard.name: None if guard.value is None else round(guard.value, 5) for guard in made.guards}
            refused = [guard.name for guard in made.refused]
            print(json.dumps({"sort": sort, "patch": name, **numbers, "refused": refused}), flush=True)


if __name__ == "__main__":
    main()
