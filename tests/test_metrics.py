"""Every metric on numbers worked by hand."""

from collections.abc import Callable
from math import e, exp, log, log2, sqrt

import numpy as np
import pytest
import torch

from errata.evaluation import metrics
from errata.evaluation.metrics import Mean, Tfidf
from errata.patch.low_rank import LowRank
from errata.types import Score


def scored(*logprobs: float, right: str = "") -> Score:
    """A score with these log-probabilities; ``right`` says of each token whether it is the arg-max (all, if empty)."""
    tokens = tuple(range(len(logprobs)))
    return Score(tokens, logprobs, tuple(t if r == "1" else -1 for t, r in zip(tokens, right or "1" * len(tokens))))


# Means ---------------------------------------------------------------------------------------------


def test_mean_and_its_error() -> None:
    found = metrics.mean([1.0, 0.0, 1.0, 1.0])  # squares: 3/16 + 9/16 = 3/4; √(3/4 / 3 / 4) = 1/4
    assert found == Mean(0.75, 0.25, 4)
    assert str(found) == "0.75 ± 0.25 (4)"
    assert metrics.mean([0.5]) == Mean(0.5, None, 1)
    assert metrics.mean([]) is None


def test_cases_weigh_the_same_whatever_they_hold() -> None:
    values = [("a", 1.0), ("a", 1.0), ("a", 0.0), ("a", 0.0), ("b", 1.0)]  # case means 1/2 and 1
    found = metrics.mean_over_cases(values)
    assert found is not None and (found.mean, found.count) == (0.75, 2)
    assert found.error == pytest.approx(sqrt(2 * 0.25**2 / 1 / 2))


def test_the_harmonic_mean_is_zero_where_any_value_is() -> None:
    assert metrics.harmonic_mean([1, 2, 4]) == pytest.approx(3 / 1.75)
    assert metrics.harmonic_mean([100.0, 0.0]) == metrics.harmonic_mean([]) == 0.0


# Answers -------------------------------------------------------------------------------------------


def test_a_generated_answer_agrees_with_itself() -> None:
    assert metrics.generated_agreement(" The Harp.", " harp") == 1.0
    assert metrics.generated_agreement(" harp", " harp and lyre") == 0.0


def test_shares_of_tokens_are_not_whole_answers() -> None:
    half = scored(-1, -1, right="10")
    assert metrics.token_accuracy(half) == 0.5
    assert metrics.forced_accuracy([half]) == 0.0
    assert metrics.forced_accuracy([half, scored(-1)]) == 1.0  # an alias will do
    a, b = (Score((1, 2, 3), (-1.0,) * 3, ids) for ids in ((29, 234, 334), (29, 234, 333)))
    assert metrics.token_agreement(a, b) == pytest.approx(2 / 3)
    assert metrics.forced_agreement(a, b) == 0.0


def test_f1_of_words() -> None:
    # "duke of north york" and "york of old": 2 words shared; p = 2/4, r = 2/3, so F1 = (2/3)/(7/6) = 4/7
    assert metrics.token_f1(" the Duke of North York.", ["York of Old"]) == pytest.approx(4 / 7)
    assert metrics.token_f1(" Oslo", ["Rome", "oslo"]) == 1.0
    assert metrics.token_f1(" Oslo", ["Rome"]) == 0.0


# CounterFact: three records ------------------------------------------------------------------------

NEW_WINS, OLD_WINS = (scored(-0.1), scored(-2.0)), (scored(-3.0, -1.0), scored(-1.0))  # (o*, o^c): ℓ .1 and 2; 2 and 1
RECORDS = [  # on the edit, on two paraphrases, on two neighbours (there the old object ought to win)
    ([NEW_WINS], [NEW_WINS, OLD_WINS], [OLD_WINS, OLD_WINS]),
    ([NEW_WINS], [NEW_WINS, NEW_WINS], [OLD_WINS, NEW_WINS]),
    ([OLD_WINS], [OLD_WINS, OLD_WINS], [OLD_WINS, NEW_WINS]),
]


def over_records(measure: Callable[[Score, Score], float], place: int) -> float:
    turned = (1, 0) if place == 2 else (0, 1)
    pairs = [(i, measure(*(pair[j] for j in turned))) for i, record in enumerate(RECORDS) for pair in record[place]]
    found = metrics.mean_over_cases(pairs)
    assert found is not None and found.count == 3
    return found.mean


