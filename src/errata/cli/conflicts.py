"""What ``errata edit`` says of edits that contradict each other, or those of the patch that it goes on from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from errata.cli import common
from errata.errors import Refused
from errata.types import Edit

if TYPE_CHECKING:
    from errata.conflicts.pairs import Conflict
    from errata.model.hf import HFLM
    from errata.patch.patch import Patch

ROWS = 20  # of the table
COLUMNS = ("conflict", "older", "newer", "what holds")
BOTH, HERE, EARLIER = "both stay: leave one out", "the newer; the older is left out", "the newer"
TOGETHER = "both are made: make the newer in a call of its own (--prior)"  # the model may have mistaken two relations


@dataclass(frozen=True)
class Settled:
    """The edits to make, and what contradicted what: among themselves, and with earlier ones."""

    edits: list[Edit]
    among: "list[Conflict]"
    earlier: "list[Conflict]"

    def records(self) -> list[dict[str, Any]]:
        """JSON: each conflict, and what holds."""
        return [conflict.to_json() | {"holds": holds} for conflict, holds in self.told()]

    def told(self) -> "list[tuple[Conflict, str]]":
        """Each conflict with what holds, in words."""
        from errata.conflicts.pairs import DUPLICATE, INVERSE

        def holds(conflict: "Conflict", here: bool) -> str:
            if conflict.kind == INVERSE:
                return BOTH
            if not here:
                return EARLIER
            return HERE if conflict.one_question else "both" if conflict.kind == DUPLICATE else TOGETHER

        here = [(conflict, holds(conflict, True)) for conflict in self.among]
        return here + [(conflict, holds(conflict, False)) for conflict in self.earlier]


def settle(lm: "HFLM", edits: Sequence[Edit], prior: "Patch | None" = None) -> Settled:
    """The edits without those whose question a later one of them asks too: the newest holds."""
    from errata.conflicts.pairs import conflicts, within
    from errata.conflicts.resolving import resolve

    among = within(edits, lm)
    earlier = conflicts(prior.edits, edits, lm, prior) if prior is not None else []
    decided = resolve([conflict for conflict in among if conflict.one_question], "newest")
    return Settled(decided.left(edits), among, earlier)


def check_none(settled: Settled) -> None:
    """Raises :class:`Refused` where edits contradict each other; one that is there twice does not."""
    from errata.conflicts.pairs import DUPLICATE

    found = [c for c in (*settled.among, *settled.earlier) if c.kind != DUPLICATE]
    if found:
        lines = "; ".join(f"{c.kind}: {_fact(c.older)} and {_fact(c.newer)}" for c in found[:ROWS])
        raise Refused(
            f"{len(found)} conflict{'s' * (len(found) != 1)}, so nothing was written: {lines}; leave one of two "
            "out, or do without --strict-conflicts"
        )


def warn(settled: Settled, quiet: bool) -> None:
    """Shows the conflicts side by side on stderr."""
    told = settled.told()
    if quiet or not told:
        return
    more = f" (the first {ROWS} of {len(told)})" if len(told) > ROWS else ""
    rows = [(c.kind, _fact(c.older), _fact(c.newer), holds) for c, holds in told[:ROWS]]
    common.stderr().print(common.make_table(f"conflicts{more}", COLUMNS, rows))


def _fact(edit: Edit) -> str:
    return f"{edit.prompt} -> {edit.target_new} ({edit.id})"
