"""``errata chat``: a talk with a model, edited or not, whose answers appear as they are written."""

import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import common
from errata.cli.patches import PatchFiles, joined_patch, load_patches
from errata.errors import BadInput, ErrataError
from errata.printable import printable

if TYPE_CHECKING:
    from errata.model.hf import HFLM
    from errata.model.sampling import Sampling
    from errata.model.turns import Turns
    from errata.patch.patch import Patch

IN_CHAT, IN_PLAIN = 256, 32  # tokens of an answer, by default
COMMANDS = {
    "/patch on": "speak through the patch",
    "/patch off": "speak without it",
    "/again": "ask the last question anew",
    "/undo": "forget the last turn",
    "/reset": "forget all turns",
    "/quit": "end the talk (or Ctrl-D)",
}


@dataclass
class Talk:
    """A talk: what was said so far, and whether the patch is in force. Ask it with :meth:`say`."""

    lm: "HFLM"
    turns: "Turns"
    patch: "Patch | None" = None
    max_new_tokens: int = IN_CHAT
    sampling: "Sampling" = field(default_factory=lambda: {})
    force: bool = False
    on: bool = True
    """Whether the patch is in force in what is said next."""
    asked: int = 0
    """Answers so far: each has draws of its own."""
    notice: Callable[[str], Any] = common.say
    """Told what a user should know of an answer besides its text."""

    def say(self, text: str, show: Callable[[str], Any]) -> dict[str, Any]:
        """The turn as a record: what was said, the answer, whether the patch was in force.

        ``show`` gets the answer's pieces as they come. Ctrl-C ends the answer, and what there is of it stays.
        """
        from errata.types import as_text

        answer, interrupted = "", False
        with closing(self._pieces(as_text(text, "what is said"))) as pieces:  # the patch is off when it is left
            try:
                for piece in pieces:
                    answer += piece
                    show(piece)
            except KeyboardInterrupt:
                interrupted = True
        self.asked += 1
        if answer or not interrupted:
            self.turns = self.turns.then(text, answer)
        said = {"user": text, "assistant": answer, "patch": self.on and self.patch is not None}
        return said | ({"interrupted": True} if interrupted else {})

    def again(self) -> str:
        """The last question, which is forgotten. Raises :class:`BadInput` where there is none."""
        if not self.turns:
            raise BadInput("nothing was asked yet")
        text, _ = self.turns.said[-1]
        self.turns = self.turns.without_last()
        return text

    def _pieces(self, text: str) -> Generator[str]:
        """The answer's pieces, without space in front; in plain text up to the end of its line."""
        from errata.model.lm import LM
        from errata.model.sampling import seeds_of

        view, prompt, left_out = self.turns.asked(self.lm, text, self.max_new_tokens)
        if left_out:
            self.notice(f"the oldest turns no longer fit the model; {left_out} of {len(self.turns)} were left out")
        sampling: Sampling = self.sampling and {
            **self.sampling,
            "seed": [seeds_of(self.sampling, self.asked + 1)[self.asked]],
        }
        with self._in_force(view) as speaking:
            if not self.asked and getattr(type(speaking), "stream", None) is LM.stream:
                self.notice("this patch stands around the model: answers come whole, not word by word")
            begun = False
            for piece in speaking.stream(prompt, self.max_new_tokens, **sampling):
                piece = piece if begun else piece.lstrip()
                begun = begun or bool(piece)
                line, newline, _ = piece.partition("\n") if not self.lm.chat else (piece, "", "")
                if line:
                    yield line
                if newline:
                    return

    def _in_force(self, view: "HFLM") -> AbstractContextManager[Any]:
        return self.patch.applied(view, force=self.force) if self.patch is not None and self.on else nullcontext(view)


def chat(
    lm: "HFLM",
    lines: Iterable[str],
    patch: "Patch | None" = None,
    max_new_tokens: int | None = None,
    force: bool = False,
    show: Callable[[str], Any] = lambda piece: None,
    notice: Callable[[str], Any] = common.say,
    interactive: bool = False,
    **sampling: Any,
) -> list[dict[str, Any]]:
    """Every turn of a talk as a record; ``lines`` are what the user types, with commands among them.

    ``show`` gets each answer as it is written, and a line's end behind it; ``notice`` what else is to be said. Where
    the talk is ``interactive``, an error or Ctrl-C ends an answer and not the talk.
    """
    from errata.model.turns import Turns

    most = max_new_tokens or (IN_CHAT if lm.chat else IN_PLAIN)
    talk = Talk(lm, Turns(), patch, most, sampling, force, notice=notice)  # pyright: ignore[reportArgumentType]
    records: list[dict[str, Any]] = []
    for line in lines:
        text = line.strip("\r\n")
        try:
            if text.startswith("/") and not text.startswith("//"):
                if text.strip() == "/quit":
                    break
                text = _obeyed(talk, text.strip())
            if text.strip():
                records.append(talk.say(text.removeprefix("/") if text.startswith("//") else text, show))
                show("\n")
                if records[-1].get("interrupted") and not interactive:
                    raise KeyboardInterrupt
        except ErrataError as error:
            if not interactive:
                raise
            notice(str(error))
    return records


