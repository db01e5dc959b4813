"""CounterFact: as its authors publish it, with CounterFact+'s distracting neighbours, and flat.

Meng et al. 2022 (https://arxiv.org/abs/2202.05262, kmeng01/rome: dsets/counterfact.py, dsets/attr_snippets.py);
Hoelscher-Obermaier et al. 2023 (https://arxiv.org/abs/2305.17553, apartresearch/specificityplus:
experiments/py/eval_utils_counterfact.py); the flat form is EasyEdit's, and WikiBigEdit's.
"""

from collections.abc import Mapping
from pathlib import Path

from errata.data.fields import Record, case_id, distinct, make_edit, objects, optional_text, text, texts
from errata.data.formats import Format, MakeCase
from errata.data.records import read_records
from errata.errors import BadInput
from errata.types import Case, Probe

SNIPPETS = "attribute_snippets.json"
KEYS = "requested_rewrite.target_new.str requested_rewrite.subject neighborhood_prompts"
OTHER_KEYS = "case_id pararel_idx paraphrase_prompts attribute_prompts generation_prompts"

References = Mapping[tuple[str, str], tuple[str, ...]]  # (relation, object) -> texts about subjects that have it


def reader(path: Path | None, plus: bool = False) -> MakeCase:
    """Cases of the published records; ``plus`` adds each neighbour behind the edited statement (``distractor``).

    The texts of ``attribute_snippets.json`` beside the file become the references of the generation prompts.
    """
    references = read_references(path.with_name(SNIPPETS)) if path is not None else {}
    return lambda record, id: _case(record, id, references, plus)


def relations(record: Record) -> list[str]:
    """The relation's id of the record's edit; empty where it has none."""
    relation = optional_text(record, "requested_rewrite.relation_id")
    return [relation] if relation else []


def read_references(path: Path) -> References:
    """The texts of attribute snippets, each list of them held once; empty where there is no such file."""
    if not path.is_file():
        return {}
    references: dict[tuple[str, str], tuple[str, ...]] = {}
    for position, record in read_records(path):
        if isinstance(record, BadInput):
            raise BadInput(f"{path}, {position}: {record}")
        key = text(record, "relation_id"), text(record, "target_id")
        snippets = [text(sample, "text") for sample in objects(record, "samples")]
        references[key] = distinct((*references.get(key, ()), *snippets))
    return references


def _case(record: Record, id: str, references: References, plus: bool) -> Case:
    rewrite = "requested_rewrite"
    new, true = text(record, f"{rewrite}.target_new.str"), text(record, f"{rewrite}.target_true.str")
    edit = make_edit(text(record, f"{rewrite}.prompt"), text(record, f"{rewrite}.subject"), new, true)
    neighbours = texts(record, "neighborhood_prompts")
    key = (
        optional_text(record, f"{rewrite}.relation_id") or "",
        optional_text(record, f"{rewrite}.target_new.id") or "",
    )
    generation = texts(record, "generation_prompts")
    probes = [
        *(Probe("paraphrase", prompt, (new,), rival=true) for prompt in texts(record, "paraphrase_prompts")),
        *(Probe("neighborhood", prompt, (true,), rival=new) for prompt in neighbours),
        *(Probe("attribute", prompt, (new,), rival=true) for prompt in texts(record, "attribute_prompts")),
        *(Probe("generation", prompt, references=references.get(key, ())) for prompt in generation),
    ]
    if plus:
        statement = f"{edit.prompt} {new}. "
        probes += [Probe("distractor", statement + prompt, (true,), rival=new) for prompt in neighbours]
    return Case(case_id(record, "case_id", "counterfact", id), (edit,), tuple(probes))


def _flat_case(record: Record, id: str) -> Case:
    new, true = text(record, "target_new"), optional_text(record, "ground_truth")
    edit = make_edit(text(record, "prompt"), text(record, "subject"), new, true)
    answers = texts(record, "locality_ground_truth")
    probes = [
        *(Probe("paraphrase", prompt, (new,), rival=true) for prompt in texts(record, "rephrase_prompt")),
        *(Probe("neighborhood", prompt, answers, rival=new) for prompt in texts(record, "locality_prompt")),
    ]
    return Case(case_id(record, "case_id", "counterfact", id), (edit,), tuple(probes))


COUNTERFACT = Format(KEYS, reader, OTHER_KEYS, relations)
COUNTERFACT_PLUS = Format(KEYS, lambda path: reader(path, plus=True), OTHER_KEYS, relations)
FLAT = Format(
    "prompt target_new subject rephrase_prompt",
    lambda path: _flat_case,
    "case_id ground_truth locality_prompt locality_ground_truth",
)
