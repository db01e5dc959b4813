"""Protocols: which probes are asked, how answers are generated and matched, and how rows become a paper's numbers.

Published numbers depend on the protocol as much as on the method: fed or generated answers, whole answers or shares of
tokens, where a text is cut, which part of it is searched. Each protocol here asks and scores as one paper's code does,
so that its table can be checked; ``errata``, the default, is our own. A protocol is a value that evaluation takes; no
code branches on its name. ``docs/protocols.md`` shows how far they differ on one patch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from errata.errors import unknown
from errata.evaluation.asking import Generation
from errata.types import Mode

NEW = ("accuracy",)  # scorers where the answer should change, or follow from the change
TOLD = ("accuracy", "rouge_l")  # the same where the answer may be a text, of which a part can be told
KEPT = ("accuracy", "agreement")  # scorers where it should stay: the known answer, and the answer given before
METRICS: Mapping[str, tuple[str, ...]] = {  # kind of probe -> metrics of the protocol ``errata``
    "edit": TOLD,
    "paraphrase": TOLD,
    "question": TOLD,
    "alias": NEW,
    "inverse": NEW,
    "logical": NEW,
    "one_hop": NEW,
    "multi_hop": NEW,
    "new_single_hop": NEW,
    "neighborhood": KEPT,
    "same_subject": KEPT,
    "preservation": KEPT,
    "attribute": KEPT,
    "unrelated": KEPT,
    "distractor": KEPT,
    "other_task": KEPT,
    "in_context": KEPT,
}
CHANGED = tuple(kind for kind, scorers in METRICS.items() if scorers is not KEPT)
STAYING = tuple(kind for kind, scorers in METRICS.items() if scorers is KEPT)
DISTANCES = ("kl",)  # of what should stay from what it was: less is better, and there is no most
LESS_IS_BETTER = ("old_first",)  # metrics of edits that fall where an edit holds; all lie between 0 and 1
IMPLIED = ("alias", "inverse", "logical", "one_hop", "multi_hop")  # portability


@dataclass(frozen=True)
class Line:
    """A number that a paper prints, by its name there: rows of some kinds, one metric and label, folded.

    ``fold``: ``mean`` within a case, then over cases; ``kinds``: the mean of the kinds' own means;
    ``instance_wise`` and ``hop_wise``: those metrics of each case that has rows of all kinds, then the mean over cases
    (of ``hop_wise`` the last kind is the question at the end of the chain). Printed times ``scale``.
    """

    name: str
    kinds: tuple[str, ...]
    metric: str
    fold: str = "mean"
    label: str = ""
    scale: float = 100.0


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Which probes are asked how, and what their answers are matched against.

    ``scorers`` maps a kind of probe to names in ``errata.evaluation.scorers.SCORERS``; with a mode in front
    ("forced accuracy") one is used in that mode alone. ``question`` is the template of a prompt that ends in a question
    mark. ``modes`` are asked by default, those of ``also`` on request. ``answer`` and ``text`` say how answers and
    longer texts are generated; ``match`` how an answer is compared with the accepted ones (``errata.answers.MATCHES``).
    ``lines`` are the numbers that the paper prints, ``score`` those whose harmonic mean is its score.
    ``if_edited``: a case counts only where its edit is answered; ``executed``: a row says of each test whether its
    conditions held.
    """

    name: str
    source: str
    scorers: Mapping[str, tuple[str, ...]]
    modes: tuple[Mode, ...] = ("forced", "generated")
    also: tuple[Mode, ...] = ()
    question: str = "{}"
    answer: Generation = Generation()
    text: Generation = Generation(until_answer=False)
    match: str = "begins"
    lines: tuple[Line, ...] = ()
    score: tuple[str, ...] = ()
    if_edited: bool = False
    executed: bool = False

    def scorers_of(self, kind: str, mode: Mode) -> list[str]:
        """The names of the scorers of a kind of probe in a mode."""
        entries = (entry.rpartition(" ") for entry in self.scorers.get(kind, ()))
        return [name for only_in, _, name in entries if only_in in ("", mode)]

    def formatted(self, prompt: str) -> str:
        """The prompt in the protocol's template, if it is a question."""
        if not prompt.rstrip().endswith("?"):
            return prompt
        before, _, behind = self.question.rpartition("{}")
        return before + prompt + behind


