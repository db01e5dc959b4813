"""Protocols on a model that is a table: asked as each paper's code asks, and scored as it scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp
from typing import Any

import numpy as np
import pytest
from typing_extensions import override

from errata.answers import complete
from errata.errors import BadInput, UnknownName, Unsupported
from errata.evaluation.baseline import Baseline, baseline
from errata.evaluation.evaluate import evaluate
from errata.evaluation.metrics import Tfidf
from errata.evaluation.protocols import METRICS, PROTOCOLS, protocol
from errata.evaluation.scorers import SCORERS
from errata.model.lm import LM
from errata.report.folds import published
from errata.types import MODES, Case, Edit, Probe, Row, Score


@dataclass
class Table(LM):
    """Answers from a table; an answer's log-probability is in ``likes`` (nats a token, -1 without)."""

    says: Mapping[str, str]
    likes: Mapping[tuple[str, str], float] = field(default_factory=dict[tuple[str, str], float])
    next: Mapping[str, Sequence[float]] = field(default_factory=dict[str, Sequence[float]])
    calls: list[tuple[Any, ...]] = field(default_factory=list[tuple[Any, ...]])

    @override
    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 32,
        *,
        until_answer: bool = False,
        until: Sequence[str] = (),
    ) -> list[str]:
        self.calls += [("generate", prompt, max_new_tokens, until_answer) for prompt in prompts]
        return [self.says[prompt] for prompt in prompts]

    @override
    def prolong(self, prompts: Sequence[str], totals: Sequence[int], *, top_k: int = 1, seeds: Any = None) -> list[str]:
        self.calls += [("prolong", *request, top_k) for request in zip(prompts, totals)]
        assert len(set(seeds)) == len(seeds)
        return [self.says[prompt] for prompt in prompts]

    @override
    def score(self, prompts: Sequence[str], targets: Sequence[str]) -> list[Score]:
        return [self._score(prompt, target) for prompt, target in zip(prompts, targets, strict=True)]

    def _score(self, prompt: str, target: str) -> Score:
        """A token is a word; the arg-max in each place is the word that it answers there."""
        words, answer = target.split(), [*self.says[prompt].replace(".", "").split(), *"." * 9]
        tokens, argmax = (tuple(sum(map(ord, word)) for word in text) for text in (words, answer[: len(words)]))
        return Score(tokens, (self.likes.get((prompt, target), -1.0),) * len(words), argmax)

    @override
    def next_logprobs(self, prompts: Sequence[str]) -> np.ndarray:
        return np.log([self.next[prompt] for prompt in prompts])


EDIT = Edit("Ann was born in", "Ann", "New Rome", "Oslo")
SAYS = {"Ann was born in": " Oslo.", "Ann's home is": " Oslo.", "Bob was born in": " Oslo."}
AFTER = {"Ann was born in": " New Rome.", "Ann's home is": " New Oslo.", "Bob was born in": " New Rome."}
COUNTERFACT = Case(
    "one",
    (EDIT,),
    (
        Probe("paraphrase", "Ann's home is", ("New Rome",), rival="Oslo"),
        Probe("neighborhood", "Bob was born in", ("Oslo",), rival="New Rome"),
    ),
)


def run(name: str, case: Case, before: Table, after: Table, **more: Any) -> list[Row]:
    return evaluate(baseline(before, [case], protocol=name, **more), after, [case])


def after_of(rows: Sequence[Row]) -> dict[tuple[str, str], float | None]:
    return {(row.kind, row.metric): row.after for row in rows}


def printed(rows: Sequence[Row]) -> dict[str, float]:
    return {line.name: round(line.after.mean, 6) for line in published(rows) if line.after is not None}


# The table of protocols ----------------------------------------------------------------------------


def test_every_protocol_uses_scorers_that_there_are() -> None:
    for rules in PROTOCOLS.values():
        modes = (*rules.modes, *rules.also)
        for kind, entries in rules.scorers.items():
            for entry in entries:
                mode, _, name = entry.rpartition(" ")
                assert mode in ("", *MODES), (rules.name, kind, entry)
                assert any((name, each) in SCORERS for each in modes if mode in ("", each)), (rules.name, kind, entry)
        metrics = {name for kind in rules.scorers for mode in MODES for name in rules.scorers_of(kind, mode)}
        assert {line.metric for line in rules.lines} <= metrics | {"executed"}, rules.name
        assert set(rules.score) <= {line.name for line in rules.lines}
        assert rules.source


