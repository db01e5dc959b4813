"""A transformers model with its tokenizer and sites, and which object may use it while a patch is in force."""

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Self

import torch
from torch import nn

from errata.errors import InForce
from errata.model import passes
from errata.model.detect import find_sites
from errata.model.fingerprint import fingerprint
from errata.model.intervention import InterventionSite
from errata.model.lm import Call
from errata.model.resources import Resources
from errata.model.sites import Sites
from errata.model.tokens import Tokens
from errata.model.weights import packed

NONE = Resources()
BUDGET = 4096  # tokens in a batch, padding included


@dataclass(eq=False)
class _Shared:
    """What all views of one model have in common."""

    numbers: Any = field(default_factory=lambda: count(1))  # of the views to come
    in_force: list[int] = field(default_factory=lambda: [0])  # views, the innermost last; 0 is the unedited model
    call: ContextVar[Call | None] = field(default_factory=lambda: ContextVar("call", default=None))
    lock: Any = field(default_factory=threading.RLock)
    fingerprint: str | None = None
    # does the suffix pass hold at this site, for rows that have a prefix or not, padded in front or not?
    suffix_holds: dict[tuple[InterventionSite, bool, bool], bool] = field(default_factory=dict)
    # do rows whose shared beginnings are in a cache give what whole rows do, beginnings padded or not?
    sharing_holds: dict[bool, bool] = field(default_factory=dict)


class ModelView:
    """A transformers model, or the edited model as seen from inside a ``patch.applied`` block.

    Of all views of one model only the innermost may run it: ``lm`` itself is refused while a patch is in force.
    """

    model: nn.Module
    """The transformers model, in evaluation mode. Only ``Patch.applied`` and ``Patch.merge`` change its parameters."""
    tokenizer: Any
    """Its transformers tokenizer."""
    tokens: Tokens
    """What the tokenizer makes of prompts, targets and subjects."""
    config: Any
    """Its configuration (``model.config``)."""
    sites: Sites
    """Paths of its modules."""
    resources: Resources
    """What goes with the model besides its weights: texts, training cases, templates. May be assigned."""
    name: str
    """Name in tables, messages and patch files; it does not identify the model (:attr:`fingerprint` does)."""
    budget: int
    """Tokens that a batch may hold, padding included. Bounds the memory of every pass."""
    seq2seq: bool
    """Whether it is an encoder-decoder."""
    explainers: list[Callable[[Call], Sequence[str | None]]]
    """``Adapter.explain`` of each adapter in force here; empty where none is."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        sites: Sites | None = None,
        resources: Resources = NONE,
        name: str = "",
        budget: int = BUDGET,
    ) -> None:
        """Sites are found in the model where none are given (:func:`errata.model.detect.find_sites`)."""
        self.model, self.tokenizer, self.name, self.budget = model, tokenizer, name, budget
        self.resources = resources
        self.config = model.config
        self.seq2seq = bool(getattr(self.config, "is_encoder_decoder", False))
        self.sites = sites or find_sites(model)
        self.tokens = Tokens(tokenizer, _limit(self.config), self.seq2seq)
        self.explainers = []
        self._shared, self._view = _Shared(), 0
        model.eval()

    @contextmanager
    def exclusive_view(self) -> Iterator[Self]:
        """Context manager: a view of the model that alone may run it for the length of the block.

        For ``Patch.applied``. Raises :class:`InForce` if this view may not run the model itself.
        """
        self.check()
        view = copy.copy(self)
        view._view = next(self._shared.numbers)
        view.explainers = list(self.explainers)
        self.fingerprint  # noqa: B018  computed before anything changes
        self._shared.in_force.append(view._view)
        try:
            yield view
        finally:
            self._shared.in_force.remove(view._view)

    def check(self) -> None:
        """Raises :class:`InForce` if a patch is in force on the model that this view does not include."""
        if self._shared.in_force[-1] != self._view:
            raise InForce(
                "a patch is in force on this model; ask what `with patch.applied(lm) as edited` gave, "
                "or leave that block first"
            )

    @property
    def unedited(self) -> bool:
        """Whether this is the model itself, not a view with a patch in force."""
        return self._view == 0

    @property
    def quantised(self) -> bool:
        """Whether weights of linear layers are stored in fewer bits than floats have."""
        return any(packed(self.model))

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of the unedited model: configuration, shapes, sampled weights."""
        if self._shared.fingerprint is None:
            self._shared.fingerprint = fingerprint(self.model)
        return self._shared.fingerprint

    def forget_fingerprint(self) -> None:
        """Compute the fingerprint anew when it is next needed: after the weights were changed for good."""
        self._shared.fingerprint = None

    @property
    def call(self) -> Call | None:
        """The :class:`Call` that runs in this thread; None outside of one."""
        return self._shared.call.get()

    @contextmanager
    def calling(self, call: Call) -> Iterator[None]:
        """Context manager: passes inside it belong to ``call``, which adapters see. One thread at a time."""
        with self._shared.lock:
            token = self._shared.call.set(call)
            try:
                yield
            finally:
                self._shared.call.reset(token)

    @property
    def device(self) -> torch.device:
        """The device on which token ids go in."""
        return passes.input_device(self.model, self.sites)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the embedding's weights."""
        return self.model.get_submodule(self.sites.embed).weight.dtype  # pyright: ignore[reportReturnType]


def _limit(config: Any) -> int | None:
    """How many tokens the model can read, where its configuration says so."""
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None
