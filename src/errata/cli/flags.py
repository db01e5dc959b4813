"""Options and arguments that several commands have, as annotations."""

from pathlib import Path
from typing import Annotated

import typer

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
Temperature = Annotated[float | None, typer.Option(help="Draw tokens, by p^(1/temperature).", show_default="greedy")]
TopP = Annotated[
    float | None, typer.Option(help="Draw among the likeliest, of this probability together.", show_default="all")
]
AnyModel = Annotated[bool, typer.Option("--force", help="Take a patch of another model all the same.")]
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