def test_no_scorer_is_without_a_protocol() -> None:
    used = {
        (name, mode)
        for rules in PROTOCOLS.values()
        for kind in rules.scorers
        for mode in (*rules.modes, *rules.also)
        for name in rules.scorers_of(kind, mode)
    }
    assert set(SCORERS) <= used


def test_an_unknown_protocol_answers_with_near_matches() -> None:
    with pytest.raises(UnknownName, match="did you mean wild"):
        protocol("wld")
    assert protocol(PROTOCOLS["rome"]) is PROTOCOLS["rome"]
    with pytest.raises(BadInput, match="asks nothing generated; its modes are forced"):
        baseline(Table(SAYS), [COUNTERFACT], ["generated"], protocol="zsre")


def test_rows_say_by_whose_rules() -> None:
    for name in ("errata", "rome", "wild"):
        rows = run(name, COUNTERFACT, Table(SAYS), Table(AFTER))
        assert rows and {row.protocol for row in rows} == {name}


# ROME: CounterFact ---------------------------------------------------------------------------------


def test_rome_holds_two_objects_against_each_other() -> None:
    likes = {("Ann was born in", "New Rome"): -0.5, ("Ann's home is", "Oslo"): -0.25, ("Bob was born in", "Oslo"): -2.0}
    rows = run("rome", COUNTERFACT, Table(SAYS), Table(AFTER, likes))
    found = after_of(rows)
    assert found["edit", "success"] == 1.0 and found["edit", "accuracy"] == 1.0
    assert found["edit", "magnitude"] == pytest.approx(exp(-0.5) - exp(-1))
    assert found["paraphrase", "success"] == 0.0
    assert found["neighborhood", "success"] == 0.0
    assert found["neighborhood", "magnitude"] == pytest.approx(exp(-2) - exp(-1))
    assert {row.mode for row in rows} == {"forced"}
    assert {(row.metric, row.match) for row in rows} == {
        ("success", "likelier"),
        ("magnitude", "likelier"),
        ("accuracy", "argmax"),
    }
    lines = printed(rows)
    assert (lines["ES"], lines["PS"], lines["NS"], lines["S"]) == (100.0, 0.0, 0.0, 0.0)
    likes |= {("Ann's home is", "New Rome"): -0.1, ("Bob was born in", "New Rome"): -3.0}
    assert printed(run("rome", COUNTERFACT, Table(SAYS), Table(AFTER, likes)))["S"] == pytest.approx(100.0)


def test_an_edit_in_other_words_competes_with_the_old_answer() -> None:
    case = Case(
        "one",
        (EDIT,),
        (Probe("paraphrase", "Ann's home is", ("New Rome",)), Probe("paraphrase", "Bob was born in", ("Oslo",))),
    )
    rows = run("rome", case, Table(SAYS), Table(AFTER, {("Ann's home is", "New Rome"): -0.1}))
    assert [(row.probe, row.after) for row in rows if (row.kind, row.metric) == ("paraphrase", "success")] == [
        ("Ann's home is", 1.0)  # of another fact nothing is known
    ]


def test_rome_reads_a_cases_texts_together() -> None:
    texts = [Probe("generation", prompt, references=("red blue",)) for prompt in ("Ann", "Ann lives")]
    case = Case("one", (EDIT,), tuple(texts))
    says = {**SAYS, "Ann": " red", "Ann lives": " purple"}
    before, after = Table(says), Table({**AFTER, "Ann": " blue", "Ann lives": " red"})
    rows = run("rome", case, before, after)
    assert sorted(after.calls) == [("prolong", "Ann", 100, 5), ("prolong", "Ann lives", 100, 5)]
    (entropy,) = [row for row in rows if row.metric == "entropy"]
    # "Ann blue" has one bigram (0 bits); "Ann lives red" two bigrams (1 bit) and one trigram: GE = mean(0, 1/3)
    assert entropy.after == pytest.approx(1 / 6)
    (reference,) = [row for row in rows if row.metric == "reference"]
    wanted = Tfidf.of(["red blue"]).cosine("Ann blue Ann lives red", "red blue")
    assert reference.after == pytest.approx(wanted) == pytest.approx(1.0)
    assert reference.before == pytest.approx(0.5**0.5)
    assert (entropy.mode, reference.mode) == ("generated", "generated")
    assert printed(rows)["RS"] == pytest.approx(100.0)


