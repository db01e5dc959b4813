"""``errata init``, ``commit``, ``log``, ``checkout``, ``tag`` and ``branch``: patches on record."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import common
from errata.errors import BadInput, Refused
from errata.inputs import parsed

if TYPE_CHECKING:
    from errata.journal.commit import Commit
    from errata.journal.journal import Journal
    from errata.model.hf import HFLM
    from errata.types import Edit

Where = Annotated[
    Path, typer.Option("--journal", envvar="ERRATA_JOURNAL", help="The folder of the journal.", show_envvar=True)
]
FOLDER = Path("journal")
Why = Annotated[str | None, typer.Option("-m", "--why", help="Why, in words.", show_default=False)]
Author = Annotated[str | None, typer.Option(help="Who.", show_default="$ERRATA_AUTHOR, or the user")]
Branch = Annotated[str | None, typer.Option(help="The branch to put it on.", show_default="that of HEAD")]
Revision = Annotated[str, typer.Argument(help="HEAD, HEAD~2, a branch, a tag, or the beginning of an id.")]
WITH = Annotated[
    str | None,
    typer.Option("--model", help="The journal's model: 'world', a folder, or a hub id.", show_default="none is loaded"),
]
SHORT = 10
ADDED = 5  # edits of a commit that are listed


def init_command(
    folder: Annotated[Path, typer.Argument(help="Where the journal shall lie.")] = FOLDER,
    database: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="A Postgres database: postgresql://USER@HOST/NAME.", show_default="a file in the folder"
        ),
    ] = None,
    quiet: common.Quiet = False,
) -> None:
    """Make a journal of a model's patches, or lead one of an earlier Errata on."""
    common.show_logs(quiet)
    journal = _journal().create(folder, database)
    count = len(journal.log())
    first = "" if count else '; `errata commit PATCH -m "why"` puts the first patch on record'
    common.say(f"{folder} is a journal of {count} commit{'' if count == 1 else 's'}{first}")


