"""The plan of an edit: what each step takes, before anything starts.

plan = errata.plan("meta-llama/Meta-Llama-3-8B", errata.method("memit"), edits=10_000)
plan.warnings                          # [] where it fits
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import torch

from errata.cost.room import Rates, free_host, free_on, rates
from errata.errors import BadInput
from errata.model.hf import HFLM
from errata.model.size import Size, Step, Work
from errata.types import Edit

GB = 1e9
MARGIN = 1.1  # of the memory that is counted: the interpreter, buffers of libraries
LEAST_BUDGET = 512  # tokens in a batch, below which passes are slow


class Costed(Protocol):
    """What is planned: a method."""

    @property
    def name(self) -> Any:
        """The method's registered name."""
        ...

    def cost(self, size: Size, work: Work) -> list[Step]:
        """As :meth:`errata.methods.base.Method.cost`."""
        ...

    def lighter(self, lm: HFLM) -> "Mapping[str, Costed]":
        """As :meth:`errata.methods.base.Method.lighter`."""
        ...


@dataclass(frozen=True)
class Plan:
    """What an edit takes. Bytes are peaks; ``device`` is None in a step where the model is in main memory."""

    model: str
    method: str
    edits: int
    dtype: str
    device: str
    parameters: int
    weights: int
    """Bytes."""
    layers: tuple[int, ...] | None
    """Those that are edited, of a method that names them."""
    budget: int
    """Tokens in a batch."""
    steps: tuple[Step, ...]
    on_host: bool
    rates: Rates | None
    free_device: int | None
    free_host: int | None
    warnings: tuple[str, ...] = ()

    def device_bytes(self, step: Step) -> float:
        """Bytes where the model is at the peak of a step: the weights too, and in main memory the rest."""
        return self.weights + step.device + (step.host if self.on_host else 0.0)

    def host_bytes(self, step: Step) -> float:
        """Bytes of main memory at the peak of a step."""
        return self.device_bytes(step) if self.on_host else step.host

    def seconds(self, step: Step) -> float | None:
        """At the rates that were measured; None for what is not counted."""
        if step.flop is None or self.rates is None:
            return None
        computing = sum(flop / getattr(self.rates, where) for where, flop in step.flop.items())
        return max(computing, step.moved / self.rates.copied)

    @property
    def peak_device(self) -> float:
        """Bytes where the model is."""
        return max(map(self.device_bytes, self.steps))

    @property
    def peak_host(self) -> float:
        """Bytes of main memory."""
        return max(map(self.host_bytes, self.steps))

    @property
    def fits(self) -> bool:
        """Whether the free memory is enough, as far as it is known."""
        pairs = [(self.peak_host, self.free_host)]
        pairs += [] if self.on_host else [(self.peak_device, self.free_device)]
        return all(free is None or MARGIN * needed <= free for needed, free in pairs)

    def to_json(self) -> dict[str, Any]:
        """A record for JSON: the fields, and of each step bytes and seconds."""
        record = asdict(self) | {"rates": None if self.rates is None else self.rates.to_json(), "fits": self.fits}
        record["peak"] = {"device": round(self.peak_device), "host": round(self.peak_host)}
        record["steps"] = [
            {
                "verb": step.verb,
                "name": step.name,
                "flop": None if step.flop is None else {k: float(f"{v:.4g}") for k, v in step.flop.items()},
                "device_bytes": round(self.device_bytes(step)),
                "host_bytes": round(self.host_bytes(step)),
                "disk_bytes": round(step.disk),
                "seconds": None if (taken := self.seconds(step)) is None else float(f"{taken:.3g}"),
                "note": step.note,
            }
            for step in self.steps
        ]
        return record


def plan(
    model: Any,
    method: Costed,
    *,
    edits: int | Sequence[Edit] = 1,
    texts: int | None = None,
    budget: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    chat: bool | None = None,
    system: str | None = None,
    trust_remote_code: bool = False,
    measure: bool = True,
) -> Plan:
    """What ``method`` takes on a model, from its configuration alone; nothing of it is loaded.

    ``model`` is what :func:`errata.load` takes by name, or an :class:`HFLM`. ``edits`` are their number, of which the
    lengths are assumed, or the edits themselves. ``texts`` are the tokens to prepare with; ``budget`` those in a batch.
    With ``measure`` the machine's rates are measured, in less than a second; else no seconds are told. Raises
    :class:`BadInput` for no edits, and :class:`UnknownSites` for an architecture that cannot be told without numbers.
    """
    about_chat: Any = {"chat": chat, "system": system}
    lm, where = _outlined(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code, **about_chat)
    work = _work(lm, edits, texts)
    if budget is not None and budget < 1:
        raise BadInput(f"a batch holds at least 1 token, found budget={budget}")
    if budget is not None and lm is model:
        raise BadInput("a loaded model has its own budget; set lm.budget")
    lm.budget = budget or lm.budget
    size = Size.of(lm, where.type == "cpu")
    made = _planned(size, method, work, where, rates(where, lm.dtype) if measure else None)
    return made if made.fits else replace(made, warnings=(*_lacking(made), _way_out(made, method, size, work, where)))


