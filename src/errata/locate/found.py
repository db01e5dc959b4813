"""For which method and model the settings in a file were found, and whether those are the ones at hand."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from errata.inputs import read_found

log = logging.getLogger(__name__)


def found_for(method: str, name: str, fingerprint: str) -> dict[str, Any]:
    """For whom settings were found, for a file: a method, and a model."""
    return {"for": method, "model": {"name": name, "fingerprint": fingerprint}}


def warn_of_origin(path: Path, method: str, name: str, fingerprint: str | None = None) -> None:
    """Logs a warning where a file says that its settings were found for another method, or another model.

    Models are told apart by their fingerprints, or by the end of their names where there is none: of a plan.
    """
    found = read_found(path)
    way = f"errata locate {name} --method {method} -o FILE"
    if (other := found.get("for", method)) != method:
        log.warning("%s was made for the method %s, and this is %s; `%s` finds layers for it", path, other, method, way)
    model = cast("Mapping[str, Any]", found["model"]) if isinstance(found.get("model"), dict) else {}
    same_name = Path(str(model.get("name", name))).name == Path(name).name
    if same_name if fingerprint is None else model.get("fingerprint", fingerprint) == fingerprint:
        return
    log.warning(
        "%s was made for the model %s (%s), and this is %s (%s); `%s` finds layers of this one",
        path,
        model.get("name"),
        model.get("fingerprint"),
        name,
        fingerprint or "not loaded",
        way,
    )
