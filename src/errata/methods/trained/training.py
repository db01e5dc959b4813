"""The one training loop: steps, validation, early stop, checkpoints that the same training goes on from."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from errata.errors import BadInput, Refused
from errata.tensor_files import read_tensors, write_tensors

log = logging.getLogger(__name__)

Losses = Mapping[str, float]  # parts of a loss, or of a score, by name


class Trainee(Protocol):
    """What is trained: its network, what adds gradients for a batch, and what is measured on held-out examples."""

    network: nn.Module

    def backward(self, number: int) -> Losses:
        """Adds the gradients of batch ``number`` to the network's parameters; the loss (``loss``) and its parts."""
        ...

    def score(self) -> Losses:
        """What the network reaches on held-out examples: ``score``, higher is better, and its parts."""
        ...


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast a training goes."""

    steps: int
    lr: float
    warmup: float
    clip: float
    check_every: int
    patience: int
    rates: Mapping[str, float] = field(default_factory=dict[str, float])
    """Learning rates of parameters by a part of their name, where they have their own."""

    def factor(self, step: int) -> float:
        """The learning rate of a step, in parts of ``lr``: it rises for ``warmup`` of the steps, then falls to 0."""
        rising = max(1, round(self.warmup * self.steps))
        return min((step + 1) / rising, (self.steps - step) / max(1, self.steps - rising))


@dataclass
class Progress:
    """How far a training has come: what is in a checkpoint besides tensors."""

    step: int = 0
    best: float = float("-inf")
    best_step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list[dict[str, float]])


def train(trainee: Trainee, schedule: Schedule, file: Path | None, what: str) -> Progress:
    """Trains until the steps are done, or ``patience`` validations in a row were no better; how that went.

    The network then has the parameters of its best validation. With ``file`` there is a checkpoint after each
    validation, from which the same training goes on to the same end; it is removed in the end. Raises :class:`Refused`
    where a loss is not finite: the last checkpoint is kept.
    """
    run = _Run(trainee, schedule, file, what)
    run.resume()
    run.go()
    return run.progress


class _Run:
    def __init__(self, trainee: Trainee, schedule: Schedule, file: Path | None, what: str) -> None:
        self.trainee, self.schedule, self.file, self.what = trainee, schedule, file, what
        self.optimizer = torch.optim.Adam(_groups(trainee.network, schedule))
        self.rate = LambdaLR(self.optimizer, schedule.factor)
        self.progress = Progress()
        self.start = self.best = _copied(trainee.network)

    def go(self) -> None:
        began, losses = time.perf_counter() - self.progress.seconds, list[Losses]()
        while self.progress.step < self.schedule.steps and not self._patience_is_out():
            losses.append(self._step())
            self.progress.step += 1
            if self.progress.step % self.schedule.check_every == 0 or self.progress.step == self.schedule.steps:
                self.progress.seconds = time.perf_counter() - began
                self._validate(losses)
                losses = []
        self.trainee.network.load_state_dict(self.best)
        if self.file is not None:
            with suppress(OSError):
                self.file.unlink(missing_ok=True)

    def _step(self) -> Losses:
        network, step = self.trainee.network, self.progress.step
        self.optimizer.zero_grad()
        losses = self.trainee.backward(step)
        norm = nn.utils.clip_grad_norm_(network.parameters(), self.schedule.clip)
        if not (isfinite(losses["loss"]) and isfinite(float(norm))):
            last = self.progress.history[-1]["step"] if self.progress.history else 0
            kept = f"; the checkpoint of step {last} is kept" if self.file and self.file.exists() else ""
            raise Refused(
                f"{self.what}: at step {step} the loss or its gradient is no finite number{kept}; "
                "lower the learning rate (lr), or load the model in float32"
            )
        self.optimizer.step()
        self.rate.step()
        return losses

    def _validate(self, losses: Sequence[Losses]) -> None:
        score, p = self.trainee.score(), self.progress
        mean = {name: sum(some[name] for some in losses) / len(losses) for name in losses[-1]}
        p.history.append({"step": p.step, **_rounded({**mean, **{f"held out {k}": v for k, v in score.items()}})})
        if score["score"] > p.best:
            p.best, p.best_step, self.best = score["score"], p.step, _copied(self.trainee.network)
        left = p.seconds / p.step * (self.schedule.steps - p.step)
        log.info(
            "%s: step %d of %d, loss %.3g, held out %s, best %.3f, at most %.0f s left",
            *(self.what, p.step, self.schedule.steps, mean["loss"]),
            *(", ".join(f"{name} {value:.3f}" for name, value in score.items()), p.best, left),
        )
        self._save()

    def _patience_is_out(self) -> bool:
        return self.progress.step - self.progress.best_step >= self.schedule.patience * self.schedule.check_every

    # Checkpoints

    def _save(self) -> None:
        if self.file is None:
            return
        optimizer = dict(_flat("optimizer", self.optimizer.state_dict()["state"]))
        now = {f"now/{name}": value for name, value in self.trainee.network.state_dict().items()}
        best = {f"best/{name}": value for name, value in self.best.items()}
        info = {"progress": vars(self.progress), "what": self.what}
        try:
            write_tensors(self.file, {**now, **best, **optimizer}, info, "checkpoint")
        except BadInput as error:
            log.warning("no checkpoint: %s", error)
            self.file = None

    def resume(self) -> None:
        """Goes on from the checkpoint, where there is a whole one."""
        if self.file is None or not self.file.is_file():
            return
        try:
            self._load(*read_tensors(self.file, "checkpoint"))
            log.info("%s goes on at step %d", self.what, self.progress.step)
        except (BadInput, KeyError, TypeError, RuntimeError, ValueError) as error:
            log.warning("%s: the checkpoint %s is of no use, and training begins anew: %s", self.what, self.file, error)
            self.progress, self.best = Progress(), self.start
            self.trainee.network.load_state_dict(self.start)

    def _load(self, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> None:
        progress, best = Progress(**info["progress"]), _under("best/", tensors)
        if {name: value.shape for name, value in best.items()} != {n: v.shape for n, v in self.start.items()}:
            raise ValueError("it is of another network")
        self.trainee.network.load_state_dict(_under("now/", tensors))
        state = self.optimizer.state_dict()
        self.optimizer.load_state_dict(state | {"state": _nested(_under("optimizer/", tensors))})
        self.rate.last_epoch = progress.step
        for group, base in zip(self.optimizer.param_groups, self.rate.base_lrs, strict=True):
            group["lr"] = base * self.schedule.factor(progress.step)
        self.progress, self.best = progress, best


def _groups(network: nn.Module, schedule: Schedule) -> list[dict[str, Any]]:
    by_rate: dict[float, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        own = [rate for part, rate in schedule.rates.items() if part in name]
        by_rate.setdefault(own[0] if own else schedule.lr, []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in by_rate.items()]


def _copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _rounded(losses: Losses) -> dict[str, float]:
    return {name: float(f"{value:.4g}") for name, value in losses.items()}


def _flat(prefix: str, state: Mapping[Any, Mapping[str, Any]]) -> Iterator[tuple[str, Tensor]]:
    for i, values in state.items():
        for name, value in values.items():
            yield f"{prefix}/{i}/{name}", torch.as_tensor(value)


def _nested(flat: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in flat.items():
        i, leaf = name.split("/")
        state.setdefault(int(i), {})[leaf] = value
    return state


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
