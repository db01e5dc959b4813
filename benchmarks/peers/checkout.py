"""A peer's package, imported from a checkout that the user names. Nothing of it is copied, installed or changed.

with imported(Path("EasyEdit"), "easyeditor", Stand(...)) as module_of:
    memit = module_of("easyeditor.models.memit")
"""

import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from errata.errors import BadInput


@dataclass(frozen=True)
class Source:
    """A toolkit that is measured beside ours, and what stands in for parts of it that no edit of ours needs."""

    name: str
    address: str
    packages: Sequence[str]
    """Its folders of code that run here."""
    shows: str
    """A file by which a checkout is known, relative to it."""
    bare: Sequence[str] = ()
    """Its packages whose ``__init__`` imports everything: they are entered without running it."""
    unused: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    """Modules that its files import and an edit never calls, with the names taken from them: empty where missing."""

    def module(self, checkout: Path, name: str) -> ModuleType:
        """A module of the checkout. Raises :class:`BadInput` where it cannot be imported."""
        self.enter(checkout)
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise BadInput(
                f"{name} of {checkout} cannot be imported: {error}; install what is missing into this environment, or "
                f"name it in `unused` of the runner where no edit calls it"
            ) from error

    def enter(self, checkout: Path) -> None:
        """Makes the package importable. Raises :class:`BadInput` for a folder that is no checkout of it."""
        self.check(checkout)
        if str(checkout) not in sys.path:
            sys.path.insert(0, str(checkout))
        for name in self.bare:
            if name not in sys.modules:
                package = ModuleType(name)
                package.__path__ = [str(checkout.joinpath(*name.split(".")))]
                sys.modules[name] = package
        for name, taken in self.unused.items():
            if not _is_there(name):
                stand_in(name, taken)

    def check(self, checkout: Path) -> None:
        """Raises :class:`BadInput` unless the folder is a checkout of this toolkit."""
        if not checkout.is_dir():
            raise BadInput(
                f"there is no folder {checkout}: git clone {self.address}, and name the folder that it makes"
            )
        if not (checkout / self.shows).is_file():
            raise BadInput(
                f"{checkout} is no checkout of {self.name}: it has no {self.shows}; name the folder that "
                f"`git clone {self.address}` makes"
            )

    def commit(self, checkout: Path) -> str:
        """The commit that is checked out, with + where files differ from it; or that it is not known."""
        top, head = (_git(checkout, "rev-parse", what) for what in ("--show-toplevel", "HEAD"))
        if not top or Path(top).resolve() != checkout.resolve():
            return "a commit that is not known"
        return head + ("+" if _git(checkout, "diff", "HEAD", "--name-only", "--", *self.packages) else "")


def stand_in(name: str, taken: Sequence[str]) -> None:
    """Puts empty modules in the place of a module and of those above it; a name taken from it refuses to be called."""
    parts = name.split(".")
    for i in range(1, len(parts) + 1):
        path = ".".join(parts[:i])
        module = sys.modules.setdefault(path, ModuleType(path))
        module.__path__ = []
        if i > 1:
            setattr(sys.modules[".".join(parts[: i - 1])], parts[i - 1], module)
    for missing in taken:
        setattr(sys.modules[name], missing, _refusing(f"{name}.{missing}"))


def _refusing(name: str) -> Any:
    def refuse(*args: Any, **settings: Any) -> Any:
        raise BadInput(f"{name} was called, which is not installed here: install {name.partition('.')[0]}")

    return refuse


def _is_there(name: str) -> bool:
    try:
        return name in sys.modules or importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _git(folder: Path, *words: str) -> str:
    """What git says, or nothing where it fails."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
