"""What a memory costs while the model generates: stored kilobytes an edit, and how much slower it is. As a table.

    python benchmarks/memories.py [--model world] [--methods grace rag …] [--facts 1 100 1000] [--threads N]
    python benchmarks/memories.py --many 100000 [--methods grace horen melo rag memprompt] [--threads N]

Tokens per second with the patch on against those of the bare model, in one run, in turns, on the same prompts: half of
them ask for edited facts, half for others. How well a memory was trained does not change its speed, so methods that
train take one step an edit here.

With ``--many`` a memory of so many facts against one of the 32 of them that are asked for, which answers the same:
milliseconds of the process a prompt, half of which are edits, and how long it takes to make it, to save and open it, to
add a patch to it and to take an edit out. The first facts are edits;
of the others the keys are drawn around the model's own (a template's mean, and a mixture of what two other prompts
differ from theirs), and what they answer is noise.
"""

import argparse
import gc
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import errata
from errata.methods.codebook.training import read_queries
from errata.methods.memory.adapter import EditMemory
from errata.methods.memory.log import EditRecord
from errata.patch.patch import EMPTY, Patch
from errata.types import Case, Edit

PROMPTS, TOKENS = 64, 8
AT_ONCE = 100  # edits of one call
PLACED = 1000  # edits of one call that are placed in a codebook that holds all others


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default="world")
    parser.add_argument("--methods", nargs="+", help="which; those whose patches leave the weights alone")
    parser.add_argument("--facts", nargs="+", type=int, default=[1, 100, 1000])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--many", type=int, help="one memory of so many facts, each of --methods")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    lm = errata.load(args.model)
    if args.many:
        for name in args.methods or ["grace", "horen", "melo", "rag", "memprompt"]:
            for line, figures in of_many(lm, name, args.many, args.repeats):
                print(f"| {name} | {line} | {figures} |", flush=True)
        return
    args.facts.sort()
    cases = errata.cases("world", limit=max(args.facts) + PROMPTS)
    print("| method | KB an edit | " + " | ".join(f"{n:,} facts" for n in args.facts) + " |")
    print("|" + " --- |" * (len(args.facts) + 2))
    of_weights = ("fine-tuning", "locate, then edit", "neuron attribution")
    for name in args.methods or [name for name, about in errata.methods().items() if about.family not in of_weights]:
        figures = [measured(lm, patch, cases, n, args.repeats) for n, patch in patches(lm, name, cases, args.facts)]
        slower = " | ".join(f"{ratio:.2f}" for _, ratio in figures)
        print(f"| {name} | {figures[-1][0]:.2f} | {slower} |", flush=True)


def quick(name: str) -> Any:
    made = errata.method(name)
    return errata.method(name, steps=1) if "steps" in made.settings else made


def patches(lm: Any, name: str, cases: Sequence[Case], facts: Sequence[int]) -> Iterator[tuple[int, Patch]]:
    """The patch of the first n cases, for each n: one fold."""
    method, patch, done = quick(name), EMPTY, 0
    state = method.prepare(lm)
    for n in facts:
        for at in range(done, n, AT_ONCE):
            patch = method.edit(
                lm, [edit for case in cases[at : min(n, at + AT_ONCE)] for edit in case.edits], state, patch
            )
        yield n, patch
        done = n