def test_counterfact_scores_of_three_records() -> None:
    es, ps, ns = (over_records(metrics.success, place) for place in range(3))
    assert (es, ps, ns) == (pytest.approx(2 / 3), pytest.approx(1 / 2), pytest.approx(2 / 3))  # (.5+1+0)/3; (1+.5+.5)/3
    wins, loses = exp(-0.1) - exp(-2), exp(-2) - exp(-1)  # what o* is ahead by in either pair
    assert over_records(metrics.magnitude, 0) == pytest.approx((2 * wins + loses) / 3)
    assert over_records(metrics.magnitude, 1) == pytest.approx(((wins + loses) / 2 + wins + loses) / 3)
    assert over_records(metrics.magnitude, 2) == pytest.approx((-loses + 2 * (-loses - wins) / 2) / 3)
    # percentages with two decimals, of means over cases: 3 / (1/66.67 + 1/50 + 1/66.67)
    assert metrics.score(es, ps, ns) == pytest.approx(3 / (2 / 66.67 + 1 / 50), abs=1e-9)
    assert metrics.score(1.0, 1.0, 0.0) == 0.0


def test_a_tie_is_no_success_and_length_does_not_count() -> None:
    assert metrics.success(scored(-1.0), scored(-1.0, -1.0)) == 0.0
    assert metrics.nll(scored(-3.0, -1.0)) == 2.0
    assert metrics.success(scored(-0.5, -0.5, -0.5), scored(-1.0)) == 1.0  # the sum would say otherwise


def test_belief_over_choices() -> None:
    options = {"old": scored(-1.0), "new": scored(-0.9, -1.0), "other": scored(-4.0)}
    assert metrics.choice(options) == "new"
    assert metrics.ranks_first("old", options) == 0.0
    assert metrics.ranks_first("old", options | {"new": scored(-1.5)}) == 1.0


# Texts of three records ----------------------------------------------------------------------------

# aabb: bigrams ab? no: a-a, a-b, b-b (3 of them, H2 = log2 3), trigrams a-a-b, a-b-b (H3 = 1)
GENERATED = ["red red blue blue", "red blue red blue", "red red red red"]
# 0101: bigrams r-b twice, b-r once: H2 = log2 3 - 2/3; trigrams r-b-r, b-r-b: H3 = 1. One word: 0 and 0.
H2, H3 = [log2(3), log2(3) - 2 / 3, 0.0], [1.0, 1.0, 0.0]


def test_fluency_of_three_records() -> None:
    for text, h2, h3 in zip(GENERATED, H2, H3):
        assert metrics.ngram_entropy(text, 2) == pytest.approx(h2)
        assert metrics.ngram_entropy(text, 3) == pytest.approx(h3)
        assert metrics.fluency([text]) == pytest.approx(h2 / 3 + 2 * h3 / 3)
    both = sum(h2 / 3 + 2 * h3 / 3 for h2, h3 in zip(H2, H3)) / 3
    assert metrics.fluency(GENERATED) == pytest.approx(both)
    assert metrics.ngram_entropy("alone", 2) == 0.0


def test_reference_score_of_three_records() -> None:
    corpus = ["red blue", "red green", "red"]  # n = 3; df: red 3, blue 1, green 1
    tfidf = Tfidf.of(corpus)
    red, rare = 1.0, log(4 / 2) + 1
    assert tfidf.idf == {"blue": pytest.approx(rare), "green": pytest.approx(rare), "red": pytest.approx(red)}
    length = sqrt(red**2 + rare**2)
    # "red blue" against "red green": they share red alone
    assert metrics.reference_score(["red", "blue"], ["red green"], tfidf) == pytest.approx(red / length**2)
    assert metrics.reference_score(["Blue red"], ["red", "blue"], tfidf) == pytest.approx(1.0)
    # "red red blue" is (2, rare): unknown words do not count
    wanted = (2 * red**2 + rare**2) / (sqrt(4 * red**2 + rare**2) * length)
    assert metrics.reference_score(["red red blue purple"], ["red blue"], tfidf) == pytest.approx(wanted)
    assert metrics.reference_score(["purple"], ["red"], tfidf) == 0.0


def test_words_are_split_like_a_treebank() -> None:
    text = "Ann's dog doesn't go to the U.S. at 10:30 (it costs 1,000.50, \"well-known\")..."
    wanted = "Ann 's dog does n't go to the U.S. at 10:30 ( it costs 1,000.50 , \" well-known \" ) ..."
    assert metrics.words(text) == wanted.split()
    assert metrics.words("He left. She can't.") == ["He", "left", ".", "She", "ca", "n't", "."]