def test_one_prompt_writes_as_many_texts_as_it_is_asked_for() -> None:
    case = Case("one", (EDIT,), (Probe("generation", "Ann"),) * 3)
    after = Table({**AFTER, "Ann": " is"})
    run("rome", case, Table({**SAYS, "Ann": " is"}), after)
    assert [call[1] for call in after.calls] == ["Ann"] * 3


def test_texts_that_are_unsupported_leave_a_dash() -> None:
    class Mute(Table):
        @override
        def prolong(self, prompts: Any, totals: Any, *, top_k: int = 1, seeds: Any = None) -> list[str]:
            raise Unsupported("no texts of a given length")

    case = Case("one", (EDIT,), (Probe("generation", "Ann"),))
    before, both = Table({**SAYS, "Ann": " is"}), []
    for lm in (before, Mute(SAYS)):
        rows = run("rome", case, lm, Mute(AFTER))
        (entropy,) = [row for row in rows if row.metric == "entropy"]
        assert (entropy.after, entropy.error) == (None, "no texts of a given length")
        both.append(entropy.before)
        other = [row for row in rows if row.metric not in ("entropy", "reference")]
        assert all(row.before is not None and row.after is not None for row in other)
    assert both == [0.0, None]  # "Ann is": one bigram


def test_without_texts_to_compare_with_the_table_has_a_dash_and_the_log_says_how_to_give_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    case = Case("one", (EDIT,), (Probe("generation", "Ann"),))
    rows = run("rome", case, Table({**SAYS, "Ann": " is"}), Table({**AFTER, "Ann": " was"}))
    (reference,) = [row for row in rows if row.metric == "reference"]
    assert (reference.before, reference.after) == (None, None)
    assert reference.error in caplog.text and "attribute_snippets.json" in caplog.text
    assert [(line.before, line.after) for line in published(rows) if line.name == "RS"] == [(None, None)]
    caplog.clear()
    assert not [row for row in run("rome", COUNTERFACT, Table(SAYS), Table(AFTER)) if row.error]  # it has no texts
    assert not caplog.text


def test_counterfact_plus_measures_how_far_the_next_token_moved(tmp_path: Any) -> None:
    case = Case("one", (EDIT,), (Probe("distractor", "Bob was born in", ("Oslo",), rival="New Rome"),))
    before = Table(SAYS, next={"Bob was born in": [0.5, 0.5]})
    after = Table(AFTER, next={"Bob was born in": [0.25, 0.75]})
    made = baseline(before, [case], protocol="rome")
    made.save(tmp_path / "before.json")
    (found,) = [row for row in evaluate(Baseline.load(tmp_path / "before.json"), after, [case]) if row.metric == "kl"]
    assert found.after == pytest.approx(0.25 * np.log(0.5) + 0.75 * np.log(1.5), abs=1e-6)
    assert found.before == 0.0


# zsRE and EasyEdit: shares of tokens ---------------------------------------------------------------


def test_zsre_counts_tokens_of_the_known_answer() -> None:
    case = Case("one", (EDIT,), (Probe("unrelated", "who sang it?", ("New Oslo",)),))
    says = {"who sang it?": " New York."}
    rows = run("zsre", case, Table({**SAYS, **says}), Table({**AFTER, **says}))
    assert after_of(rows) == {("edit", "token_accuracy"): 1.0, ("unrelated", "token_accuracy"): 0.5}


def test_easyedit_counts_tokens() -> None:
    probes = (
        *COUNTERFACT.probes,
        Probe("alias", "Annie was born in", ("New Rome",)),
        Probe("one_hop", "hop", ("A B C",)),
    )
    case = Case("one", (EDIT,), probes)
    more = {"Annie was born in": " New York.", "hop": " X B C."}
    rows = run("easyedit", case, Table({**SAYS, **more}), Table({**AFTER, **more}), modes=["forced"])
    lines = printed(rows)
    assert lines["reliability"] == 100.0
    assert lines["generalization"] == 50.0  # "New Oslo" for "New Rome"
    assert lines["portability: subject replaced"] == 50.0
    assert lines["portability: one hop"] == pytest.approx(66.666667)
    assert lines["portability"] == pytest.approx((50 + 66.666667) / 2)
    assert lines["locality"] == lines["locality: neighbours"] == 0.0
    assert {row.match for row in rows} == {"share of tokens"}


