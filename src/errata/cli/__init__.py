"""The command line. Each command is thin: a Python function of the same name does the work.

May import everything, but heavy packages only inside functions, so that ``errata --help`` answers at once.
"""

from typing import Any

import typer
from typer.core import TyperGroup
from typing_extensions import override

from errata.cli import bench, demo, edit, measure, methods, tasks, trace, world
from errata.cli.common import INTERRUPTED
from errata.errors import ErrataError


class Commands(TyperGroup):
    """Ends known errors with one message and an exit code; all others keep their traceback."""

    @override
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ErrataError as error:
            typer.echo(f"errata: {error}", err=True)
            raise typer.Exit(error.exit_code) from error
        except BrokenPipeError:
            raise
        except OSError as error:
            typer.echo(f"errata: {error}", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            typer.echo("errata: interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from error


app = typer.Typer(
    cls=Commands,
    help="Changes what a language model knows. An edit is a file: applied, undone, combined, measured.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo_command)
app.command("edit")(edit.edit_command)
app.command("ask")(edit.ask_command)
app.command("show")(edit.show_command)
app.command("eval")(measure.eval_command)
app.command("tasks")(tasks.tasks_command)
app.command("bench")(bench.bench_command)
app.command("report")(bench.report_command)
app.command("methods")(methods.methods_command)
app.command("trace")(trace.trace_command)
app.add_typer(world.app, name="world")


def main() -> None:
    """Entry point of ``errata``."""
    app()