def _outlined(model: Any, **about: Any) -> tuple[HFLM, torch.device]:
    from errata.world import bundled

    if not isinstance(model, HFLM):
        return bundled.outline(model, **about)
    if given := [name for name in ("device", "dtype", "chat", "system") if about[name] is not None]:
        raise BadInput(f"a loaded model is planned where and as it is; give its name to plan another {given[0]}")
    model.check()
    return model, model.device


def _work(lm: HFLM, edits: int | Sequence[Edit], texts: int | None) -> Work:
    sampled = texts is None and lm.resources.texts is None
    if texts is not None and texts < 1:
        raise BadInput(f"texts are the tokens to prepare with, at least 1; found {texts}")
    if isinstance(edits, int):
        if edits < 1:
            raise BadInput(f"a plan needs at least 1 edit, found {edits}")
        return Work(edits, texts=texts, sampled=sampled)
    if not edits:
        raise BadInput("a plan needs at least 1 edit, found none")
    return Work.of(lm, edits, texts=texts, sampled=sampled)


def _planned(size: Size, method: Costed, work: Work, where: torch.device, rates: Rates | None) -> Plan:
    lm = size.lm
    steps = tuple(method.cost(size, work))
    loaded = 0 if not lm.model.get_submodule(lm.sites.embed).weight.is_meta else None  # pyright: ignore
    taken = size.weights if loaded == 0 else 0  # its weights are not in what is free any more
    free = (free_on(where), free_host())
    device, host = (None if n is None else n + taken * here for n, here in zip(free, (1, size.on_host), strict=True))
    chosen = getattr(method, "chosen_layers", None)
    return Plan(
        lm.name,
        method.name,
        work.edits,
        str(lm.dtype).removeprefix("torch."),
        str(where),
        size.parameters,
        size.weights,
        None if chosen is None else tuple(chosen(lm)),
        lm.budget,
        steps,
        size.on_host,
        rates,
        device,
        host,
    )


def _lacking(made: Plan) -> list[str]:
    """What does not fit, and where."""
    pairs = [("main memory", made.peak_host, made.free_host, made.host_bytes)]
    if not made.on_host:
        pairs.append((made.device, made.peak_device, made.free_device, made.device_bytes))
    lines: list[str] = []
    for place, needed, free, of_step in pairs:
        if free is not None and MARGIN * needed > free:
            worst = max(made.steps, key=of_step)
            lines.append(
                f"{place}: {needed / GB:.1f} GB are needed (most in: {worst.name}), and {free / GB:.1f} GB are free"
            )
    return lines


def _way_out(made: Plan, method: Costed, size: Size, work: Work, where: torch.device) -> str:
    """Which of the changes that are tried here would fit, or how far the nearest gets."""
    lm, tried = size.lm, list[tuple[str, Plan]]()
    small = replace(size, lm=_with_budget(lm, max(LEAST_BUDGET, lm.budget // 4)))
    halved = replace(size, weights=size.weights * 2 // size.itemsize, kept=size.kept * 2 / size.itemsize, itemsize=2)
    for name, lighter in (("", method), *method.lighter(lm).items()):
        tried += [(f"--set {name}" if name else "", _planned(size, lighter, work, where, None))]
        tried += [(f"{f'--set {name} ' if name else ''}--budget {small.lm.budget}",
                   _planned(small, lighter, work, where, None))]  # fmt: skip
        if size.itemsize > 2:
            tried += [(f"{f'--set {name} ' if name else ''}--dtype bfloat16",
                       _planned(halved, lighter, work, where, None))]  # fmt: skip
    fitting = [name for name, other in tried if other.fits]
    if fitting:
        return f"would fit: {'; '.join(fitting)}"
    name, least = min(tried, key=lambda one: one[1].peak_host + one[1].peak_device)
    needed = f"{least.peak_host / GB:.1f} GB" if made.on_host else f"{least.peak_device / GB:.1f} GB there"
    how = f" (with {name})" if name else ""
    return (
        f"nothing that was tried fits; the least is {needed}{how}: take a larger machine, --device, or a smaller model"
    )


def _with_budget(lm: HFLM, budget: int) -> HFLM:
    from copy import copy

    other = copy(lm)
    other.budget = budget
    return other