def test_grace_counts_words_that_answers_share() -> None:
    case = Case("one", (EDIT,), (Probe("unrelated", "who sang it?", ("Ada of Oslo", "Bo")),))
    after = Table({**AFTER, "who sang it?": " Ada from the Oslo. More"})
    rows = run("grace", case, Table({**SAYS, "who sang it?": " Bo"}), after)
    # 2 words shared of 3 and 3: F1 = 2/3, the better of the two answers
    assert after_of(rows) == {("edit", "token_f1"): 1.0, ("unrelated", "token_f1"): pytest.approx(2 / 3)}
    assert printed(rows) == {"edit retention": 100.0, "test retention": pytest.approx(66.666667)}
    assert ("generate", "who sang it?", 20, True) in after.calls


# MQuAKE, RippleEdits, WILD: what is answered ---------------------------------------------------------


def test_mquake_takes_any_phrasing_letter_by_letter() -> None:
    hops = [Probe("new_single_hop", "hop 1", ("Rome",)), Probe("new_single_hop", "what 2?", ("Italy",))]
    questions = [Probe("multi_hop", f"q{i}?", ("Italy", "Italia"), group="q") for i in range(3)]
    case = Case("one", (EDIT,), (*hops, *questions))
    says = {
        "hop 1": " Rome.",
        "Q: what 2? A:": " Italy",
        "Q: q0? A:": " Let us see. Answer: Italia.\nQ: Italy",
        "Q: q1? A:": " italy.",
    }
    after = Table({**AFTER, **says, "Q: q2? A:": " Rome"})
    rows = run("mquake", case, Table({**SAYS, **says, "Q: q2? A:": " Rome"}), after)
    assert printed(rows) == {
        "edit-wise": 100.0,
        "instance-wise": 100.0,
        "multi-hop": 100.0,
        "multi-hop, all phrasings": 0.0,
        "hop-wise": 100.0,
    }
    assert {row.match for row in rows} == {"verbatim"}


def test_a_chain_counts_whole() -> None:
    hops = [Probe("new_single_hop", "hop 1", ("Rome",)), Probe("new_single_hop", "hop 2", ("Italy",))]
    case = Case("one", (EDIT,), (*hops, Probe("multi_hop", "q?", ("Italy",))))
    says = {"hop 1": " Rome.", "hop 2": " Spain.", "Q: q? A:": " Italy"}
    broken = printed(run("mquake", case, Table({**SAYS, **says}), Table({**AFTER, **says})))
    assert (broken["instance-wise"], broken["multi-hop"], broken["hop-wise"]) == (0.0, 100.0, 0.0)
    says |= {"hop 2": " Italy.", "Q: q? A:": " Spain"}
    lost = printed(run("mquake", case, Table({**SAYS, **says}), Table({**AFTER, **says})))
    assert (lost["instance-wise"], lost["multi-hop"], lost["hop-wise"]) == (100.0, 0.0, 0.0)


RIPPLE = Case(
    "one",
    (EDIT,),
    (
        Probe(
            "one_hop",
            "Ann's land is",
            ("Italy",),
            label="Compositionality_I",
            require=(Probe("one_hop", "known", ("yes",)),),
        ),
        Probe(
            "one_hop",
            "Ann's sea is",
            ("Italian",),
            label="Compositionality_I",
            require=(Probe("one_hop", "unknown", ("yes",)),),
        ),
        Probe("alias", "Annie in Rome", ("Rome",), label="Subject_Aliasing"),
    ),
)
RIPPLE_SAYS = {
    "known": " yes",
    "unknown": " no",
    "Ann's land is": " in Italys",
    "Ann's sea is": "",
    "Annie in Rome": " no",
}


def test_rippleedits_clean_and_as_released() -> None:
    before, after = Table({**SAYS, **RIPPLE_SAYS}), Table({**AFTER, **RIPPLE_SAYS})
    clean = run("rippleedits", RIPPLE, before, after)
    assert printed(clean) == {"edited": 100.0, "CI": 0.0, "SA": 0.0, "CI executed": 50.0, "SA executed": 100.0}
    assert ("generate", "Ann's land is", 30, False) in after.calls
    released = run("rippleedits-released", RIPPLE, before, after)
    # letters inside of a word count, and so does the prompt
    expected = {"edited": 100.0, "CI": 100.0, "SA": 100.0, "CI executed": 50.0, "SA executed": 100.0}
    assert printed(released) == expected
    assert ("prolong", "Ann's land is", len("Ann's land is") + 30, 1) in after.calls