def commit_command(
    patch: Annotated[Path, typer.Argument(help="A patch.", show_default=False)],
    why: Annotated[str, typer.Option("-m", "--why", help="Why, in words.", show_default=False)],
    author: Author = None,
    score: Annotated[
        list[str] | None,
        typer.Option(
            "--score",
            metavar="NAME=VALUE",
            help="A score it was accepted with; as often as needed.",
            show_default=False,
        ),
    ] = None,
    review: Annotated[
        Path | None, typer.Option(help="The review it was accepted with, as JSON.", show_default=False)
    ] = None,
    branch: Branch = None,
    onto: Annotated[
        str | None,
        typer.Option(metavar="REVISION", help="Refuse unless the branch is there still.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Record a review of another patch all the same.")] = False,
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
    """Record a patch: who, when, why, by which method, and with what it was accepted.

    Its new edits are compared with those on record and with each other; with --model also for one fact in other words.
    """
    common.show_logs(quiet)
    read = None if review is None else read_json(review, "review", dict)
    opened = open_journal(journal)
    says: Any = {"why": why, "author": author, "scores": _scores(score), "review": read}
    lm = load_with(model, device, dtype, quiet, trust_remote_code, chat, system)
    made = opened.commit(patch, **says, branch=branch, onto=onto, force=force, lm=lm)
    if as_json:
        found = [conflict.to_json() for conflict in opened.conflicts(made, lm)]
        common.print_json(made.to_json() | ({"conflicts": found} if found else {}))
    else:
        told(opened, made)


def log_command(
    revision: Revision = "HEAD",
    number: Annotated[
        int | None, typer.Option("-n", "--number", min=1, help="How many commits.", show_default="all")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Read every patch, and say what is damaged (exit 3).")] = False,
    journal: Where = FOLDER,
    as_json: common.Json = False,
) -> None:
    """List the commits that lead to a revision, the newest first."""
    opened = open_journal(journal)
    commits = opened.log(revision, number)
    if as_json:
        common.print_json([one.to_json() | {"names": _names(opened, one)} for one in commits])
    else:
        columns = ("commit", "when", "who", "edits", "method", "why", "scores", "names")
        rows = [_row(opened, one) for one in commits]
        common.stdout().print(common.make_table(f"{journal}, on {opened.head}", columns, rows))
    if check and (wrong := opened.check()):
        raise Refused(f"{len(wrong)} commits are damaged: {'; '.join(wrong[:SHORT])}")


def checkout_command(
    revision: Revision = "HEAD",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where to write.", show_default="COMMIT.safetensors, here")
    ] = None,
    force: common.Force = False,
    journal: Where = FOLDER,
) -> None:
    """Write the patch of a revision to a file."""
    opened = open_journal(journal)
    commit = opened.find(revision)
    path = output or Path(f"{commit.short}.safetensors")
    common.check_output(path, force)
    opened.write(commit.id, path)
    common.say(f"wrote {path} ({common.size(commit.size)}), the patch of {commit.short}: {commit.why}")


def tag_command(
    name: Annotated[
        str | None, typer.Argument(help="The tag; without one they are listed.", show_default=False)
    ] = None,
    revision: Revision = "HEAD",
    force: Annotated[bool, typer.Option("--force", help="Move a tag that there is.")] = False,
    journal: Where = FOLDER,
    as_json: common.Json = False,
) -> None:
    """Give a revision a name that stays."""
    opened = open_journal(journal)
    if name is not None:
        commit = opened.tag(name, revision, force=force)
        common.say(f"{name} is {commit.short}: {commit.why}")
        return
    _list(opened.tags(), as_json)


def branch_command(
    name: Annotated[
        str | None, typer.Argument(help="The branch; without one they are listed.", show_default=False)
    ] = None,
    revision: Annotated[
        str | None, typer.Argument(help="Where it begins.", show_default="HEAD, or where it is")
    ] = None,
    switch: Annotated[bool, typer.Option("--switch", help="Put HEAD on it.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Move a branch that there is.")] = False,
    journal: Where = FOLDER,
    as_json: common.Json = False,
) -> None:
    """Make a branch, which moves with what is committed to it; or put HEAD on one."""
    opened = open_journal(journal)
    if name is None:
        _list(opened.branches(), as_json, opened.head)
        return
    if name not in opened.branches() or revision is not None or not switch:
        opened.branch(name, revision or "HEAD", force=force)
    if switch:
        opened.switch(name)
    at = opened.branches()[name]
    common.say(f"the branch {name} is at {at[:SHORT] if at else 'no commit'}{', and HEAD is on it' * switch}")


# What the commands of a journal share ----------------------------------------------------------------


def _journal() -> "type[Journal]":
    from errata.journal.journal import Journal

    return Journal


def open_journal(folder: Path) -> "Journal":
    """The journal in a folder. Raises :class:`BadInput`."""
    return _journal().open(folder)


def load_with(
    model: str | None,
    device: str | None,
    dtype: str | None,
    quiet: bool,
    trust_remote_code: bool,
    chat: bool | None,
    system: str | None,
) -> "HFLM | None":
    """The model, if one is named."""
    return None if model is None else common.load_model(model, device, dtype, quiet, trust_remote_code, chat, system)


def read_json(path: Path, option: str, kind: type[Any]) -> Any:
    """The JSON in a file that was given by an option; an object or a list. Raises :class:`BadInput`."""
    try:
        value = parsed(common.read_text(path, option))
    except BadInput as error:
        raise BadInput(f"{path}: {error}" if str(path) not in str(error) else str(error)) from error
    if not isinstance(value, kind):
        what = "an object" if kind is dict else "a list"
        raise BadInput(f"{path} holds a {type(value).__name__}; --{option} wants {what} as JSON")
    return value


def told(journal: "Journal", commit: "Commit", as_json: bool = False, more: Mapping[str, Any] | None = None) -> None:
    """Prints a commit that was made; ``more`` are further lines, by name."""
    if as_json:
        common.print_json(commit.to_json())
        return
    lines = [f"{name}: {value}" for name, value in {**_about(journal, commit), **(more or {})}.items() if value]
    lines[2:2] = [f"+ {short(edit)}" for edit in commit.added[:ADDED]]
    for line in lines:
        common.stdout().print(common.one_line(line, common.TEXT_WIDTH), soft_wrap=True)


def _about(journal: "Journal", commit: "Commit") -> dict[str, str]:
    return {
        "commit": f"{commit.short} {commit.why}",
        "edits": _edits(journal, commit),
        "method": _methods(commit),
        "way": _way(commit),
        "scores": _said(commit.scores),
        "review": _verdict(commit),
    }


def _row(journal: "Journal", commit: "Commit") -> tuple[str, ...]:
    who = common.one_line(commit.author, 20)
    when = commit.time[:16].replace("T", " ")
    edits, names = _edits(journal, commit), ", ".join(_names(journal, commit))
    why = common.one_line(commit.why, 40)
    accepted = "; ".join(
        word for word in (_said(commit.scores), f"review {_verdict(commit)}" * bool(commit.review)) if word
    )
    methods = "; ".join(word for word in (_methods(commit), common.one_line(_way(commit), 20)) if word)
    return commit.short, when, who, edits, methods, why, accepted, names


def _edits(journal: "Journal", commit: "Commit") -> str:
    """How many, and how many have come and gone since the first parent."""
    before = set(journal.get(commit.parents[0]).edits) if commit.parents else set[str]()
    gone = len(before - set(commit.edits))
    return f"{len(commit.edits)} (+{len(commit.added)}{f' -{gone}' * bool(gone)})"


def _methods(commit: "Commit") -> str:
    return " + ".join(dict.fromkeys(call.method for call in commit.made))


def _way(commit: "Commit") -> str:
    """How a revert or a merge was had."""
    return str(commit.how.get("way", "")) if commit.how else ""


def _said(scores: Mapping[str, float]) -> str:
    return " ".join(f"{name}={value:g}" for name, value in scores.items())


def _verdict(commit: "Commit") -> str:
    """Whether the review passed; that there is one where it does not say."""
    review = commit.review or {}
    if not isinstance(passed := review.get("passed"), bool):
        return "on record" if review else ""
    another = ", of another patch" * bool(commit.how and "review of another patch" in commit.how)
    return ("passed" if passed else "refused") + another


def short(edit: "Edit") -> str:
    """An edit on a line, with the beginning of its id, by which it is reverted."""
    return f"{common.one_line(edit.prompt, 40)} -> {common.one_line(edit.target_new, 20)} ({edit.id[:12]})"


def _names(journal: "Journal", commit: "Commit") -> list[str]:
    return [name for name, at in {**journal.branches(), **journal.tags()}.items() if at == commit.id]


def _scores(typed: Sequence[str] | None) -> dict[str, float]:
    scores: dict[str, float] = {}
    for name, value in common.named_values("--score", typed).items():
        try:
            scores[name] = float(value)
        except ValueError as error:
            raise BadInput(f"--score {name} wants a number, found {value!r}") from error
    return scores


def _list(names: Mapping[str, str | None], as_json: bool, head: str | None = None) -> None:
    if as_json:
        common.print_json({"head": head, "names": dict(names)} if head else dict(names))
        return
    for name, at in names.items():
        mark = ("* " if name == head else "  ") if head else ""
        common.stdout().print(f"{mark}{name} {at[:SHORT] if at else 'no commit'}")
