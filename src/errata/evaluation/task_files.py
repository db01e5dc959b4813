"""What the YAML files of somebody's tasks want to run, read before lm-evaluation-harness reads them.

    refuse_code(Path("tasks"))                 # raises where a file there, or one that it includes, runs code
    sandbox_templates()                        # templates that the harness fills in cannot reach Python from now on

The harness imports what ``!function`` and ``class`` name, and loads a metric that it does not know as a script. Its own
tasks, which come with its package, may do so.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from errata.errors import BadInput, first_line
from errata.inputs import read_text

MOST = 2**24  # bytes of a task's file


class _Function(str):
    """What ``!function`` names."""


def refuse_code(folder: Path) -> None:
    """Raises :class:`BadInput` where a YAML file of the folder cannot be read, runs code, or includes one that does."""
    for file in sorted(folder.rglob("*.yaml")):
        if found := next(_code_in(file, set()), None):
            raise BadInput(
                f"the task in {file} wants to run code: {found}; Errata runs none unasked: read it, and if you trust "
                "all of that folder, say trust_remote_code=True (--trust-remote-code)"
            )


def _code_in(file: Path, seen: set[Path]) -> Iterator[str]:
    """In words, all that a file and those that it includes would run."""
    import lm_eval.tasks

    file = file.expanduser().resolve()
    if file in seen or file.is_relative_to(Path(lm_eval.tasks.__file__).parent.resolve()):
        return
    seen.add(file)
    content = _read(file)
    yield from _runs(content, str(file.name))
    included = content.get("include", []) if isinstance(content, dict) else []
    for other in included if isinstance(included, list) else [included]:
        yield from _code_in(file.parent / str(other), seen)


def _read(file: Path) -> Any:
    """What a YAML file holds, by a loader that makes plain data alone; a ``!function`` becomes its name."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    def function(loader: Any, node: Any) -> _Function:
        return _Function(loader.construct_scalar(node))

    Loader.add_constructor("!function", function)
    try:
        return yaml.load(read_text(file, "a task", most=MOST), Loader)
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise BadInput(f"{file} cannot be read as the YAML of a task: {first_line(error)}") from error


def _runs(value: Any, where: str) -> Iterator[str]:
    """In words, what a value of a configuration would run."""
    if isinstance(value, _Function):
        yield f"{where}: !function {value}"
    elif isinstance(value, list):
        for item in value:
            yield from _runs(item, where)
    elif isinstance(value, dict):
        if "class" in value:
            yield f"{where}: class {value['class']}"
        if value.get("trust_remote_code"):
            yield f"{where}: trust_remote_code, a data set's own script"
        for key, item in value.items():
            if key == "metric_list":
                yield from _scripts(item, where)
            yield from _runs(item, f"{where}, {key}")


def _scripts(metrics: Any, where: str) -> Iterator[str]:
    """In words, the metrics that the harness would load by ``evaluate``: scripts of the hub or of a folder."""
    import lm_eval.api.metrics  # noqa: F401  registers them
    from lm_eval.api.registry import metric_registry

    for metric in metrics if isinstance(metrics, list) else [metrics]:
        named: Any = metric.get("metric") if isinstance(metric, dict) else None
        known = named is None or isinstance(named, _Function) or named in metric_registry
        if isinstance(metric, dict) and (metric.get("hf_evaluate") or not known):
            yield f"{where}: metric {named}, a script that `evaluate` loads"


def sandbox_templates() -> None:
    """From now on the harness fills in its templates (Jinja) in a sandbox. It stays: another thread may be asking."""
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    was = utils.env
    if not isinstance(was, SandboxedEnvironment):
        kept: Any = {name: getattr(was, name) for name in ("loader", "undefined", "keep_trailing_newline")}
        sandbox = SandboxedEnvironment(**kept)
        sandbox.filters.update(was.filters)
        utils.env = sandbox
