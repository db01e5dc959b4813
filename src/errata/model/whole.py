"""Whether what transformers made of a model's files is the whole model, in numbers."""

import logging
import re
from typing import Any

import torch

from errata.errors import BadInput

log = logging.getLogger(__name__)


def check_whole(name: str, network: Any, found: dict[str, Any]) -> None:
    """Raises :class:`BadInput` where weights are missing, of another shape, or no finite numbers.

    ``found`` is what ``from_pretrained`` says of its loading: it fills at random what it does not find.
    """
    if missing := sorted(found["missing_keys"]):
        raise BadInput(
            f"{name} lacks {len(missing)} weights that its config.json calls for, which would be random numbers: "
            f"{_some(missing)}; fetch or save the whole model"
        )
    if other := sorted(found["mismatched_keys"]):
        shapes = [f"{key} is {tuple(here)} and should be {tuple(wanted)}" for key, here, wanted in other]
        raise BadInput(
            f"{name} holds {len(other)} weights of another shape than its config.json says: {_some(shapes)}; "
            "the two are of different models"
        )
    unread, here = sorted(found["unexpected_keys"]), {_kind(key) for key, _ in network.named_parameters()}
    if blocks := [key for key in unread if _kind(key) in here]:
        raise BadInput(
            f"{name} holds {len(blocks)} weights of blocks that its config.json does not call for: {_some(blocks)}; "
            "without them it is another model: give its number of layers there"
        )
    if unread:
        log.warning("%s holds %d weights that the model has no use for: %s", name, len(unread), _some(unread))
    if broken := [key for key, weight in network.named_parameters() if not finite(weight)]:
        raise BadInput(
            f"{name} holds {len(broken)} weights with NaN or infinity in {name_of(network.dtype)}: {_some(broken)}; "
            "every answer would be NaN"
        )


def finite(weight: torch.Tensor) -> bool:
    """Whether every number of a weight is finite; True for one that holds no floats here (quantised, offloaded).

    A sum is not finite where a number is not, and takes a tenth of the time; it may overflow, and then each is asked.
    """
    whole = type(weight.data) is torch.Tensor and weight.is_floating_point() and weight.dtype.itemsize > 1
    if weight.is_meta or not whole:
        return True
    return bool(weight.detach().sum().isfinite()) or bool(weight.detach().isfinite().all())


def _kind(key: str) -> str:
    """The name of a weight whatever its block: with a star for each number."""
    return re.sub(r"\.\d+(?=\.)", ".*", key)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def name_of(dtype: Any) -> str:
    """``float32`` for ``torch.float32`` and for itself."""
    return str(dtype).removeprefix("torch.")
