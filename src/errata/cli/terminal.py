"""What commands write: results on stdout, progress and logs on stderr, and nothing that a text could steer."""

import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import typer
from rich import progress
from rich.console import Console, ConsoleOptions, RenderableType
from rich.logging import RichHandler
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from errata.printable import STEERING, printable

T = TypeVar("T")
LONGEST = 4000  # characters of a message
TEXT_WIDTH = 120  # of a table that is not printed to a terminal


class _Console(Console):
    """A console that a text cannot steer: of what is shown, control characters are written out but for newlines."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **settings)

    @override
    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text, keep="\n"))


def stdout() -> Console:
    """The console for results. Without a terminal its width is fixed, so that tables in files can be read."""
    console = _Console()
    return console if console.is_terminal else _Console(width=TEXT_WIDTH)


def stderr(quiet: bool = False) -> Console:
    """The console for progress."""
    return _Console(stderr=True, quiet=quiet, soft_wrap=True)


def say(text: str) -> None:
    """Prints one line on stderr, whatever the text holds."""
    typer.echo(_on_a_line(text), err=True)


def _on_a_line(text: str) -> str:
    return printable(text[:LONGEST]) + "…" * (len(text) > LONGEST)


def show_logs(quiet: bool) -> None:
    """Shows Errata's own warnings on stderr; with ``quiet`` errors only."""
    log = logging.getLogger("errata")
    handler = RichHandler(console=stderr(), show_time=False, show_path=False, show_level=False)
    handler.setFormatter(_OneLine("%(message)s"))
    handler.setLevel(logging.ERROR if quiet else logging.WARNING)
    log.handlers = [handler]
    log.setLevel(logging.ERROR if quiet else logging.INFO)  # below a warning: the progress of a step


def set_up_logs(quiet: bool) -> None:
    """As :func:`show_logs`, and silences transformers' logs and those of packages that it imports where they are."""
    show_logs(quiet)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("torchao", "bitsandbytes", "torch.utils._pytree"):  # of kernels for other devices, at import
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def each_warning_once() -> None:
    """From here on what Errata has logged before is not shown again: for a command that does one thing many times."""
    seen: set[str] = set()

    def new(record: logging.LogRecord) -> bool:
        line = record.getMessage()
        return not (line in seen or seen.add(line))

    for handler in logging.getLogger("errata").handlers:
        handler.addFilter(new)


class _OneLine(logging.Formatter):
    """Keeps a message on its line, so that none can look like two."""

    @override
    def formatMessage(self, record: logging.LogRecord) -> str:
        return _on_a_line(super().formatMessage(record))


class _Shown(logging.Handler):
    """Hands the message of each record below a warning to a function."""

    def __init__(self, show: Callable[[str], Any]) -> None:
        super().__init__()
        self.show = show

    @override
    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING:
            self.show(record.getMessage())


@contextmanager
def step(what: str, quiet: bool) -> Iterator[None]:
    """Context manager: shows on stderr that ``what`` is under way, what is logged of it meanwhile, and in the end how
    long it took."""
    console, what = stderr(quiet), printable(what)
    began = time.perf_counter()
    with console.status(Text(f"{what} …")) as status:
        shown = _Shown(lambda line: status.update(Text(f"{what} … {printable(line)}")))
        log = logging.getLogger("errata")
        log.addHandler(shown)
        try:
            yield
        finally:
            log.removeHandler(shown)
    console.print(f"{what}: {time.perf_counter() - began:.1f} s", style="dim")


def track(items: Sequence[T], what: str, quiet: bool) -> Iterator[T]:
    """The items one by one, with a progress bar on the terminal; in the end, how long they took."""
    console, what = stderr(quiet), printable(what)
    began = time.perf_counter()
    yield from progress.track(
        items, escape(what), console=console, transient=True, disable=quiet or not console.is_terminal
    )
    console.print(f"{what}: {time.perf_counter() - began:.1f} s", style="dim")


def print_json(value: Any) -> None:
    """Prints a value as JSON on stdout: what steers a terminal, and what stdout cannot encode, as JSON's escapes."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    text = re.sub(rf"(?!\n){STEERING.pattern}", lambda found: f"\\u{ord(found[0]):04x}", text)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=1)
    typer.echo(text)


def make_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], right: Sequence[str] = ()) -> Table:
    """A table of plain text: a model's output is never read as markup, and a cell has one line."""
    table = Table(title=Text(printable(title)), title_justify="left")
    for name in columns:
        justify = "right" if name in right else "left"
        table.add_column(Text(printable(name)), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*map(_cell, row))
    return table


def _cell(value: Any) -> Text:
    if isinstance(value, Text):
        return Text(printable(value.plain), style=value.style)
    return Text("" if value is None else printable(str(value)))


def one_line(text: str, width: int = 60) -> str:
    """The text on one line, cut to ``width`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def is_interactive() -> bool:
    """Whether somebody sits at standard input, who can be asked."""
    return sys.stdin is not None and sys.stdin.isatty()


def size(count: int) -> str:
    """Bytes as megabytes, or as kilobytes where they are few."""
    return f"{count / 1e6:.2f} MB" if count >= 100_000 else f"{count / 1e3:.1f} KB"