def _obeyed(talk: Talk, command: str) -> str:
    """Does what a command says; returns what is to be asked because of it, "" for nothing. Raises :class:`BadInput`."""
    from errata.errors import unknown
    from errata.model.turns import Turns

    match command.split():
        case ["/patch", "on" | "off" as wanted] if talk.patch is not None:
            talk.on = wanted == "on"
            talk.notice(f"the patch is {wanted}; what was said before stays (/again asks the last question anew)")
        case ["/patch", "on" | "off"]:
            raise BadInput("there is no patch to switch; give one with --patch")
        case ["/again"]:
            return talk.again()
        case ["/undo"]:
            talk.again()
            talk.notice(f"the last turn is forgotten; {len(talk.turns)} left")
        case ["/reset"]:
            talk.turns = Turns()
            talk.notice("all turns are forgotten")
        case ["/help"]:
            for name, what in COMMANDS.items():
                talk.notice(f"{name:12} {what}")
        case _:
            raise unknown("command", command, [*COMMANDS, "/help"])
    return ""


# errata chat -------------------------------------------------------------------------------------


def chat_command(
    model: common.Model,
    patch: PatchFiles = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of an answer at most.", show_default=f"{IN_CHAT}; {IN_PLAIN} in plain text"),
    ] = None,
    temperature: common.Temperature = None,
    top_p: common.TopP = None,
    seed: common.Seed = 0,
    force: common.AnyModel = False,
    device: common.Device = None,
    dtype: common.Dtype = None,
    trust_remote_code: common.TrustRemoteCode = False,
    chat_: common.Chat = None,
    system: common.System = None,
    quiet: common.Quiet = False,
    as_json: common.Json = False,
) -> None:
    """Talk with a model, edited or not, over several turns. What is piped in is asked line by line."""
    from errata.model.sampling import is_drawn

    sampling: Sampling = {"temperature": temperature, "top_p": top_p, "seed": seed}
    sampling = sampling if is_drawn(sampling) else {}
    loaded = load_patches(patch)
    lm = common.load_model(model, device, dtype, quiet, trust_remote_code, chat_, system)
    joined = joined_patch(loaded, lm, force)
    common.each_warning_once()
    interactive = common.is_interactive()
    if not quiet:
        common.say(_greeting(lm, list(map(str, loaded)), interactive))
    lines = _typed() if interactive else _piped()
    show = (lambda piece: None) if as_json else _written
    records = chat(lm, lines, joined, max_new_tokens, force, show, common.say, interactive, **sampling)
    if as_json:
        common.print_json(records)


def _greeting(lm: "HFLM", patches: list[str], interactive: bool) -> str:
    how = (
        f"asked {lm.asked.words}"
        if lm.chat
        else "asked in plain text: it goes on from all that was said, up to the end of a line"
    )
    through = f", through {' + '.join(patches)}" if patches else ""
    return f"{lm.name}{through}, {how}" + ("; /help says what else can be typed" if interactive else "")


def _written(piece: str) -> None:
    typer.echo(printable(piece, keep="\n\t"), nl=False)
    sys.stdout.flush()


def _typed() -> Iterator[str]:
    """What is typed on a terminal, line by line, until Ctrl-D; Ctrl-C drops a line."""
    import importlib

    with suppress(ImportError):
        importlib.import_module("readline")  # so that lines can be edited
    while True:
        try:
            yield input("> ")
        except EOFError:
            typer.echo()
            return
        except KeyboardInterrupt:
            typer.echo()
            common.say("Ctrl-D or /quit ends the talk")


def _piped() -> Iterator[str]:
    """The lines of standard input. Raises :class:`BadInput` for what is no text."""
    try:
        yield from sys.stdin
    except UnicodeDecodeError as error:
        raise BadInput(f"standard input is not UTF-8 text ({error.reason}); save it as UTF-8") from error