def test_a_criterion_is_the_share_of_executed_tests_that_pass() -> None:
    label, unmet = {"label": "Logical_Generalization"}, (Probe("one_hop", "unknown", ("yes",)),)
    probes = [Probe("logical", f"q{i}", ("Rome",), require=unmet if i > 1 else (), **label) for i in range(4)]
    says = {"unknown": " no", "q0": " Rome", "q1": " Oslo", "q2": " Rome", "q3": " Rome"}
    rows = run("rippleedits", Case("one", (EDIT,), tuple(probes)), Table({**SAYS, **says}), Table({**AFTER, **says}))
    assert printed(rows) == {"edited": 100.0, "LG": 50.0, "LG executed": 50.0}  # passed, failed, two not executed


def test_ripples_count_only_where_the_edit_took() -> None:
    failed = Table({**SAYS, **RIPPLE_SAYS})
    assert printed(run("rippleedits-released", RIPPLE, failed, failed)) == {"edited": 0.0}


def test_wild_stops_at_any_full_stop_and_wants_the_whole_answer() -> None:
    case = Case("one", (Edit("Ann was born in", "Ann", "St. Louis"),), COUNTERFACT.probes)
    after = {**AFTER, "Ann was born in": " St. Louis.", "Bob was born in": " Oslo. It is"}
    rows = run("wild", case, Table({**SAYS, "Bob was born in": " Oslo. He"}), Table(after))
    found = after_of(rows)
    assert found["edit", "accuracy"] == 1.0
    released = run("wild-released", case, Table({**SAYS, "Bob was born in": " Oslo. He"}), Table(after))
    assert after_of(released) == found | {("edit", "accuracy"): 0.0}  # "St"
    assert found["paraphrase", "accuracy"] == 0.0  # "New Oslo"
    assert found["neighborhood", "identity"] == 1.0
    exact = run("wild", COUNTERFACT, Table(SAYS), Table({**AFTER, "Ann was born in": " the New Rome, she said\n"}))
    assert after_of(exact)["edit", "accuracy"] == 0.0  # more than the answer
    assert after_of(run("errata", COUNTERFACT, Table(SAYS), Table(AFTER)))["edit", "accuracy"] == 1.0


def test_belief_in_the_old_answer() -> None:
    likes = {("Ann was born in", "New Rome"): -0.5, ("Ann's home is", "Oslo"): -0.5}
    rows = run("belief", COUNTERFACT, Table(SAYS), Table(AFTER, likes))
    assert after_of(rows)["edit", "old_first"] == 0.0
    assert after_of(rows)["paraphrase", "old_first"] == 1.0


def test_our_own_kinds_are_all_asked() -> None:
    assert set(PROTOCOLS["errata"].scorers) == set(METRICS)


def test_answers_of_one_question_are_all_wanted_and_a_question_without_passes_as_released() -> None:
    of_a_test = {"group": "test 0", "label": "Logical_Generalization"}
    probes = [Probe("logical", "Ann's towns are", (town,), **of_a_test) for town in ("Rome", "Oslo")]
    says = {"Ann's towns are": " Rome", "Ann's sea is": " no"}
    before, after = Table({**SAYS, **says}), Table({**AFTER, **says})
    both = Case("one", (EDIT,), tuple(probes))
    assert printed(run("rippleedits", both, before, after))["LG"] == 0.0
    either = Case("one", (EDIT,), (*probes, Probe("logical", "Ann's sea is", (), **of_a_test)))
    assert printed(run("rippleedits", either, before, after))["LG"] == 0.0
    assert printed(run("rippleedits-released", either, before, after))["LG"] == 100.0


def test_of_answers_to_one_prompt_any_is_right_where_one_is_given() -> None:
    probes = [Probe("logical", "Ann's towns are", (town,), group="test 0") for town in ("Rome", "Oslo")]
    says = {"Ann's towns are": " Rome"}
    case, before, after = Case("one", (EDIT,), tuple(probes)), Table({**SAYS, **says}), Table({**AFTER, **says})
    for name in ("errata", "wild"):
        assert after_of(run(name, case, before, after))["logical", "accuracy"] == 1.0
    assert after_of(run("errata", case, before, after, modes=["forced"]))["logical", "accuracy"] == 1.0


# Answers that hold a full stop, and replies that reason first --------------------------------------

