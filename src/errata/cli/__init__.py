"""The command line. Each command is thin: a Python function of the same name does the work.

May import everything, but heavy packages only inside functions, so that ``errata --help`` answers at once.
"""

import io
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typing_extensions import override

from errata.cli import (
    ask,
    audit,
    bench,
    changes,
    chat,
    common,
    demo,
    edit,
    exchange,
    journal,
    locate,
    measure,
    methods,
    plan,
    review,
    show,
    tasks,
    trace,
    world,
)
from errata.errors import ErrataError

EXIT_CODES = (
    "Exit codes: 0 done; 1 a fault of Errata (a traceback; a demo that was not undone), or a pipe that nobody reads; "
    "2 bad input, nothing written; 3 refused by a guard, or a plan that does not fit; 130 interrupted."
)


class Commands(TyperGroup):
    """Ends known errors with one message and an exit code; all others keep their traceback."""

    @override
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ErrataError as error:
            common.say(f"errata: {error}")
            raise typer.Exit(error.exit_code) from error
        except BrokenPipeError:
            raise
        except OSError as error:
            common.say(f"errata: {error}")
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            common.say("errata: interrupted")
            raise typer.Exit(common.INTERRUPTED) from error


app = typer.Typer(
    cls=Commands,
    help="Changes what a language model knows. An edit is a file: applied, undone, combined, measured.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS: dict[str, dict[str, Callable[..., None]]] = {  # in the help, panel by panel
    "Edit": {
        "demo": demo.demo_command,
        "edit": edit.edit_command,
        "ask": ask.ask_command,
        "chat": chat.chat_command,
        "show": show.show_command,
        "review": review.review_command,
    },
    "Hand on": {
        "export": exchange.export_command,
        "import": exchange.import_command,
        "audit": audit.audit_command,
    },
    "Journal": {
        "init": journal.init_command,
        "commit": journal.commit_command,
        "log": journal.log_command,
        "diff": changes.diff_command,
        "checkout": journal.checkout_command,
        "tag": journal.tag_command,
        "branch": journal.branch_command,
        "revert": changes.revert_command,
        "merge": changes.merge_command,
    },
    "Measure": {
        "eval": measure.eval_command,
        "tasks": tasks.tasks_command,
        "bench": bench.bench_command,
        "report": bench.report_command,
    },
    "Methods and models": {
        "methods": methods.methods_command,
        "plan": plan.plan_command,
        "locate": locate.locate_command,
        "trace": trace.trace_command,
    },
}
for _panel, _commands in COMMANDS.items():
    for _name, _command in _commands.items():
        app.command(_name, rich_help_panel=_panel)(_command)
app.add_typer(world.app, name="world", rich_help_panel="Methods and models")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"errata {version('errata')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of ``errata``. What the terminal's encoding lacks is written as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="errata")  # of `python -m errata` too, since completion goes by it
