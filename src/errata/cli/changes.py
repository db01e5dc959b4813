"""``errata diff``, ``revert`` and ``merge``: what differs between revisions, and new ones made of others."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import common
from errata.cli.journal import FOLDER, WITH, Author, Branch, Where, Why, load_with, open_journal, read_json, short, told
from errata.errors import BadInput
from errata.files import write_text

if TYPE_CHECKING:
    from errata.journal.clashes import Clash
    from errata.journal.differences import Diff
    from errata.journal.merging import Merged

ROWS = 20


def diff_command(
    a: Annotated[str, typer.Argument(help="From this revision …")] = "HEAD~1",
    b: Annotated[str, typer.Argument(help="… to this one.")] = "HEAD",
    model: WITH = None,
    cases: Annotated[
        str | None,
        typer.Option(help="Ask the probes of these cases, too: 'world', a file, or a hub id.", show_default=False),
    ] = None,
    journal: Where = FOLDER,
    device: common.Device = None,
    dtype: common.Dtype = None,
    trust_remote_code: common.TrustRemoteCode = False,
    chat: common.Chat = None,
    system: common.System = None,
    quiet: common.Quiet = False,
    as_json: common.Json = False,
) -> None:
    """Say what changed between two revisions: edits, weights by site, and with --model the answers that differ."""
    opened = open_journal(journal)
    if cases is not None and model is None:
        raise BadInput("--cases are asked of a model; name it with --model")
    read = _read_cases(cases)
    lm = load_with(model, device, dtype, quiet, trust_remote_code, chat, system)
    diff = opened.diff(a, b, lm=lm, cases=read)
    if as_json:
        common.print_json(diff.to_json())
    else:
        _print_diff(diff)


def revert_command(
    edit: Annotated[str, typer.Argument(help="The id of an edit, or its beginning.", show_default=False)],
    why: Why = None,
    author: Author = None,
    branch: Branch = None,
    model: WITH = None,
    journal: Where = FOLDER,
    device: common.Device = None,
    dtype: common.Dtype = None,
    trust_remote_code: common.TrustRemoteCode = False,
    chat: common.Chat = None,
    system: common.System = None,
    quiet: common.Quiet = False,
    as_json: common.Json = False,
) -> None:
    """Take one edit out of the patch: a new commit, which says how that was had."""
    common.show_logs(quiet)
    opened = open_journal(journal)
    lm = load_with(model, device, dtype, quiet, trust_remote_code, chat, system)
    commit = opened.revert(edit, why=why, author=author, branch=branch, lm=lm)
    told(opened, commit, as_json)


def merge_command(
    other: Annotated[
        str, typer.Argument(help="A branch or another revision, or the folder of another journal.", show_default=False)
    ],
    revision: Annotated[str, typer.Option(help="Of another journal: which of its revisions.")] = "HEAD",
    ours: Annotated[bool, typer.Option("--ours", help="Of two edits that clash, ours stays.")] = False,
    theirs: Annotated[bool, typer.Option("--theirs", help="Of two edits that clash, theirs stays.")] = False,
    newest: Annotated[bool, typer.Option("--newest", help="Of two edits that clash, the later one stays.")] = False,
    resolutions: Annotated[
        Path | None,
        typer.Option(help="What stays, clash by clash: a file that --conflicts wrote.", show_default=False),
    ] = None,
    conflicts: Annotated[
        Path | None,
        typer.Option(help="Where edits clash, write them here, to be decided.", show_default=False),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Make their edits again on ours, also where weights could be added.")
    ] = False,
    why: Why = None,
    author: Author = None,
    branch: Branch = None,
    model: WITH = None,
    journal: Where = FOLDER,
    force: common.Force = False,
    device: common.Device = None,
    dtype: common.Dtype = None,
    trust_remote_code: common.TrustRemoteCode = False,
    chat: common.Chat = None,
    system: common.System = None,
    quiet: common.Quiet = False,
    as_json: common.Json = False,
) -> None:
    """Bring the edits of another branch, or of somebody else's journal, into this one."""
    from errata.journal.clashes import Clashing

    common.show_logs(quiet)
    rules = [name for name, given in {"ours": ours, "theirs": theirs, "newest": newest}.items() if given]
    if len(rules) > 1:
        raise BadInput(f"--{' and --'.join(rules)} were given; one rule decides, so leave out the others")
    if again and model is None:
        raise BadInput("--again makes edits, which takes the model: name it with --model")
    if conflicts is not None:
        common.check_output(conflicts, force)
    read: Any = [] if resolutions is None else read_json(resolutions, "resolutions", list)
    opened = open_journal(journal)
    lm = load_with(model, device, dtype, quiet, trust_remote_code, chat, system)
    rule: Any = rules[0] if rules else None
    how: Any = {"why": why, "author": author, "branch": branch, "lm": lm, "again": again}
    try:
        merged = opened.merge(other, revision=revision, rule=rule, resolutions=read, **how)
    except Clashing as error:
        if as_json:
            common.print_json([clash.to_json() for clash in error.clashes])
        else:
            common.stdout().print(_clash_table("edits that clash", error.clashes))
        if conflicts is not None:
            write_text(conflicts, json.dumps([clash.to_json() for clash in error.clashes], indent=1) + "\n")
            common.say(f"wrote {conflicts}: put ours, theirs, both or neither in the place of each null")
        raise
    if merged.clashes and not as_json:
        common.stdout().print(_clash_table("edits that clashed", merged.clashes))
    if as_json:
        common.print_json(merged.to_json())
    else:
        told(opened, merged.commit, more=_way(merged))


