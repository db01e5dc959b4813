"""The command line that the peers have in common: checks, the model and its cases, the table, the file of rows."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from beside import Peer, Side, beside, table
from checkout import Source
from place import Place

import errata
from errata.errors import BadInput, ErrataError, unknown
from errata.files import check_writable, write_text
from errata.report.rows import to_jsonl

MakePeer = Callable[[Path, str, Place, Mapping[str, Any], bool], Peer]


def main(about: str, source: Source, names: Sequence[str], make: MakePeer, argv: Sequence[str] | None) -> int:
    """Runs a peer's methods beside ours. 0, or 1 where a method failed, 2 for what cannot be used."""
    args = arguments(about, source, names).parse_args(argv)
    torch.set_num_threads(1)
    try:
        return run(args, source, names, make)
    except ErrataError as error:
        print(f"{source.name}: {error}", file=sys.stderr)
        return error.exit_code


def arguments(about: str, source: Source, names: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=about.split("\n\n")[0])
    parser.add_argument("--checkout", type=Path, required=True, help=f"a folder that git clone made of {source.name}")
    parser.add_argument("--method", nargs="+", default=list(names), metavar="NAME", help=", ".join(names))
    parser.add_argument("--model", default="world", help="a folder or a hub id; the cases are of the invented world")
    parser.add_argument("--edits", type=int, default=20)
    parser.add_argument("--split", default="test", help="of the world's subjects: validation, to try settings")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of cases")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--own", action="store_true", help="its own settings for GPT-2 XL, not those tuned")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="one of its settings")
    parser.add_argument("-o", "--output", type=Path, help="rows for errata report")
    return parser


def run(args: argparse.Namespace, source: Source, names: Sequence[str], make: MakePeer) -> int:
    """Measures each method; 1 where one failed."""
    checkout, changed = args.checkout.resolve(), given(args.set)
    check(args, source, names)
    lm = errata.load(args.model, device="cpu")
    cases = errata.cases("world", limit=args.edits, seed=args.seed, split=args.split)
    before = errata.baseline(lm, cases)
    data = f"world limit={args.edits} seed={args.seed} split={args.split}"
    labels = {"model": args.model, "data": data, "seed": args.seed, "setting": f"batch of {args.edits}"}
    pairs: list[tuple[Side, Side]] = []
    with TemporaryDirectory() as folder:
        place = Place(Path(folder), lm)
        for name in args.method:
            peer = make(checkout, name, place, changed, args.own)
            pairs.append(beside(lm, before, peer, name, cases, args.repeats, **labels))
            print(table(pairs[-1:]), file=sys.stderr)
    print(f"{source.name} {source.commit(checkout)}\n\n{table(pairs)}")
    if args.output:
        write_text(args.output, to_jsonl(row for pair in pairs for side in pair for row in side.rows))
    return int(any(side.error for pair in pairs for side in pair))


def check(args: argparse.Namespace, source: Source, names: Sequence[str]) -> None:
    """Raises :class:`BadInput` for what is wrong before anything is loaded."""
    source.check(args.checkout.resolve())
    if wrong := [name for name in args.method if name not in names]:
        raise unknown(f"method of {source.name}", wrong[0], list(names))
    if min(args.edits, args.repeats) < 1:
        raise BadInput(f"--edits and --repeats take at least 1; found {args.edits} and {args.repeats}")
    if args.output:
        check_writable(args.output)


def given(words: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE, the value as JSON where it is that. Raises :class:`BadInput`."""
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals):
            raise BadInput(f"--set takes NAME=VALUE, found {word!r}")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found
