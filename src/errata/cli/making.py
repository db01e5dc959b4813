"""Models, workers and methods, made of what the options of a command say."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata import inputs
from errata.cli.given import named_values
from errata.cli.terminal import set_up_logs, step
from errata.errors import BadInput

if TYPE_CHECKING:
    from errata.distributed.pool import Pool
    from errata.methods.base import Method
    from errata.model.hf import HFLM


def load_model(
    name: str,
    device: str | None,
    dtype: str | None,
    quiet: bool,
    trust_remote_code: bool = False,
    chat: bool | None = None,
    system: str | None = None,
) -> "HFLM":
    """``errata.load``, with progress on stderr."""
    import errata

    set_up_logs(quiet)
    about_chat: Any = {"chat": chat, "system": system}
    with step(f"loading {name}", quiet):
        return errata.load(name, device=device, dtype=dtype, trust_remote_code=trust_remote_code, **about_chat)


def check_workers(count: int, threads: int, address: str | None) -> None:
    """Raises :class:`BadInput` where options of workers are given without them, and where Ray is not installed."""
    if count:
        from errata.distributed.pool import import_ray

        import_ray()
    elif threads != 1 or address is not None:
        raise BadInput("--threads and --ray-address are of workers; say how many with --workers")


@contextmanager
def worker_pool(count: int, threads: int, address: str | None, device: str | None) -> "Iterator[Pool | None]":
    """Context manager: the worker processes that were asked for, to load what they are told; None for none of them."""
    check_workers(count, threads, address)
    if not count:
        yield None
        return
    from errata.distributed.pool import Pool
    from errata.model.loading import accelerators

    with Pool(count, threads=threads, address=address, accelerators=accelerators(device)) as pool:
        yield pool


@contextmanager
def attached(lm: "HFLM", count: int, threads: int, address: str | None) -> Iterator[None]:
    """Context manager: the model has the workers that were asked for."""
    if not count:
        yield
        return
    from errata.distributed.attach import workers

    with workers(lm, count, threads=threads, address=address):
        yield


def make_method(name: str, settings: Sequence[str] | None, seed: int = 0, file: Path | None = None) -> "Method":
    """The method with settings as typed (``name=value``), which go before those of a file.

    Raises :class:`BadInput` or :class:`UnknownName`.
    """
    import errata
    from errata.methods.registry import method_class
    from errata.methods.settings import from_text

    typed = named_values("--set", settings)
    if seed:
        if "seed" in typed:
            raise BadInput("the seed is given twice, by --seed and by --set seed; leave one out")
        typed["seed"] = str(seed)
    given = from_text(method_class(name), typed)
    if file is None:
        return errata.method(name, **given)
    read = inputs.read_settings(file)
    try:
        return errata.method(name, **(read | given))
    except BadInput as error:
        other = inputs.read_found(file).get("for", name)
        way = "" if other == name else f"; the file was made for the method {other}: give --method {other}"
        raise type(error)(f"{file}: {error}{way}") from error


def check_settings_file(file: Path | None, method: "Method", name: str, fingerprint: str | None = None) -> None:
    """Warns where a file of settings was made for another method or model; a plan's model has no fingerprint."""
    if file is not None:
        from errata.locate.found import warn_of_origin

        warn_of_origin(file, method.name, name, fingerprint)
