"""MzsRE and BMIKE-53: an edit in one language, and the same questions in others.

Wang et al. 2023, ReMaKE (https://arxiv.org/abs/2312.13040); Nie et al. 2024, BMIKE-53
(https://arxiv.org/abs/2406.17764; shaobo9856/DistillBMIKE: data/MzsRE, data/MCounterFact, data/WikiFactDiff). A record
holds English and one more language.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from errata.data.fields import Record, as_object, asked_once, case_id, make_edit, optional_text, text, texts
from errata.data.formats import Format, MakeCase
from errata.errors import BadInput
from errata.printable import shown
from errata.types import Case, Probe


def reader(path: Path | None, *, language: str = "en") -> MakeCase:
    """Cases whose edit is in one ``language``; each probe is labelled with its own, such as "en" or "fr"."""

    def case(record: Record, id: str) -> Case:
        languages = {name: as_object(part, name) for name, part in record.items()}
        if language not in languages:
            raise BadInput(f"there is no language {shown(language)}; found {', '.join(languages)}")
        own = languages[language]
        edit = make_edit(text(own, "src"), text(own, "subject"), text(own, "alt"), optional_text(own, "old"))
        probes = [probe for name, part in languages.items() for probe in _probes(part, name, name == language)]
        return Case(case_id(own, "case_id", "mzsre", id), (edit,), asked_once((edit,), probes))

    return case


def _probes(record: dict[str, Any], language: str, edited: bool) -> Iterator[Probe]:
    """The questions of one language; of those not edited, the edit's own question is one in other words."""
    new = (text(record, "alt"),)
    for key in ("rephrase",) if edited else ("src", "rephrase"):
        for prompt in texts(record, key):
            yield Probe("paraphrase", prompt, new, label=language)
    if question := optional_text(record, "portability.New Question"):
        yield Probe("one_hop", question, texts(record, "portability.New Answer"), label=language)
    for prompt in texts(record, "loc"):
        yield Probe("unrelated", prompt, texts(record, "loc_ans"), label=language)


MZSRE = Format("en.src en.alt en.subject", reader, "*")
