"""Fields of a record by name, checked as they are read, and the :class:`Edit` that a record asks for.

Every function raises :class:`BadInput`, which names the field, where a value is not of the expected type.
"""

from collections.abc import Iterable, Mapping
from typing import Any, cast

from errata.errors import BadInput, unknown
from errata.printable import listed, shown
from errata.subjects import as_spelt, last_word
from errata.types import Edit, Probe, as_text

Record = Mapping[str, Any]
RecordAt = tuple[str, Any]  # where a record stands, and the record: a BadInput where it cannot be read


class Excluded(Exception):
    """A valid record that makes no case by a rule of its data set; the message names the rule."""


def get(record: Record, path: str) -> Any:
    """The value under ``a.b.c``; None where there is none."""
    value: Any = record
    for key in path.split("."):
        if not isinstance(value, dict):
            return None
        value = cast("dict[str, Any]", value).get(key)
    return value


def as_object(value: Any, what: str) -> dict[str, Any]:
    """The value, which must be a JSON object; ``what`` names it in the error."""
    if not isinstance(value, dict):
        raise BadInput(f"{what} is a JSON object, found {type(value).__name__}")
    return cast("dict[str, Any]", value)


def as_list(value: Any, what: str) -> list[Any]:
    """The value, which must be a JSON list; ``what`` names it in the error."""
    if not isinstance(value, list):
        raise BadInput(f"{what} are a JSON list, found {type(value).__name__}")
    return cast("list[Any]", value)


def objects(record: Record, path: str) -> list[dict[str, Any]]:
    """The objects of the list under ``path``; empty where there is none."""
    value = get(record, path)
    return [] if value is None else [as_object(item, f"each of {path}") for item in as_list(value, path)]


def text(record: Record, path: str) -> str:
    """The text under ``path``, which must not be empty."""
    value = get(record, path)
    if value is None:
        raise BadInput(f"{path} is missing; found {listed(record)}")
    if not as_text(value, path).strip():
        raise BadInput(f"{path} is empty")
    return value


def optional_text(record: Record, path: str) -> str | None:
    """The text under ``path``; None where there is none or an empty one."""
    value = get(record, path)
    return value if value is not None and as_text(value, path).strip() else None


def texts(record: Record, path: str) -> tuple[str, ...]:
    """The distinct texts of the list under ``path``, or the one text there; empty where there is nothing."""
    value = get(record, path)
    if value is None:
        return ()
    if not isinstance(value, str | list):
        raise BadInput(f"{path} is a text or a list of them, found {type(value).__name__}: {shown(value)}")
    items = [value] if isinstance(value, str) else cast("list[Any]", value)
    return distinct(as_text(item, f"each of {path}") for item in items)


def text_pairs(record: Record, first_path: str, second_path: str) -> list[tuple[str, str]]:
    """The texts of two lists of equal length, in pairs; without pairs of which one is empty."""
    first, second = (
        [as_text(item, f"each of {path}") for item in as_list(get(record, path) or [], path)]
        for path in (first_path, second_path)
    )
    if len(first) != len(second):
        raise BadInput(f"{first_path} and {second_path} go in pairs; found {len(first)} and {len(second)}")
    return [(a, b) for a, b in zip(first, second, strict=True) if a.strip() and b.strip()]


def nested_texts(value: Any, what: str) -> tuple[str, ...]:
    """The distinct texts in lists of any depth (answers with their aliases); ``what`` names the value in the error."""
    if isinstance(value, list):
        return distinct(text for item in cast("list[Any]", value) for text in nested_texts(item, what))
    return distinct([as_text(value, what)])


def distinct(items: Iterable[str]) -> tuple[str, ...]:
    """Each text that is not empty once, in order."""
    return tuple(dict.fromkeys(item for item in items if item.strip()))


def names(value: Any, name: str, aliases: str, what: str) -> tuple[str, ...]:
    """The names of an answer: a text, or an object with a name and a list of other names under those keys."""
    if isinstance(value, dict):
        return distinct((optional_text(value, name) or "", *texts(value, aliases)))
    return distinct([as_text(value, what)])


def case_id(record: Record, key: str, prefix: str, default: str) -> str:
    """The prefix and the record's own number under ``key``; ``default`` where it has none."""
    number = get(record, key)
    return default if number is None else f"{prefix}-{number}"


def make_edit(prompt: str, subject: str | None, target_new: str, target_true: str | None = None) -> Edit:
    """The edit of a record. A subject that the prompt spells in other letter cases is taken as it is spelt there.

    Where a data set names no subject, the whole prompt stands for it: methods that look at the subject's last token
    look at the prompt's last one, as AnyEdit and UnKE do (https://arxiv.org/abs/2502.05628).
    """
    if subject is None:
        subject = prompt
    elif "{}" not in prompt and last_word(prompt, subject) < 0 and (spelt := as_spelt(prompt, subject)):
        subject = spelt.group()
    target_true = (target_true or "").strip() or None
    return Edit(prompt, subject, target_new.strip(), target_true)


def subject_in(prompt: str, subject: str | None) -> str | None:
    """The subject where the prompt names it as a word, whatever its letter cases; otherwise None."""
    return subject if subject and as_spelt(prompt, subject) else None


def statement_edit(statement: str, subject: str | None = None) -> Edit:
    """The edit that a statement asks for: what stands behind its subject where that is named, else its second half.

    Some data sets state an edit in sentences, without a question. The statement is what prompt and target are together.
    """
    named = as_spelt(statement, subject) if subject else None
    if named and statement[named.end() :].strip(" .!?"):
        return make_edit(statement[: named.end()], named.group(), statement[named.end() :])
    words = statement.split()
    if len(words) < 2:
        raise BadInput(f"a statement has two words at least, found {shown(statement)}")
    half = (len(words) + 1) // 2
    return make_edit(" ".join(words[:half]), None, " ".join(words[half:]))


def asked_once(edits: Iterable[Edit], probes: Iterable[Probe]) -> tuple[Probe, ...]:
    """The probes without those whose prompt an edit or an earlier probe asks with other answers."""
    first: dict[str, tuple[str, ...]] = {edit.prompt: (edit.target_new,) for edit in edits}
    return tuple(
        probe for probe in probes if not probe.answers or first.setdefault(probe.prompt, probe.answers) == probe.answers
    )


def choice(option: str, value: str, known: tuple[str, ...]) -> str:
    """The value of an option, which must be one of the known ones. Raises ``UnknownName`` with near matches."""
    if value not in known:
        raise unknown(f"value of {option}", value, list(known))
    return value