def measured(lm: Any, patch: Patch, cases: Sequence[Case], n: int, repeats: int) -> tuple[float, float]:
    """Kilobytes an edit with n edits, and how many times longer the same prompts take."""
    with_patch, without = [], []
    inside, outside = cases[:n][: PROMPTS // 2], cases[n:]
    prompts = [case.edits[0].prompt for case in (*inside, *outside[: PROMPTS - len(inside)])]

    def tokens_per_second(asked: Any) -> float:
        began = time.perf_counter()
        texts = asked.generate(prompts, TOKENS)
        tokens = sum(len(lm.tokens.target(p, text)) if text.strip() else 1 for p, text in zip(prompts, texts))
        return tokens / (time.perf_counter() - began)

    for turn in range(repeats + 1):  # the first one warms up
        bare = tokens_per_second(lm)
        with patch.applied(lm) as edited:
            patched = tokens_per_second(edited)
        if turn:
            without.append(bare)
            with_patch.append(patched)
    return patch.nbytes / 1000 / n, statistics.median(without) / statistics.median(with_patch)


# One memory of many facts ------------------------------------------------------------------------


def of_many(lm: Any, name: str, n: int, repeats: int) -> Iterator[tuple[str, str]]:
    """What was measured, and its figures, line by line."""
    cases = errata.cases("world", limit=PROMPTS)
    real = [case.edits[0] for case in cases]
    method = quick(name)
    state = method.prepare(lm)
    one, some = (method.edit(lm, real[:k], state) for k in (1, PROMPTS // 2))
    if isinstance(one.parts[0], EditMemory):
        patch, placed = filled(lm, some, n)
        yield f"{PLACED:,} edits placed among them, without training", placed
    else:
        edits = [*real[: PROMPTS // 2], *invented(real, n - PROMPTS // 2)]
        began = time.process_time()
        patch = method.edit(lm, edits, state)
        yield "made", f"{time.process_time() - began:.1f} s"
    yield "size", f"{patch.nbytes / 1e6:,.0f} MB"
    with TemporaryDirectory() as folder:
        path, began = Path(folder) / "many.safetensors", time.process_time()
        patch.save(path)
        yield "saved", f"{time.process_time() - began:.1f} s"
        del patch
        gc.collect()
        before, began = resident(), time.process_time()
        patch = Patch.load(path)
        yield "opened", f"{time.process_time() - began:.1f} s, {grown(before)}"
        prompts = [edit.prompt for edit in real]
        before, began = resident(), time.process_time()
        with patch.applied(lm) as edited:
            edited.generate(prompts[:1])
        yield "first prompt", f"{time.process_time() - began:.1f} s, {grown(before)}"
        for what, at_once in (("one prompt", 1), ("64 prompts", PROMPTS)):
            for verb in ("generate", "score"):
                yield f"{what}, {verb}", against(lm, some, patch, real, verb, at_once, repeats)
        began = time.process_time()
        one + patch
        yield "added to another", f"{time.process_time() - began:.1f} s"
        began = time.process_time()
        patch.without(real[3].id)
        yield "one edit taken out", f"{time.process_time() - began:.1f} s"


def invented(real: Sequence[Edit], n: int) -> list[Edit]:
    """Edits about subjects that are nowhere else, in the words of real ones."""
    subjects = [f"Nomar{i % 311:x} Velt{i // 311:x}ik" for i in range(n)]
    return [
        Edit(of.template, subject, real[-1 - i % len(real)].target_new, id=f"many-{i}")
        for i, subject in enumerate(subjects)
        for of in [real[i % len(real)]]
    ]


def filled(lm: Any, patch: Patch, n: int) -> tuple[Patch, str]:
    """The patch of a codebook, with entries of more edits up to n, and how long the last of them took."""
    part: Any = patch.parts[0]
    edits = invented(patch.edits, n - len(part.log))
    log = (*part.log, *(EditRecord.of(edit, lm.tokens) for edit in edits))
    queries, reach = around(lm, part, len(edits))
    lookup = keyed(part.lookup, queries[:-PLACED], reach[:-PLACED])
    _ = lookup.extended(log[: n - PLACED + 1], queries[-PLACED:][:1], reach[-PLACED:][:1])  # the index is made
    began = time.process_time()
    lookup, _ = lookup.extended(log, queries[-PLACED:], reach[-PLACED:])
    seconds = time.process_time() - began
    whole = replace(part, log=log, lookup=lookup, payload=longer(part.payload, n))
    made = {**patch.meta["made"][0], "edits": [e.to_json() for e in edits], "outcomes": {}}
    meta = {**patch.meta, "made": [*patch.meta["made"], made]}
    return replace(patch.swap(part, whole), meta=meta), f"{1000 * seconds / PLACED:.1f} ms each"


def keyed(lookup: Any, queries: torch.Tensor, reach: torch.Tensor) -> Any:
    """The look-up with more edits that have an entry each, as edits get that are far from all others."""
    new = torch.arange(len(lookup.owner), len(lookup.owner) + len(reach))
    more = {"queries": queries, "reach": reach, "radii": reach, "owner": new, "latest": new}
    tensors = {name: torch.cat([getattr(lookup, name), x]) for name, x in more.items()}
    return replace(lookup, **tensors)


def around(lm: Any, part: Any, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys (n, f) like those of prompts about other subjects, and radii (n,) of real edits."""
    g = torch.Generator().manual_seed(0)
    edits = [case.edits[0] for case in errata.cases("world", limit=400)]
    read, _ = read_queries(lm, part.site, part.lookup, [lm.tokens.prompt(edit.prompt) for edit in edits])
    number = {template: i for i, template in enumerate(dict.fromkeys(edit.template for edit in edits))}
    of = torch.tensor([number[edit.template] for edit in edits])
    means = torch.stack([read[of == i].mean(0) for i in range(len(number))])
    own = read - means[of]
    scale = (len(edits) / max(1, len(edits) - len(number))) ** 0.5  # what a mean takes of each
    turn, a, b = torch.rand(n, 1, generator=g) * 1.57, *torch.randint(len(own), (2, n), generator=g)
    keys = means[torch.randint(len(means), (n,), generator=g)]
    for some in torch.arange(n).split(4096):
        keys[some] += scale * (turn[some].cos() * own[a[some]] + turn[some].sin() * own[b[some]])
        keys[some] += 0.2 * own.std() * torch.randn(len(some), keys.shape[1], generator=g)
    if part.kind == "horen":
        keys = torch.nn.functional.normalize(keys, dim=-1)
    return keys, part.lookup.reach[torch.randint(len(part.lookup.reach), (n,), generator=g)]


def longer(payload: Any, n: int) -> Any:
    """The payload with rows for n edits: those that there are, again and again."""

    def more(x: torch.Tensor, m: int) -> torch.Tensor:
        return x[torch.arange(m) % len(x)]

    if hasattr(payload, "factors"):
        of = torch.arange(n) // 4
        factors = {path: tuple(more(x, int(of[-1]) + 1) for x in pair) for path, pair in payload.factors.items()}
        return replace(payload, of=of, factors=factors)
    return replace(payload, values=more(payload.values, n))


def against(lm: Any, few: Patch, many: Patch, edits: Sequence[Edit], verb: str, at_once: int, repeats: int) -> str:
    """Milliseconds of the process a prompt with few facts and with many, and their ratio: means of medians of turns."""
    chosen = [edits[i] for i in range(0, PROMPTS, 1 if at_once > 1 else 4)]
    seconds: dict[tuple[int, int], list[float]] = defaultdict(list)
    for turn in range(repeats + 1):
        for i, patch in enumerate((few, many)):
            with patch.applied(lm) as asked:
                for at in range(0, len(chosen), at_once):
                    some = chosen[at : at + at_once]
                    prompts, targets = [e.prompt for e in some], [e.target_new for e in some]
                    began = time.process_time()
                    _ = asked.generate(prompts) if verb == "generate" else asked.score(prompts, targets)
                    if turn:
                        seconds[i, at].append((time.process_time() - began) / len(some))
    a, b = (1000 * statistics.mean(statistics.median(x) for (j, _), x in seconds.items() if j == i) for i in (0, 1))
    return f"{a:.2f} and {b:.2f} ms, {b / a:.2f}"


def resident() -> dict[str, float]:
    """Megabytes in memory: the process's own, and those of files, which the system may take back."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {
        line.split(":")[0]: int(line.split()[1]) / 1000 for line in lines if line.startswith(("RssAnon", "RssFile"))
    }


def grown(before: dict[str, float]) -> str:
    now = resident()
    own, of_files = (now[name] - before[name] for name in ("RssAnon", "RssFile"))
    return f"{own:+,.0f} MB of its own, {of_files:+,.0f} MB of files"


if __name__ == "__main__":
    main()
