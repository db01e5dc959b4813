"""Errata's errors. Each message says what was found, what was expected, and what to do next."""


class ErrataError(Exception):
    """The base class of Errata's own errors. ``exit_code`` is that of the command line."""

    exit_code = 2


class BadInput(ErrataError, ValueError):
    """An input cannot be used; nothing has been changed or written."""


class UnknownName(BadInput, KeyError):
    """A name that is not in a table; the message lists near matches."""

    def __str__(self) -> str:  # KeyError would quote the whole message
        return str(self.args[0])


class UnknownSites(BadInput):
    """The modules to edit cannot be found in this architecture without guessing."""


class WrongModel(BadInput):
    """A patch or state belongs to another model."""


class NeedsPrepare(ErrataError):
    """The method needs the state that its ``prepare`` computes."""


class InForce(ErrataError, RuntimeError):
    """The model itself was used while a patch is in force on it; use what ``applied`` yields."""


class Unsupported(ErrataError, TypeError):
    """An operation cannot be done exactly, so it is not done."""


class Unreachable(ErrataError, OSError):
    """An address on the network does not answer, or not as it should; nothing is used in its place."""


class Refused(ErrataError):
    """A check refused the change."""

    exit_code = 3


def unknown(what: str, name: str, known: list[str]) -> UnknownName:
    """The error for a name that is not among ``known``: with near matches, or all known names where none is near."""
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(known))}"
    return UnknownName(f"unknown {what} {name!r}; {hint}")


def first_line(error: BaseException) -> str:
    """What a library's exception says in its first line, and with its type where the words alone would not tell."""
    lines = str(error).strip().splitlines() or [""]
    said = " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])
    plain = said and isinstance(error, OSError | ValueError | RuntimeError)
    return said if plain else f"{type(error).__name__}: {said}"
