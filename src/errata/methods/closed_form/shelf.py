"""Where second moments are kept while they are made: in main memory, or where there are too many of them in files.

A mixture of experts has one for each of them, more together than main memory should hold, of which an edit reads a few.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from errata.errors import BadInput
from errata.files import cache_folder, unfinished
from errata.methods.closed_form.symmetric import ROOM
from errata.model.gram import HELD
from errata.model.projection import Projection
from errata.model.weights import shape_of

log = logging.getLogger(__name__)

READING = 8_000_000_000  # bytes of sums that are made in one reading of the texts; or those of one layer
Put = Callable[[Tensor], Tensor]  # a matrix that is made -> the same where it is kept


def entries(model: nn.Module, projections: Sequence[Projection]) -> int:
    """Of the matrices (f, f) of all weights."""
    return sum(shape_of(model, name)[1] ** 2 for one in projections for name in one.weights(model))


def too_many(model: nn.Module, projections: Sequence[Projection]) -> bool:
    """Whether the second moments of these are kept in files."""
    return 4 * entries(model, projections) > ROOM


def in_groups(model: nn.Module, projections: Sequence[Projection]) -> list[list[Projection]]:
    """The projections whose sums are made in one reading: of a layer, and of as many more as READING has room for."""
    groups: list[list[Projection]] = []
    for projection in projections:
        if groups and HELD * entries(model, [*groups[-1], projection]) <= READING:
            groups[-1].append(projection)
        else:
            groups.append([projection])
    return groups


@contextmanager
def shelf(in_files: bool) -> Iterator[Put]:
    """Context manager: what keeps a matrix, in main memory or in a file that is gone behind the block.

    A file's matrix is read and written by the system as it is used, and stays while somebody holds it, as unnamed
    files do.
    """
    with ExitStack() as stack:
        folder = None
        if in_files:
            try:
                folder = stack.enter_context(unfinished(cache_folder()))
            except (BadInput, OSError) as error:
                log.warning("all second moments are held in memory: %s (ERRATA_CACHE names the folder)", error)
        yield Tensor.cpu if folder is None else partial(_in_file, folder)


def _in_file(folder: Path, matrix: Tensor) -> Tensor:
    """The matrix in a new file of the folder."""
    path = folder / str(len(list(folder.iterdir())))
    kept = torch.from_file(str(path), shared=True, size=matrix.numel(), dtype=matrix.dtype)
    return kept.view(matrix.shape).copy_(matrix)
