"""A wrapper that answers from a log of edits: one of them taken out, and each with whether it is in use."""

from dataclasses import replace
from typing import Any, Self

from typing_extensions import override

from errata.methods.memory.log import EditLog, log_entries, log_without
from errata.patch.parts import Wrapper


class LoggedWrapper(Wrapper):
    """A wrapper, a frozen dataclass, with a ``log`` of the edits, each of which stands there for itself."""

    log: EditLog
    in_use: Any
    """Indices of the edits that answer, in order."""

    @override
    def without(self, edit_id: str) -> "Self | None":
        left = log_without(self.log, edit_id)
        return replace(self, log=left) if left else None  # pyright: ignore[reportArgumentType]

    @override
    def entries(self) -> list[dict[str, Any]]:
        return log_entries(self.log, self.in_use)
