"""LRE: a relation with its templates and many pairs of subject and object. Edits state what is true.

Hernandez et al. 2024 (https://arxiv.org/abs/2308.09124, evandez/relations: data/factual/, src/data.py).
"""

from collections.abc import Iterator

from errata.data.fields import Record, make_edit, objects, text, texts
from errata.data.formats import Format
from errata.errors import BadInput
from errata.types import Case, Probe


def parts(record: Record) -> Iterator[Record]:
    """Each sample with the name and the templates of its relation."""
    shared = {key: record.get(key) for key in ("name", "prompt_templates", "prompt_templates_zs")}
    yield from (shared | sample for sample in objects(record, "samples"))


def relations(record: Record) -> list[str]:
    """The relation's name with the object: what is true contradicts nothing."""
    return [f"{record['name']} {text(record, 'object')}"]


def _case(record: Record, id: str) -> Case:
    """The first template is the edit's, the other ones are paraphrases; those without examples are labelled so."""
    subject, answer = text(record, "subject"), text(record, "object")
    templates = dict.fromkeys(texts(record, "prompt_templates"), "")
    templates |= {t: "zero-shot" for t in texts(record, "prompt_templates_zs") if t not in templates}
    prompts = [
        (template.replace("{}", subject).strip(), label) for template, label in templates.items() if "{}" in template
    ]
    if not prompts:
        raise BadInput("no template holds {}, the place of the subject")
    probes = (Probe("paraphrase", prompt, (answer,), label=label) for prompt, label in prompts[1:])
    return Case(id, (make_edit(prompts[0][0], subject, answer),), tuple(probes))


LRE = Format(
    "name prompt_templates samples.subject samples.object",
    lambda path: _case,
    "prompt_templates_zs properties _domain _range",
    relations,
    parts,
)
