"""Free text read by a language model behind an OpenAI-compatible address, and what it says held against the text.

Asked only where somebody named the address: the text goes there, and nothing else. A reader that says what the text
does not hold is an error; nothing is put in its place.
"""

from typing import Any, cast

from errata.completions import Completions, without_key
from errata.errors import BadInput, Unreachable
from errata.free_text.readings import Reading
from errata.free_text.sentences import sentences
from errata.inputs import parsed
from errata.printable import shown
from errata.types import Edit

RULES = """You turn statements into edits of a language model's facts. For each fact that the text says is now true give
subject: the one thing that the fact is about, as the text names it;
prompt: the beginning of a sentence that names the subject, states the relation, and ends right before the answer;
target_new: the new answer, in the text's own words;
target_true: the answer that the text says is no longer true, in its own words, or null.
Leave out questions, wishes and what is only possible. Add nothing that the text does not say.
Reply with a JSON list of objects with these four keys and nothing else.
Example: "Acme's chief executive is now Jane Doe, not John Roe." gives
[{"subject": "Acme", "prompt": "Acme's chief executive is", "target_new": "Jane Doe", "target_true": "John Roe"}]"""
KEYS = ("subject", "prompt", "target_new", "target_true")
MOST = 20_000  # characters of a text


def read(service: Completions, text: str) -> list[Reading]:
    """The edits that the model at an address finds in a text, each a reading.

    Raises :class:`Unreachable` where it cannot be asked or does not reply as it should, and :class:`BadInput` where it
    finds no edit.
    """
    if len(text) > MOST:
        raise BadInput(f"a text has {MOST:,} characters at most, found {len(text):,}; give it in parts")
    messages = [{"role": "system", "content": RULES}, {"role": "user", "content": text}]
    said = service.said(service.body(messages))
    records = _records(service, said)
    if not records:
        raise BadInput(f"{service.model} finds no edit in {shown(text)}; say what shall be true, and of what")
    return [_reading(service, text, record) for record in records]


def _records(service: Completions, said: str) -> list[Any]:
    """The list in a reply, fenced or not."""
    bare = said.strip()
    if bare.startswith("```"):
        bare = bare.partition("\n")[2].rpartition("```")[0]
    try:
        records = parsed(bare)
    except BadInput:
        records = None
    if not isinstance(records, list):
        raise _unusable(service, f"said {shown(without_key(said))}, and no JSON list of edits")
    return cast("list[Any]", records)


def _reading(service: Completions, text: str, record: Any) -> Reading:
    """The edit of one record, of whose parts none may be invented."""
    if not isinstance(record, dict) or set(cast("dict[str, Any]", record)) - set(KEYS):
        raise _unusable(service, f"gave {shown(record)}, and no object with {', '.join(KEYS)}")
    fields = cast("dict[str, Any]", record)
    old = fields.get("target_true") or None
    for name in KEYS:
        value = fields.get(name)
        if not isinstance(value, str) and not (name == "target_true" and value is None):
            raise _unusable(service, f"gave no text as {name} in {shown(record)}")
        if name != "prompt" and value and _words(value) not in _words(text):
            raise _unusable(service, f"gave {name} {shown(value)}, which the text does not say")
    try:
        edit = Edit(fields["prompt"], fields["subject"], fields["target_new"], old)
    except BadInput as error:
        raise _unusable(service, f"gave an edit that is none ({error})") from error
    named = [
        one for one in sentences(text) if _words(edit.subject) in _words(one) and _words(edit.target_new) in _words(one)
    ]
    return Reading(edit, named[0] if named else text.strip(), f"read by {service.model}")


def _words(text: str) -> str:
    return " ".join(text.split()).casefold()


def _unusable(service: Completions, what: str) -> Unreachable:
    return Unreachable(f"the reader {service.model} {what}; take another --reader-model, or leave out {service.option}")