def goodness(metric: str, value: float) -> float:
    """The value of a metric so that more is better, where edits are compared over a sequence."""
    return 1 - value if metric in LESS_IS_BETTER else value


def _hundred(prompt: str) -> int:
    """100 tokens in all: ROME's test_generation."""
    return 100


def _characters_and_thirty(prompt: str) -> int:
    """As many tokens in all as the prompt has characters, and 30: RippleEdits' execute_query."""
    return len(prompt) + 30


BOTH_OBJECTS = ("success", "magnitude", "forced accuracy")
CRITERIA = {
    "LG": "Logical_Generalization",
    "CI": "Compositionality_I",
    "CII": "Compositionality_II",
    "SA": "Subject_Aliasing",
    "PV": "Forgetfulness",
    "RS": "Relation_Specificity",
}

ERRATA = Protocol(
    name="errata",
    source="the answer alone, generated; or fed, whole",
    scorers=METRICS,
    modes=("generated",),
    also=("forced",),
    answer=Generation(grows=True),
)
ROME = Protocol(
    name="rome",
    source="CounterFact: https://arxiv.org/abs/2202.05262, kmeng01/rome experiments/py/eval_utils_counterfact.py",
    scorers={
        "edit": BOTH_OBJECTS,
        "paraphrase": BOTH_OBJECTS,
        "neighborhood": BOTH_OBJECTS,
        "attribute": BOTH_OBJECTS,
        "distractor": (*BOTH_OBJECTS, "kl"),  # CounterFact+: https://arxiv.org/abs/2305.17553
        "generation": ("entropy", "reference"),
    },
    text=Generation(total=_hundred, top_k=5, until_answer=False, with_prompt=True),
    lines=(
        Line("ES", ("edit",), "success"),
        Line("PS", ("paraphrase",), "success"),
        Line("NS", ("neighborhood",), "success"),
        Line("EM", ("edit",), "magnitude"),
        Line("PM", ("paraphrase",), "magnitude"),
        Line("NM", ("neighborhood",), "magnitude"),
        Line("NS+", ("distractor",), "success"),
        Line("NM+", ("distractor",), "magnitude"),
        Line("NKL", ("distractor",), "kl", scale=1.0),
        Line("GE", ("generation",), "entropy"),
        Line("RS", ("generation",), "reference"),
    ),
    score=("ES", "PS", "NS"),
)
ZSRE = Protocol(
    name="zsre",
    source="zsRE in ROME and MEMIT: kmeng01/rome experiments/py/eval_utils_zsre.py, ids compared directly",
    scorers=dict.fromkeys(("edit", "paraphrase", "neighborhood", "unrelated"), ("token_accuracy",)),
    modes=("forced",),
    lines=(
        Line("efficacy", ("edit",), "token_accuracy"),
        Line("paraphrase", ("paraphrase",), "token_accuracy"),
        Line("specificity", ("neighborhood", "unrelated"), "token_accuracy"),
    ),
)
GRACE = Protocol(
    name="grace",
    source="zsRE in GRACE: https://arxiv.org/abs/2211.11031, thartvigsen/GRACE metrics.py F1; of words, not token ids",
    scorers=dict.fromkeys(("edit", "paraphrase", "neighborhood", "unrelated"), ("token_f1",)),
    modes=("generated",),
    answer=Generation(tokens=20),
    lines=(
        Line("edit retention", ("edit",), "token_f1"),
        Line("generalization", ("paraphrase",), "token_f1"),
        Line("test retention", ("neighborhood", "unrelated"), "token_f1"),
    ),
)
EASYEDIT = Protocol(
    name="easyedit",
    source="https://arxiv.org/abs/2305.13172, KnowEdit: https://arxiv.org/abs/2401.01286, zjunlp/EasyEdit evaluate/",
    scorers={
        **dict.fromkeys(CHANGED, ("token_accuracy",)),
        **dict.fromkeys(STAYING, ("token_agreement",)),
        "edit": ("token_accuracy", "entropy"),
    },
    text=Generation(total=_hundred, top_k=5, until_answer=False, with_prompt=True),
    lines=(
        Line("reliability", ("edit",), "token_accuracy"),
        Line("generalization", ("paraphrase",), "token_accuracy"),
        Line("portability", IMPLIED, "token_accuracy", fold="kinds"),
        Line("portability: subject replaced", ("alias",), "token_accuracy"),
        Line("portability: reversed relation", ("inverse",), "token_accuracy"),
        Line("portability: one hop", ("one_hop", "multi_hop"), "token_accuracy"),
        Line("portability: logical", ("logical",), "token_accuracy"),
        Line("locality", STAYING, "token_agreement", fold="kinds"),
        Line("locality: other attribution", ("same_subject",), "token_agreement"),
        Line("locality: forgetfulness", ("preservation",), "token_agreement"),
        Line("locality: neighbours", ("neighborhood",), "token_agreement"),
        Line("locality: distracting neighbour", ("distractor",), "token_agreement"),
        Line("locality: other task", ("other_task",), "token_agreement"),
        Line("locality: unrelated", ("unrelated",), "token_agreement"),
        Line("fluency", ("edit",), "entropy"),
    ),
)
MQUAKE = Protocol(
    name="mquake",
    source="MQuAKE: https://arxiv.org/abs/2305.14795, princeton-nlp/MQuAKE; Hop-Acc: https://arxiv.org/abs/2312.15194",
    scorers={"edit": NEW, "single_hop": NEW, "new_single_hop": NEW, "multi_hop": ("accuracy", "strict")},
    modes=("generated",),
    question="Q: {} A:",
    answer=Generation(
        tokens=32, until_answer=False, stops=("\nQ:", "\nQuestion:", "\n\n"), markers=("Final answer:", "Answer:")
    ),
    match="verbatim",
    lines=(
        Line("edit-wise", ("edit",), "accuracy"),
        Line("instance-wise", ("new_single_hop",), "accuracy", fold="instance_wise"),
        Line("instance-wise, old facts", ("single_hop",), "accuracy", fold="instance_wise"),
        Line("multi-hop", ("multi_hop",), "accuracy"),
        Line("multi-hop, all phrasings", ("multi_hop",), "strict"),
        Line("hop-wise", ("new_single_hop", "multi_hop"), "accuracy", fold="hop_wise"),
    ),
)
RIPPLEEDITS = Protocol(
    name="rippleedits",
    source="RippleEdits: https://arxiv.org/abs/2307.12976; only what is new is searched, for whole words, 30 tokens",
    scorers=dict.fromkeys(METRICS, NEW),
    modes=("generated",),
    answer=Generation(tokens=30, until_answer=False),
    match="contains",
    lines=(
        Line("edited", ("edit",), "accuracy"),
        *(Line(name, tuple(METRICS), "accuracy", label=label) for name, label in CRITERIA.items()),
        *(Line(f"{name} executed", tuple(METRICS), "executed", label=label) for name, label in CRITERIA.items()),
    ),
    if_edited=True,
    executed=True,
)
RELEASED = Protocol(
    name="rippleedits-released",
    source="RippleEdits as released: edenbiran/RippleEdits src/queryexecutor.py, testrunner.py, evaluation.py",
    scorers=dict.fromkeys(METRICS, ("released",)),
    modes=("generated",),
    answer=Generation(total=_characters_and_thirty, until_answer=False, with_prompt=True),
    match="substring",
    lines=tuple(replace(line, metric=line.metric.replace("accuracy", "released")) for line in RIPPLEEDITS.lines),
    if_edited=True,
    executed=True,
)
WILD = Protocol(
    name="wild",
    source="WILD: https://arxiv.org/abs/2502.11177; a full stop inside an accepted answer ends none",
    scorers={**dict.fromkeys(CHANGED, NEW), **dict.fromkeys(STAYING, ("identity",))},
    modes=("generated",),
    answer=Generation(tokens=50, stops=(".", "\n")),
    match="exact",
    lines=(
        Line("reliability", ("edit",), "accuracy"),
        Line("generalization", ("paraphrase",), "accuracy"),
        Line("portability", IMPLIED, "accuracy"),
        Line("locality", STAYING, "identity"),
    ),
)
WILD_RELEASED = replace(  # "St. Louis" is never right there
    WILD,
    name="wild-released",
    source="WILD as released: WanliYoung/Revisit-Editing-Evaluation easyeditor/evaluate/evaluate_utils.py",
    answer=replace(WILD.answer, blind=True),
)
BELIEF = Protocol(
    name="belief",
    source="multiple choice of the old and the new answer: does the model still rank the old one first?",
    scorers=dict.fromkeys(("edit", "paraphrase", "question", "alias"), ("old_first", "magnitude")),
    modes=("forced",),
    lines=tuple(
        Line(f"old answer first: {kind}", (kind,), "old_first") for kind in ("edit", "paraphrase", "question", "alias")
    ),
)
OVERLAPS = ("rouge_1_recall", "rouge_2_recall", "rouge_l_recall")
OF_TEXTS = {"ROUGE-1": "rouge_1_recall", "ROUGE-2": "rouge_2_recall", "ROUGE-L": "rouge_l_recall"}
UNKE = Protocol(
    name="unke",
    source="UnKEBench: https://arxiv.org/abs/2405.15349, TrustedLLM/UnKE evaluate.py; AnyEdit: summarize_uns.py",
    scorers={
        "edit": ("accuracy", *OVERLAPS, "similarity"),
        "paraphrase": (*OVERLAPS, "similarity"),
        "question": ("accuracy", *OVERLAPS),
        **dict.fromkeys(STAYING, ("agreement",)),
    },
    modes=("generated",),
    answer=Generation(tokens=512, until_answer=False),
    lines=(
        Line("whole text", ("edit",), "accuracy"),
        *(Line(name, ("edit",), metric) for name, metric in OF_TEXTS.items()),
        Line("BERT score", ("edit",), "similarity"),
        *(Line(f"{name}, paraphrase", ("paraphrase",), metric) for name, metric in OF_TEXTS.items()),
        Line("BERT score, paraphrase", ("paraphrase",), "similarity"),
        *(Line(f"{name}, sub-questions", ("question",), metric) for name, metric in OF_TEXTS.items()),
        Line("sub-questions answered", ("question",), "accuracy"),
        Line("locality", STAYING, "agreement"),
    ),
)
CONVSENT = Protocol(
    name="convsent",
    source="sentiment: SERAC https://arxiv.org/abs/2206.06520, eric-mitchell/serac metrics.py",
    scorers={"generation": ("sentiment",), "unrelated": ("generated agreement",)},
    modes=("forced", "generated"),
    lines=(Line("ES", ("generation",), "sentiment"), Line("locality", ("unrelated",), "agreement")),
)
PROTOCOLS: Mapping[str, Protocol] = {
    chosen.name: chosen
    for chosen in (
        ERRATA,
        ROME,
        ZSRE,
        GRACE,
        EASYEDIT,
        MQUAKE,
        RIPPLEEDITS,
        RELEASED,
        WILD,
        WILD_RELEASED,
        BELIEF,
        UNKE,
        CONVSENT,
    )
}


def protocol(name: "str | Protocol") -> Protocol:
    """The protocol of that name; an unknown one answers with near matches."""
    if isinstance(name, Protocol):
        return name
    if name not in PROTOCOLS:
        raise unknown("protocol", name, list(PROTOCOLS))
    return PROTOCOLS[name]