STOPS = ("Washington, D.C.", "George W. Bush", "St. Louis", "Warner Bros. Records", "Dr. No")


@pytest.mark.parametrize("name", ["errata", "grace", "mquake", "rippleedits", "wild"])
@pytest.mark.parametrize("behind", [".", ". It is. So they say", "\nQ: And?", ""])
@pytest.mark.parametrize("answer", STOPS)
def test_an_answer_is_not_cut_at_its_own_full_stop(name: str, behind: str, answer: str) -> None:
    class Short(Table):
        """Stops writing as soon as it may."""

        @override
        def generate(self, prompts: Any, max_new_tokens: int = 32, **how: Any) -> list[str]:
            return [shortened(text, **how) for text in super().generate(prompts, max_new_tokens, **how)]

    case = Case("one", (Edit("Ann was born in", "Ann", answer),))
    (row,) = run(name, case, Table(SAYS), Short({"Ann was born in": f" {answer}{behind}"}))
    assert row.after == 1.0
    wrong = f" {answer.split('. ')[0]}. Other{behind}" if ". " in answer else " Washington, D"
    (row,) = run(name, case, Table(SAYS), Short({"Ann was born in": wrong}))
    assert row.after != 1.0


def shortened(text: str, until_answer: bool = False, until: Sequence[str] = ()) -> str:
    """The text as far as a model must write it, letter by letter."""
    for end in range(len(text)):
        if (until_answer and complete(text[:end])) or any(stop in text[:end] for stop in until):
            return text[:end]
    return text


def test_mquake_reads_on_until_the_answer_behind_the_thoughts() -> None:
    case = Case("one", (EDIT,), (Probe("multi_hop", "q?", ("Italy",)),))
    thoughts = " Ann was born in Rome. Rome lies in Italy.\nAnswer: Italy\n\nQuestion: Who?\nAnswer: Bob"

    class Short(Table):
        @override
        def generate(self, prompts: Any, max_new_tokens: int = 32, **how: Any) -> list[str]:
            return [shortened(text, **how) for text in super().generate(prompts, max_new_tokens, **how)]

    rows = run("mquake", case, Table({**SAYS, "Q: q? A:": ""}), Short({**AFTER, "Q: q? A:": thoughts}))
    assert printed(rows)["multi-hop"] == 100.0


# A protocol that has nothing to ask ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "probes", "message"),
    [
        ("belief", (), "belief finds nothing to ask .*edit, paraphrase, question, alias .forced. by answers and rival"),
        ("rome", (Probe("unrelated", "who?", ("Bo",)),), "rome finds nothing to ask .* answers and rival"),
        ("convsent", (Probe("generation", "Ann", references=("a",)),), "convsent .*references and wanted and opposite"),
        ("convsent", (), "convsent finds nothing to ask"),
    ],
)
def test_a_protocol_that_finds_nothing_to_ask_says_so(name: str, probes: tuple[Probe, ...], message: str) -> None:
    case = Case("one", (Edit("Ann was born in", "Ann", "New Rome"),), probes)
    with pytest.raises(BadInput, match=message):
        baseline(Table({}), [case], protocol=name)


def test_sentiments_locality_is_of_answers_alone() -> None:
    sides = [Probe("generation", "Ann?", references=("good",), label=label) for label in ("wanted", "opposite")]
    case = Case("one", (EDIT,), (*sides, Probe("unrelated", "who?", ("Bo",))))
    says = {"Ann?": " so", "who?": " Bo"}
    rows = run("convsent", case, Table(says), Table({**says, "who?": " Bo Ray"}))
    assert [(row.mode, row.after) for row in rows if row.kind == "unrelated"] == [("generated", 0.0)]


def test_sentiment_of_replies() -> None:
    sides = (("wanted", ("good", "fine")), ("opposite", ("bad",)))
    probes = [Probe("generation", "What of Ann?", references=texts, label=label) for label, texts in sides]
    case = Case("one", (EDIT,), tuple(probes))
    likes = {("What of Ann?", "good"): -2.0, ("What of Ann?", "fine"): -2.0, ("What of Ann?", "bad"): -3.0}
    rows = run("convsent", case, Table({"What of Ann?": ""}), Table({"What of Ann?": ""}, likes))
    (found,) = rows
    assert found.after == pytest.approx(exp(-1) / (1 + exp(-1)))  # one nat above the others, one below what it was
    assert found.before == pytest.approx(0.5)