def test_perplexity_is_over_tokens_not_texts() -> None:
    assert metrics.perplexity([scored(-1.0), scored(-2.0, -3.0)]) == pytest.approx(e**2)


def test_kl() -> None:
    p, q = np.log([0.5, 0.5]), np.log([0.25, 0.75])
    assert metrics.kl(p, q) == pytest.approx(0.5 * log(2) + 0.5 * log(2 / 3))
    assert metrics.kl(np.stack([p, p]), np.stack([p, q])) == pytest.approx(metrics.kl(p, q) / 2)
    assert metrics.kl(np.array([0.0, -np.inf]), np.log([0.5, 0.5])) == pytest.approx(log(2))


def test_sentiment() -> None:
    same_before, same_after = [scored(-1.0, -1.0), scored(-1.0)], [scored(-2.0, -2.0), scored(-2.0)]
    opposite = [scored(-2.0), scored(-4.0)]  # mean -3, one above
    assert metrics.sentiment(same_before, same_after, opposite) == pytest.approx(exp(-1) / (1 + exp(-1)))
    assert metrics.sentiment(same_after, same_before, [scored(-1.0)]) == 0.5  # closer to the topic earns no more than 1


# Sequences -----------------------------------------------------------------------------------------


def test_retainability_sees_only_the_ends() -> None:
    assert metrics.retainability([1.0, 0.9, 0.6, 0.7]) == pytest.approx(-0.1)
    assert metrics.retainability([1.0, 0.0, 0.7]) == pytest.approx(-0.15)
    with pytest.raises(ValueError, match="at least two"):
        metrics.retainability([1.0])


def test_backward_transfer_is_per_edit() -> None:
    right_after, at_the_end = {"a": 1.0, "b": 1.0, "c": 0.0}, {"a": 0.0, "b": 1.0, "c": 0.0, "d": 1.0}
    found = metrics.backward_transfer(right_after, at_the_end)
    assert found is not None and (found.mean, found.count) == (pytest.approx(-1 / 3), 3)


def test_scale_and_damage() -> None:
    assert metrics.scalability([1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]) == 0.5
    assert metrics.drawdown(0.9, 0.6) == pytest.approx(0.3)
    assert metrics.deterioration(0.8, 0.6) == pytest.approx(0.25)
    assert metrics.deterioration(0.0, 0.0) == 0.0
    before, after = [False, False, True, True, True], [True, False, True, False, False]
    assert metrics.efficacy(before, after) == Mean(0.5, 0.5, 2)
    lost = metrics.relapse(before, after)
    assert lost is not None and (lost.mean, lost.count) == (pytest.approx(2 / 3), 3)
    assert metrics.efficacy([True], [True]) is None and metrics.relapse([False], [True]) is None


# Hops ----------------------------------------------------------------------------------------------


def test_hops() -> None:
    assert metrics.any_or_all([0.0, 1.0, 0.0]) == 1.0
    assert metrics.any_or_all([0.0, 1.0, 0.0], "all") == 0.0
    assert (metrics.any_or_all([0.5, 0.25]), metrics.any_or_all([0.5, 0.25], "all")) == (0.5, 0.25)
    with pytest.raises(ValueError, match="'any' or 'all'"):
        metrics.any_or_all([1.0], "XOR")
    assert metrics.instance_wise([True, True, False]) == 0.0
    assert metrics.instance_wise([True, True]) == 1.0
    assert (metrics.hop_wise([True, True], True), metrics.hop_wise([True, False], True)) == (1.0, 0.0)
    assert metrics.hop_wise([True, True], False) == 0.0


# Weights -------------------------------------------------------------------------------------------


def test_norm_and_rank_of_a_change() -> None:
    diagonal = torch.diag(torch.tensor([3.0, 4.0, 0.0]))
    product = LowRank(torch.tensor([[1.0, 2.0], [0.0, 0.0], [0.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
    found = metrics.change_of({"dense": diagonal, "product": product, "bias": torch.tensor([3.0, 4.0])})
    assert (found["dense"].norm, found["dense"].spectral, found["dense"].rank) == (5.0, 4.0, 2)
    assert found["product"].norm == pytest.approx(5.0)  # the row (3, 4)
    assert found["product"].rank == 1  # of two columns that lie on one line
    assert (found["bias"].norm, found["bias"].rank) == (5.0, 1)
    assert metrics.change_of({"none": torch.zeros(2, 2)})["none"].rank == 0
