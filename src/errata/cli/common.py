"""What commands share: options, output, and reading what the user typed.

Nothing here imports torch or transformers before it is needed: ``errata --help`` must answer at once.
"""

import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich import progress
from rich.console import Console, ConsoleOptions, RenderableType
from rich.logging import RichHandler
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from errata import inputs
from errata.errors import BadInput
from errata.files import check_writable
from errata.printable import STEERING, printable

if TYPE_CHECKING:
    from errata.distributed.pool import Pool
    from errata.methods.base import Method
    from errata.model.hf import HFLM

T = TypeVar("T")
INTERRUPTED = 130
LONGEST = 4000  # characters of a message
LONGEST_TEXT = 1_000_000  # characters of a line of --data: a book, of which methods read the beginning
CASES = (".json", ".jsonl")  # of --data that is cases where a method prepares with texts or cases
TEXT_WIDTH = 120  # of a table that is not printed to a terminal
PREPARED = "(models of the world are trained to be editable: this shows that a method works, not how well)"

Model = Annotated[str, typer.Argument(help="'world' (the bundled model), a folder, or a hub id.", show_default=False)]
Device = Annotated[str | None, typer.Option(help="Where to run; by default the best there is.", show_default=False)]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or float64.", show_default=False)]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with a model or a task.")
]
Chat = Annotated[
    bool | None,
    typer.Option(
        "--chat/--no-chat",
        help="Ask under the tokenizer's chat template, or in plain text.",
        show_default="as the model was trained",
    ),
]
System = Annotated[
    str | None,
    typer.Option(
        "--system",
        metavar="TEXT",
        help="The system message of the chat, which it implies.",
        show_default="the template's own, if any",
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of everything that is drawn.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no logs.")]
Json = Annotated[bool, typer.Option("--json", help="JSON instead of tables.")]
Workers = Annotated[
    int, typer.Option(min=0, help="Share the work out among so many processes, each with a copy of the model.")
]
Threads = Annotated[int, typer.Option(min=1, help="Of each of the --workers.")]
RayAddress = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="The Ray cluster that has the --workers.", show_default="this machine"),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")]
MethodName = Annotated[str, typer.Option("--method", help="See `errata methods`.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="A setting of the method, as often as needed.", show_default=False
    ),
]
SettingsFile = Annotated[
    Path | None,
    typer.Option(
        "--settings", help="A file of settings (JSON or TOML), as `errata locate` writes one.", show_default=False
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(help="What the method prepares with: texts, one on each line, or cases.", show_default=False),
]

Read = Annotated[
    list[str] | None,
    typer.Option(
        "--read",
        metavar="NAME=VALUE",
        help="How cases are read, as often as needed: format, strict, conflicts, split, or an option of the format.",
        show_default=False,
    ),
]


# Output ------------------------------------------------------------------------------------------


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


# Files and options -------------------------------------------------------------------------------


def read_text(path: Path, what: str) -> str:
    """The text of a file given by option ``--what``. Raises :class:`BadInput`."""
    return inputs.read_text(path, f"--{what}")


def data_for(method: "Method", path: Path | None) -> list[Any] | None:
    """What the method prepares with, from a file: cases, or the lines of texts; None without one.

    Raises :class:`BadInput`.
    """
    if path is None:
        return None
    if not method.needs_prepare:
        raise BadInput(f"{method.name} prepares nothing, so --data would go unread; leave it out")
    kind = method.tags.prepares_with
    if kind == "cases" or (kind == "either" and path.suffix.lower() in CASES):
        from errata import cases

        return cases(path)
    return texts_in(path)


def texts_in(path: Path) -> list[str]:
    """The texts of a file given by --data, one on each line. Raises :class:`BadInput`."""
    lines = read_text(path, "data").splitlines()
    for number, line in enumerate(lines, start=1):
        if len(line) > LONGEST_TEXT:
            raise BadInput(
                f"{path}, line {number} has {len(line):,} characters; --data wants a text on each line, of "
                f"{LONGEST_TEXT:,} at most"
            )
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise BadInput(f"{path} holds no text; --data wants a text on each line")
    return texts


def check_output(path: Path, force: bool) -> None:
    """Raises :class:`BadInput` unless a file can be written there. To be called before the work."""
    try:
        check_writable(path)
    except BadInput as error:
        raise BadInput(f"{error} with -o") from error
    if path.exists() and not force:
        raise BadInput(f"{path} exists; add --force to overwrite it, or name another file with -o")


def named_values(option: str, items: Sequence[str] | None) -> dict[str, str]:
    """The values of an option that is typed as ``name=value``, by name. Raises :class:`BadInput`."""
    typed: dict[str, str] = {}
    for item in items or ():
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise BadInput(f"{option} wants name=value, found {item!r}")
        if key.strip() in typed:
            raise BadInput(f"{option} {key.strip()} is given twice")
        typed[key.strip()] = value
    return typed


# Models and methods ------------------------------------------------------------------------------


def load_model(
    name: str,
    device: str | None,
    dtype: str | None,
    quiet: bool,
    trust_remote_code: bool = False,
    chat: bool | None = None,
    system: str | None = None,
) -> "HFLM":
    """``errata.load``, with progress on stderr."""
    import errata

    set_up_logs(quiet)
    about_chat: Any = {"chat": chat, "system": system}
    with step(f"loading {name}", quiet):
        return errata.load(name, device=device, dtype=dtype, trust_remote_code=trust_remote_code, **about_chat)


def check_workers(count: int, threads: int, address: str | None) -> None:
    """Raises :class:`BadInput` where options of workers are given without them, and where Ray is not installed."""
    if count:
        from errata.distributed.pool import import_ray

        import_ray()
    elif threads != 1 or address is not None:
        raise BadInput("--threads and --ray-address are of workers; say how many with --workers")


@contextmanager
def worker_pool(count: int, threads: int, address: str | None, device: str | None) -> "Iterator[Pool | None]":
    """Context manager: the worker processes that were asked for, to load what they are told; None for none of them."""
    check_workers(count, threads, address)
    if not count:
        yield None
        return
    from errata.distributed.pool import Pool
    from errata.model.loading import accelerators

    with Pool(count, threads=threads, address=address, accelerators=accelerators(device)) as pool:
        yield pool


@contextmanager
def attached(lm: "HFLM", count: int, threads: int, address: str | None) -> Iterator[None]:
    """Context manager: the model has the workers that were asked for."""
    if not count:
        yield
        return
    from errata.distributed.attach import workers

    with workers(lm, count, threads=threads, address=address):
        yield


def make_method(name: str, settings: Sequence[str] | None, seed: int = 0, file: Path | None = None) -> "Method":
    """The method with settings as typed (``name=value``), which go before those of a file.

    Raises :class:`BadInput` or :class:`UnknownName`.
    """
    import errata
    from errata.methods.registry import method_class
    from errata.methods.settings import from_text

    typed = named_values("--set", settings)
    if seed:
        if "seed" in typed:
            raise BadInput("the seed is given twice, by --seed and by --set seed; leave one out")
        typed["seed"] = str(seed)
    given = from_text(method_class(name), typed)
    if file is None:
        return errata.method(name, **given)
    read = inputs.read_settings(file)
    try:
        return errata.method(name, **(read | given))
    except BadInput as error:
        other = inputs.read_found(file).get("for", name)
        way = "" if other == name else f"; the file was made for the method {other}: give --method {other}"
        raise type(error)(f"{file}: {error}{way}") from error


def check_settings_file(file: Path | None, method: "Method", name: str, fingerprint: str | None = None) -> None:
    """Warns where a file of settings was made for another method or model; a plan's model has no fingerprint."""
    if file is not None:
        from errata.locate.found import warn_of_origin

        warn_of_origin(file, method.name, name, fingerprint)


def size(count: int) -> str:
    """Bytes as megabytes, or as kilobytes where they are few."""
    return f"{count / 1e6:.2f} MB" if count >= 100_000 else f"{count / 1e3:.1f} KB"
