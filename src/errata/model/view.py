"""A transformers model with its tokenizer and sites, and which object may use it while a patch is in force."""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import torch
from torch import nn

from errata.errors import BadInput
from errata.model import passes
from errata.model.added import InterventionSite
from errata.model.asked import Asked, label_of
from errata.model.caches import Caching, caching_of
from errata.model.chat import Template
from errata.model.configuration import text_config
from errata.model.detect import find_sites
from errata.model.fingerprint import fingerprint
from errata.model.in_use import use_of
from errata.model.intervention import Pass
from errata.model.lm import Call
from errata.model.passes import cache_argument
from errata.model.resources import Resources
from errata.model.sites import Sites
from errata.model.tokens import Tokens
from errata.model.weights import packed
from errata.model.workers import Workers

log = logging.getLogger(__name__)

NONE = Resources()
BUDGET = 4096  # tokens in a batch, padding included
T = TypeVar("T")


@dataclass(eq=False)
class _Shared:
    """What all views of one model have in common."""

    call: ContextVar[Call | None] = field(default_factory=lambda: ContextVar("call", default=None))
    # does a kind of suffix pass hold at this site, for rows that have a prefix or not, padded in front or not?
    # and that are behind texts that were run before?
    suffix_holds: dict[tuple[type[Pass], InterventionSite, bool, bool, bool, bool], bool] = field(default_factory=dict)
    begun: tuple[Any, Any] | None = None  # the texts that rows began with last, and what was read of them
    # do rows whose shared beginnings are in a cache give what whole rows do, in a way, beginnings padded or not?
    sharing_holds: dict[tuple[Callable[..., Any], bool], bool] = field(default_factory=dict)
    caching: Caching | None = None


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
    text_config: Any
    """The part of it that describes the language model, where it has several; else the whole."""
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
    workers: Workers | None = None
    """Processes that hold a copy of it each, where there are some (:mod:`errata.distributed.attach`)."""
    origin: "Callable[[], Self] | None" = None
    """Loads it once more, in another process; None for a model that was given in memory."""
    bare: bool = True
    """Whether nothing is in force here that a patch does: true of the model itself, and of a patch without parts."""
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
        template: Template | None = None,
    ) -> None:
        """Sites are found in the model where none are given (:func:`errata.model.detect.find_sites`).

        With a ``template`` prompts are asked in a chat.
        """
        self.model, self.tokenizer, self.name, self.budget = model, tokenizer, name, budget
        self.resources = resources
        self.config, self.text_config = model.config, text_config(model.config)
        self.seq2seq = bool(getattr(self.config, "is_encoder_decoder", False))
        self.explainers = []
        self._use, self._shared = use_of(model), _Shared()
        self._inside: ExitStack | None = None  # undoes the patch that this view speaks through
        with self._use.lock:
            self._use.check(None)
            self._use.fingerprint = None  # whoever made it may have changed weights since
            model.eval()
            self.sites = sites or find_sites(model)
        self.tokens = self._tokens(template)

    def _tokens(self, template: Template | None) -> Tokens:
        rows = getattr(self.model.get_submodule(self.sites.embed), "num_embeddings", None)
        about_chat: Any = {"template": template, "stops": stops_of(self.model)}
        return Tokens(self.tokenizer, _limit(self.text_config), self.seq2seq, rows, **about_chat)

    def behind(self, turns: Sequence[tuple[str, str]]) -> Self:
        """The same model, asked in a chat behind earlier turns of a user and the assistant.

        Patches go on it as on the model itself, and wrappers see the prompt alone. Raises :class:`BadInput` where the
        model is asked in plain text: there a prompt holds what was said before.
        """
        if self.tokens.template is None:
            raise BadInput(
                f"{self.name or 'the model'} is asked in plain text, which has no turns; load with chat=True (--chat)"
            )
        view = copy.copy(self)
        view.tokens = self._tokens(Template.of(self.tokenizer, self.tokens.template.system, turns))
        return view

    @contextmanager
    def changed(self, make: Callable[[Self, ExitStack], T]) -> Iterator[T]:
        """Context manager: yields what ``make(view, undo)`` returned, for the length of the block.

        Of all views the new one alone may run the model then, which ``make`` may change; it puts on ``undo`` what
        changes it back. No other thread runs the model while it is changed. For ``Patch.applied``. Raises
        :class:`InForce` if this view may not run the model itself.
        """
        view = copy.copy(self)
        view.explainers, view.bare = list(self.explainers), False

        def put_on(undo: ExitStack) -> T:
            view._inside = undo
            return make(view, undo)

        _ = self.fingerprint, self.caching  # computed before anything changes
        with self._use.changed(self._inside, put_on) as made:
            yield made

    def check(self) -> None:
        """Raises :class:`InForce` if a patch is in force on the model that this view does not include, and
        :class:`BadInput` while the model is in training mode, in which dropout makes its answers random."""
        self._use.check(self._inside)
        if any(module.training for module in self.model.modules()):
            raise BadInput("the model is in training mode, and its answers would be random; call lm.model.eval() first")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Context manager: no other thread runs the model or puts a patch on it; those that would, wait."""
        with self._use.lock:
            yield

    @property
    def unedited(self) -> bool:
        """Whether this is the model itself, not a view with a patch in force."""
        return self._inside is None

    @property
    def chat(self) -> bool:
        """Whether prompts are asked under the tokenizer's chat template."""
        return self.tokens.template is not None

    @property
    def asked(self) -> Asked:
        """Under which chat template and system message prompts are asked, if any."""
        return Asked.under(self.tokens.template)

    @property
    def asked_label(self) -> str:
        """The same for rows (:func:`errata.model.asked.label_of`): empty where the tokenizer has no chat template."""
        return label_of(self.tokenizer, self.tokens.template, self.seq2seq)

    @property
    def quantised(self) -> bool:
        """Whether weights of linear layers are stored in fewer bits than floats have."""
        return any(packed(self.model))

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of the unedited model: configuration, shapes, weights."""
        with self.alone():
            if self._use.fingerprint is None:
                self._use.check(None)
                self._use.fingerprint = fingerprint(self.model)
            return self._use.fingerprint

    def forget_fingerprint(self) -> None:
        """Compute the fingerprint anew when it is next needed: after the weights were changed for good.

        Raises :class:`InForce` while a patch is in force.
        """
        with self.alone():
            self._use.check(None)
            self._use.fingerprint = None

    @property
    def call(self) -> Call | None:
        """The :class:`Call` that runs in this thread; None outside of one."""
        return self._shared.call.get()

    @contextmanager
    def calling(self, call: Call) -> Iterator[None]:
        """Context manager: passes inside it belong to ``call``, which adapters see. One thread at a time.

        Raises :class:`InForce` as :meth:`check` does: another thread may have put a patch on since.
        """
        with self.alone():
            self._use.check(self._inside)
            token = self._shared.call.set(call)
            try:
                yield
            finally:
                self._shared.call.reset(token)

    @property
    def caching(self) -> Caching:
        """What the model does with a cache and with padding; measured when it is first needed, and said."""
        with self.alone():
            if self._shared.caching is None:
                self._use.check(self._inside)
                self._shared.caching = found = caching_of(self.model, self.sites, self.quantised)
                if cache_argument(self.model) and not (found.steps and found.spans):
                    slow = "whole texts are run at each step" if not found.steps else "full passes are used for edits"
                    log.warning("%s gives other logits behind a cache; %s, slower", self.name, slow)
            return self._shared.caching

    @property
    def device(self) -> torch.device:
        """The device on which token ids go in."""
        return passes.input_device(self.model, self.sites)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the embedding's weights."""
        return self.model.get_submodule(self.sites.embed).weight.dtype  # pyright: ignore[reportReturnType]


def stops_of(model: Any) -> tuple[int, ...]:
    """The ids at which the model stops, as its generation configuration or else its configuration says."""
    for config in (getattr(model, "generation_config", None), model.config):
        stops = getattr(config, "eos_token_id", None)
        if stops is not None:
            return (stops,) if isinstance(stops, int) else tuple(stops)
    return ()


def _limit(config: Any) -> int | None:
    """How many tokens the model can read, where its configuration says so."""
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None
