"""Headings of tables and pictures and their order: the one place that words what rows measure."""

from collections.abc import Mapping

from errata.types import Row

HOPS = {"2 hops": "two hops", "3 hops": "three hops", "4 hops": "four hops"}  # labels of multi-hop questions
NAMES = {  # of kinds, in the order in which they are shown
    "edit": "reliability",
    "paraphrase": "paraphrases",
    "question": "questions",
    "alias": "alias",
    "inverse": "inverse",
    "logical": "logical",
    "one_hop": "one hop",
    **{f"multi_hop {label}": words for label, words in HOPS.items()},
    "multi_hop": "several hops",
    "new_single_hop": "single hops",
    "single_hop": "old single hops",
    "neighborhood": "neighbours",
    "same_subject": "same subject",
    "preservation": "other objects",
    "attribute": "same new object",
    "unrelated": "unrelated",
    "distractor": "distracted neighbours",
    "other_task": "other tasks",
    "in_context": "facts in context",
    "generation": "texts",
}
SEVERAL_METRICS = tuple(NAMES)[tuple(NAMES).index("neighborhood") :]  # kinds whose metric is always named

COLUMNS: Mapping[tuple[str, str], str] = {  # of a table of methods: (kind, metric) -> heading
    ("edit", "accuracy"): NAMES["edit"],
    ("edit", "rouge_l"): "ROUGE-L of the text",
    ("paraphrase", "accuracy"): NAMES["paraphrase"],
    ("paraphrase", "rouge_l"): "ROUGE-L, paraphrases",
    ("question", "accuracy"): NAMES["question"],
    ("neighborhood", "agreement"): f"{NAMES['neighborhood']}: agreement",
    ("neighborhood", "accuracy"): f"{NAMES['neighborhood']}: accuracy",
    ("same_subject", "accuracy"): NAMES["same_subject"],
    ("unrelated", "agreement"): f"{NAMES['unrelated']}: agreement",
    ("unrelated", "accuracy"): f"{NAMES['unrelated']}: accuracy",
    ("alias", "accuracy"): NAMES["alias"],
    ("inverse", "accuracy"): NAMES["inverse"],
    ("one_hop", "accuracy"): NAMES["one_hop"],
    **{(kind, "accuracy"): words for kind, words in NAMES.items() if kind.startswith("multi_hop")},
    ("in_context", "accuracy"): NAMES["in_context"],
    ("gold", "to_gold"): "to gold",
    ("text", "loss"): "loss on text",
    ("text", "perplexity"): "perplexity on text",
    ("drift", "norm"): "‖Δ‖ / ‖W‖",
    ("drift", "relative_output_change"): "change of outputs",
    ("drift", "low"): "low-variance share",
    ("drift", "effective"): "effective rank",
    ("cost", "edits_endured"): "edits endured",
    ("cost", "seconds_per_edit"): "seconds per edit",
    ("cost", "kilobytes_per_edit"): "KB per edit",
    ("cost", "peak_mib"): "peak MiB",
}

COMPARED = tuple(key for key in COLUMNS if key[1] in ("accuracy", "agreement"))  # methods, case by case
GENERALITY = (COLUMNS["paraphrase", "accuracy"], COLUMNS["question", "accuracy"])  # the first that was asked
LOCALITY = (COLUMNS["neighborhood", "agreement"], COLUMNS["unrelated", "agreement"])

# Of a table of its own: how far each kind is from the gold.
TO_GOLD: Mapping[tuple[str, str], str] = {(kind, "to_gold"): words for kind, words in NAMES.items()}

EDIT_CURVES = tuple(  # what becomes of the edits, drawn over a sequence
    COLUMNS[key]
    for key in (
        ("edit", "accuracy"),
        ("paraphrase", "accuracy"),
        ("neighborhood", "agreement"),
        ("unrelated", "agreement"),
    )
)
MODEL_CURVES = tuple(  # what becomes of the model; drawn first, where a run asks for its ability
    COLUMNS[key]
    for key in (("drift", "norm"), ("drift", "relative_output_change"), ("text", "loss"), ("in_context", "accuracy"))
)
COURSE = (*EDIT_CURVES, *MODEL_CURVES, COLUMNS["drift", "low"], COLUMNS["drift", "effective"])  # at each checkpoint
SHARES = (*EDIT_CURVES, COLUMNS["in_context", "accuracy"])  # of these, what lies between 0 and 1
UNEDITED = "(unedited)"  # the line of a table that stands for no method
WITHOUT_SPREAD = ("cost", "drift", "text", "gold")  # kinds
PLAIN = tuple(name for (kind, _), name in COLUMNS.items() if kind in WITHOUT_SPREAD)


def titled(row: Row, end: str) -> str:
    """The title of a section: what the row's group has in common, and what is shown of it."""
    protocol = "" if row.protocol == "errata" else row.protocol
    return " · ".join(filter(None, (row.setting, row.model, row.data, protocol, end)))


def kind_of(row: Row) -> str:
    """The row's kind, with the number of hops where the label says it: a key of :data:`NAMES`."""
    return f"{row.kind} {row.label}" if row.kind == "multi_hop" and row.label in HOPS else row.kind


def heading(kind: str, metric: str) -> str:
    """Words for kind and metric; the metric is named where a kind is measured by more than one."""
    words = metric.replace("_", " ")
    if kind not in NAMES:
        return COLUMNS.get((kind, metric), words if kind == "cost" else f"{kind}: {words}")
    return f"{NAMES[kind]}: {words}" if kind in SEVERAL_METRICS or metric != "accuracy" else NAMES[kind]
