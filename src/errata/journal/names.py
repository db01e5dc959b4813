# pyright: strict
"""Names of commits: HEAD, branches, tags, and ids by their beginning; ``HEAD~2`` is the one two before.

journal.find("HEAD~1"), journal.find("accepted"), journal.find("3fa2")
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

from errata.errors import BadInput
from errata.journal.commit import Damaged
from errata.printable import shown

HEAD, MAIN = "HEAD", "main"
LEAST = 4  # characters of an id that name it
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,99}")
ID = re.compile(rf"[0-9a-f]{{{LEAST},64}}")
FURTHEST = 10**6  # steps back

Kind = Literal["head", "branch", "tag"]


@dataclass(frozen=True)
class Name:
    """A branch or a tag, and the commit that it names; HEAD, and the branch that it is on."""

    name: str
    kind: Kind
    target: str | None
    """None of a branch without commits."""

    def seal(self, journal: str) -> str:
        """A digest by which a change from outside is noticed."""
        said = "\0".join([journal, self.kind, self.name, self.target or ""])
        return hashlib.sha256(said.encode()).hexdigest()[:16]


def read_name(name: Any, kind: Any, target: Any, seal: Any, journal: str) -> Name:
    """The name of a row. Raises :class:`Damaged` where it was changed from outside."""
    read = Name(name, kind, target)
    texts = [name, kind, seal, *([] if target is None else [target])]
    if not all(isinstance(text, str) for text in texts) or kind not in get_args(Kind) or read.seal(journal) != seal:
        raise Damaged(f"the name {shown(name)} is not what its seal says: it was changed")
    return read


def checked_name(name: Any, what: str) -> str:
    """The name, which may be given to a branch or a tag. Raises :class:`BadInput`."""
    if not isinstance(name, str) or not NAME.fullmatch(name) or name == HEAD or ".." in name:
        raise BadInput(f"{what} is named by up to 100 letters, digits and . _ - /, and not {HEAD}; found {shown(name)}")
    if ID.fullmatch(name):
        raise BadInput(f"{what} named {name} would look like the beginning of an id; take another name")
    return name


def steps_back(revision: Any) -> tuple[str, int]:
    """A revision as a name and how many commits before it is meant: ``HEAD~2~`` is HEAD and 3.

    Raises :class:`BadInput`.
    """
    if not isinstance(revision, str):
        raise BadInput(f"a revision is a text (HEAD, a name, an id), found {type(revision).__name__}")
    found = re.fullmatch(r"([^~]+)((?:~[0-9]{0,6})*)", revision.strip())
    if found is None:
        raise BadInput(f"{shown(revision)} is no revision; write HEAD, HEAD~1, a name, or the beginning of an id")
    return found[1], sum(int(step or 1) for step in found[2].split("~")[1:])
