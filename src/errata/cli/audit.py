"""``errata audit``: what differs between two models, and whose answers changed with it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import common

if TYPE_CHECKING:
    from errata.audit import Audit

ROWS = 30  # of a table of weights


def audit_command(
    base: Annotated[str, typer.Argument(help="The base model: 'world', a folder, or a hub id.", show_default=False)],
    edited: Annotated[str, typer.Argument(help="The edited model.", show_default=False)],
    subjects: Annotated[
        Path | None,
        typer.Option(
            help="Subjects, one on each line: a name, or JSON with a prompt.", show_default="names in the texts"
        ),
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="Texts, one on each line.", show_default="those that go with the model")
    ] = None,
    patch: Annotated[
        Path | None, typer.Option(help="The patch that the edited model is said to hold.", show_default=False)
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Suspects to show.")] = 15,
    ask: Annotated[int, typer.Option(min=0, help="Suspects to ask about, before and after.")] = 50,
    device: common.Device = None,
    dtype: common.Dtype = None,
    trust_remote_code: common.TrustRemoteCode = False,
    quiet: common.Quiet = False,
    as_json: common.Json = False,
) -> None:
    """Tell what was done to a model: the weights that differ, how, and the subjects behind them."""
    from errata.audit import audit, read_subjects
    from errata.cli.exchange import load

    known = None if subjects is None else read_subjects(subjects)
    read = None if texts is None else [line for line in common.read_text(texts, "texts").splitlines() if line.strip()]
    claimed = None if patch is None else load(patch)
    lm = common.load_model(base, device, dtype, quiet, trust_remote_code)
    with common.step(f"comparing {edited} with {base}", quiet):
        about: Any = {"patch": claimed, "ask": ask, "trust_remote_code": trust_remote_code}
        found = audit(lm, edited, known, texts=read, **about)
    if as_json:
        common.print_json(found.to_json())
        return
    _print(found, top)


def _print(found: "Audit", top: int) -> None:
    console = common.stdout()
    if not found.changes:
        console.print(f"{found.edited} differs from {found.base} in no weight", soft_wrap=True)
    else:
        _print_changes(found)
    if found.claim is not None:
        _print_claim(found)
    if found.suspects:
        _print_suspects(found, top)
    elif found.changes:
        common.say("nobody is known who could be asked about: give --subjects FILE, or --texts FILE with names in it")


def _print_changes(found: "Audit") -> None:
    ordered = sorted(found.changes, key=lambda one: -one.change.relative)
    rows = [
        (
            "-" if one.layer is None else one.layer,
            one.kind,
            one.change.name,
            " x ".join(map(str, one.change.shape)),
            _rank(one.change),
            f"{one.change.relative:.3g}",
            ", ".join(f"{s:.3g}" for s in one.change.largest),
        )
        for one in sorted(ordered[:ROWS], key=lambda one: (one.layer is None, one.layer or 0))
    ]
    more = f" (the {ROWS} that differ most of {len(ordered)})" if len(ordered) > ROWS else ""
    columns = ("layer", "kind", "weight", "shape", "rank", "relative", "largest singular values")
    table = common.make_table(f"weights that differ{more}", columns, rows, right=("layer", "rank", "relative"))
    common.stdout().print(table)


def _rank(change: Any) -> str:
    if len(change.shape) != 2:
        return "-"
    return "large" if change.rank is None else str(change.rank)


def _print_claim(found: "Audit") -> None:
    claim: Any = found.claim
    console = common.stdout()
    if claim.holds:
        worst = max(claim.unexplained.values(), default=0.0)
        console.print(f"the patch is all that differs (but {100 * worst:.2g} % of it at most)", soft_wrap=True)
        return
    other = [f"{name}: {100 * share:.3g} % of its change" for name, share in claim.other.items()]
    for line in [*other, *(f"{name}: as in the base, and the patch changes it" for name in claim.missing)][:ROWS]:
        console.print(f"not as the patch says: {line}", soft_wrap=True)


def _print_suspects(found: "Audit", top: int) -> None:
    claimed = set() if found.claim is None else {*found.claim.subjects}
    rows = [
        (
            one.subject,
            f"{one.times:.1f}",
            "-" if one.shift is None else f"{one.shift:.2f}",
            common.one_line(one.prompt),
            common.one_line(one.before, 30),
            common.one_line(one.after, 30) if one.differs else "the same",
            *(["yes" if one.subject in claimed else ""] if claimed else []),
        )
        for one in found.suspects[:top]
    ]
    columns = ["subject", "key", "log p", "where", "before", "after", *(["in the patch"] if claimed else [])]
    origin = "given" if found.source == "given" else "named in the texts"
    title = f"suspects: the first {len(rows)} of {found.candidates} subjects {origin}"
    common.stdout().print(common.make_table(title, columns, rows, right=("key", "log p")))
    if not found.suspects[0].excitation:
        common.say("no linear layer differs that could answer a subject's key: the order is that of log p alone")
