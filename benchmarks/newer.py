"""Whether the newer of two edits of one fact wins where it was made in other words. As a table.

    python benchmarks/newer.py [--methods grace rag …] [--split validation] [--cases 20] [--at-once] [--threads N]

Each case is edited twice: its fact in its own prompt p, then, in a second call, with another target in another phrasing
p'. After that p and p' are asked (generated). ``newer at p`` and ``at p'`` are the shares of cases answered with the
newer target, ``both`` with it at both, ``older at p`` and ``at p'`` with the older one. ``alone`` is the newer edit
without the older, at both: what the method reaches where nothing contradicts it. ``--at-once`` makes the first edits of
all cases in one call and the second ones in another; without it each case has a patch of its own.
"""

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

import errata
from errata.answers import begins_with_answer
from errata.subjects import mentions
from errata.types import Case, Edit
from errata.world.cases import cases
from errata.world.facts import world

Pair = tuple[Edit, Edit]  # older, newer
HEADS = ("newer at p", "at p'", "both", "older at p", "at p'", "alone")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default="world")
    parser.add_argument("--methods", nargs="+", help="which; all that train nothing on cases")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--at-once", action="store_true")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    lm = errata.load(args.model)
    pairs = pairs_of(cases(world(), limit=args.cases, split=args.split))
    print(f"| method | {' | '.join(HEADS)} |")
    print("|" + " --- |" * (len(HEADS) + 1))
    for name in args.methods or list(untrained()):
        method = errata.method(name)
        state = method.prepare(lm)
        groups = [pairs] if args.at_once else [[pair] for pair in pairs]
        rows = [row for group in groups for row in told(lm, method, state, group)]
        counts = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        print(f"| {name} | " + " | ".join(f"{count:.2f}" for count in counts) + " |", flush=True)


def untrained() -> Iterator[str]:
    """The methods that learn nothing from cases before they edit."""
    for name in errata.methods():
        if errata.method(name).tags.prepares_with != "cases":
            yield name


def pairs_of(some: Sequence[Case]) -> list[Pair]:
    """Each case's edit, and the same fact with another target in the phrasing of a paraphrase of it."""
    facts, pairs = world().facts, list[Pair]()
    for case in some:
        edit, rng = case.edits[0], random.Random(case.id)
        phrasings = [p.prompt for p in case.probes if p.kind == "paraphrase" and mentions(p.prompt, edit.subject)]
        objects = sorted(set(facts[case.id.rpartition("-")[2]].values()) - {edit.target_new, edit.target_true})
        if phrasings and objects:
            newer = replace(edit, prompt=rng.choice(phrasings), target_new=rng.choice(objects), id="", at=None)
            pairs.append((edit, newer))
    return pairs


def told(lm: Any, method: Any, state: Any, pairs: Sequence[Pair]) -> Iterator[tuple[bool, ...]]:
    """For each pair what is counted, in the order of HEADS."""
    older, newer = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    first = method.edit(lm, older, state)
    after = asked(lm, method.edit(lm, newer, state, first), pairs)
    alone = asked(lm, method.edit(lm, newer, state), pairs)
    for (old, new), texts, without in zip(pairs, after, alone, strict=True):
        new_told, old_told, new_alone = (
            [begins_with_answer(text, [edit.target_new]) for text in some]
            for edit, some in ((new, texts), (old, texts), (new, without))
        )
        yield *new_told, all(new_told), *old_told, all(new_alone)


def asked(lm: Any, patch: Any, pairs: Sequence[Pair]) -> list[tuple[str, str]]:
    """What the edited model answers at both prompts of each pair."""
    with patch.applied(lm) as edited:
        texts = [edited.generate([pair[i].prompt for pair in pairs], 8, until_answer=True) for i in (0, 1)]
    return list(zip(*texts, strict=True))


if __name__ == "__main__":
    main()
