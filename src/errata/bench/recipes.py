"""Papers' settings as bench files: methods, settings, scoring and how much of which data; models and files are named.

Plan.of(filled("memit2023", {"models": ["gpt2"], "data": {"counterfact": "multi_counterfact.json"}}))

The files are ``protocols/*.toml``, which name their sources. ``[data.ROLE]`` holds what a data set's table in a bench
file holds, but its name, and ``origin``: where it is from. ``[[published]]`` gives methods as the paper sets them on
some ``models``: absolute numbers that mean little on others.
"""

import logging
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, cast

from errata.errors import BadInput, unknown

log = logging.getLogger(__name__)

Record = dict[str, Any]


def recipes() -> list[str]:
    """The names of the shipped files."""
    found = files("errata.bench").joinpath("protocols").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in found if file.name.endswith(".toml"))


def recipe(name: str) -> Record:
    """What the file of that name holds. Raises :class:`BadInput` for an unknown name, with near matches."""
    if name not in (known := recipes()):
        raise unknown("protocol of a paper", name, known)
    return tomllib.loads(files("errata.bench").joinpath("protocols", f"{name}.toml").read_text(encoding="utf-8"))


def filled(name: str, given: Mapping[str, Any], limit: int | None = None) -> Record:
    """A bench file of a paper's settings; each key that is ``given`` stands in the place of the paper's.

    ``data`` maps the paper's roles to files, or to tables as in any bench file, whose keys go before the paper's (a
    text names the file of a paper of one role): roles that are not named are left out, which is logged. ``limit`` tries
    it on so many cases: batches and checkpoints shrink to fit. Raises :class:`BadInput` where no data or no model is
    named, and for an unknown role.
    """
    paper = recipe(name)
    named = {key: value for key, value in given.items() if key != "protocol"}
    if not named.get("models"):
        raise BadInput(f'{name} needs a model; name it with --model, or as models = ["…"] in the bench file')
    data = named.pop("data", {})
    kept = {key: paper[key] for key in ("protocol", "methods", "settings", "modes") if key in paper}
    made = kept | {"methods": _published(paper, named["models"])} | named
    made["data"] = _data(name, paper["data"], data)
    return made if limit is None else _small(made, limit)


def _published(paper: Record, models: Any) -> list[Any]:
    """The paper's methods, those set for these models as they are published; of several that differ, refused."""
    if not isinstance(models, list):
        return paper["methods"]  # what models are is checked with the whole plan
    tables = [table["methods"] for model in models if isinstance(model, str) for table in _tables_of(paper, model)]
    if not tables:
        return paper["methods"]
    if len(models) > 1:
        raise BadInput(
            f"{', '.join(map(str, models))}: the paper sets methods otherwise for each of these; run one model at a "
            "time, or name methods in the bench file"
        )
    own = {method["name"]: method for methods in tables for method in methods}
    every = [{"name": method} if isinstance(method, str) else method for method in paper["methods"]]
    return [own.get(method["name"], {}) | method for method in every]


def _tables_of(paper: Record, model: str) -> list[Record]:
    published = paper.get("published", [])
    return [table for table in published if model.casefold() in [name.casefold() for name in table["models"]]]


def _data(name: str, roles: Mapping[str, Record], given: Any) -> list[Record]:
    """The tables of the roles that are given a file."""
    wanted = "; ".join(f"{role}: {table['origin']}" for role, table in roles.items())
    if not given:
        raise BadInput(f"{name} needs data, as --data {next(iter(roles))}=FILE; it is made for {wanted}")
    if isinstance(given, str):
        if len(roles) > 1:
            raise BadInput(f"{name} has {' and '.join(roles)}; say which {given} is, as {next(iter(roles))}={given}")
        given = {next(iter(roles)): given}
    if not isinstance(given, dict):
        raise BadInput(f"data of {name} is a table of {' and '.join(roles)}, each with a file; found {given!r}")
    made: list[Record] = []
    for role, file in cast("Record", given).items():
        if role not in roles:
            raise unknown(f"data of {name}", role, list(roles))
        if not isinstance(file, str | dict):
            raise BadInput(f"data.{role} is a file or a table, found {file!r}")
        own = {key: value for key, value in roles[role].items() if key not in ("origin", "train")}
        table = own | ({"name": file} if isinstance(file, str) else cast("Record", file))
        made.append(table | _trained_on(name, role, roles[role], table.get("train")))
    for role in roles:
        if role not in given:
            log.warning("%s also measures %s (%s): left out, as no file was named", name, role, roles[role]["origin"])
    return made


def _trained_on(name: str, role: str, paper: Record, given: Any) -> Record:
    """``train`` of a role's table, if a file is named: with what else the paper's says."""
    if given is None:
        if (wanted := paper.get("train")) is not None:
            log.warning(
                "%s trains methods on %s for %s: name that file (--train %s=FILE); else they are trained on what goes "
                "with the model",
                *(name, wanted["origin"], role, role),
            )
        return {}
    if not isinstance(given, str | dict):
        raise BadInput(f"data.{role}.train is a file or a table, found {given!r}")
    own = {key: value for key, value in paper.get("train", {}).items() if key != "origin"}
    return {"train": own | ({"name": given} if isinstance(given, str) else cast("Record", given))}


def _small(made: Record, limit: int) -> Record:
    """The plan on the first ``limit`` cases of each data set."""
    data = [{**entry, "limit": min(limit, entry.get("limit", limit))} for entry in made["data"]]
    return {**made, "data": data, "settings": [_fitted(setting, limit) for setting in made["settings"]]}


def _fitted(setting: Any, limit: int) -> Any:
    if not isinstance(setting, dict):
        return setting
    small = cast("Record", setting) | {
        key: min(limit, value) for key, value in setting.items() if key in ("size", "batch", "cases")
    }
    if points := setting.get("checkpoints"):
        small["checkpoints"] = _points(points, limit)
    return small


def _points(points: Sequence[int], limit: int) -> list[int]:
    return [n for n in points if n < limit] + ([limit] if max(points) >= limit else [])