# Output ---------------------------------------------------------------------------------------------


def _read_cases(name: str | None) -> list[Any]:
    if name is None:
        return []
    import errata

    return errata.cases(name)


def _way(merged: "Merged") -> dict[str, str]:
    asked = "" if merged.answered is None else f"{merged.answered} of {len(merged.commit.edits)} edits (generated)"
    return {"way": merged.way, "answered": asked, "lost": ", ".join(map(short, merged.lost))}


def _clash_table(title: str, clashes: "list[Clash] | tuple[Clash, ...]") -> Any:
    rows = [(clash.kind, short(clash.ours), short(clash.theirs), clash.keep or "?") for clash in clashes[:ROWS]]
    more = f" (the first {ROWS} of {len(clashes)})" if len(clashes) > ROWS else ""
    return common.make_table(title + more, ("kind", "ours", "theirs", "stays"), rows)


def _print_diff(diff: "Diff") -> None:
    console = common.stdout()
    console.print(f"from {diff.a[:10]} to {diff.b[:10]}")
    lines = [("+", short(edit)) for edit in diff.added] + [("-", short(edit)) for edit in diff.gone]
    lines += [("~", f"{short(new)}, was {common.one_line(old.target_new, 20)}") for old, new in diff.changed]
    for mark, line in lines[:ROWS]:
        console.print(f"{mark} {common.one_line(line, common.TEXT_WIDTH)}", soft_wrap=True)
    if len(lines) > ROWS:
        console.print(f"… and {len(lines) - ROWS} more edits (--json lists all)")
    if not lines:
        console.print("the same edits")
    if diff.weights:
        rows = [(w["site"], w["rank"], *(f"{w[n]:.4g}" for n in ("norm", "norm_a", "norm_b"))) for w in diff.weights]
        columns = ("site", "rank", "norm", "norm before", "norm after")
        console.print(common.make_table("weights: the difference", columns, rows, right=columns[1:]))
    for part in diff.parts:
        side = "before" if part["side"] == "a" else "after"
        console.print(f"{part['kind']} at {part['site'] or 'the model'}: {part['entries']} entries {side}")
    if diff.answers is not None:
        rows = [
            (line["prompt"], common.one_line(line["a"], 40), common.one_line(line["b"], 40)) for line in diff.answers
        ]
        title = f"answers that differ ({len(rows)}, generated)"
        console.print(common.make_table(title, ("prompt", "before", "after"), rows[:ROWS]))
