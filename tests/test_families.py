"""Every family of transformers that makes text: edited, or refused for a reason that has a name."""

from collections import Counter

import pytest
import sweep
from families import DEPTH, VISION_DEPTH, text_families, tiny_config, tiny_family

from errata.model.configuration import text_config
from errata.model.detect import find_sites

SIGNS = ("as in an encoder", "text alone", "from 0")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_families() -> None:
    """Nine in ten of those with one MLP in each block are edited, and nothing breaks on the way."""
    outcomes = list(sweep.swept(text_families()))
    count = Counter(outcome.kind for outcome in outcomes)
    others = [one for one in outcomes if one.kind == "refused" and not any(sign in one.how for sign in SIGNS)]
    assert count["failed"] <= 10, [one for one in outcomes if one.kind == "failed"]  # most are too small to run
    assert count["edited"] >= 9 * len(others), others
    assert count["not built"] <= len(outcomes) // 10
    written = sweep.page(outcomes)
    assert all(f"`{family}`" in written for family in text_families())


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "idefics3"])
def test_a_family_is_made_small(family: str) -> None:
    model = tiny_family(family)
    assert sum(weight.numel() for weight in model.parameters()) < 500_000
    assert find_sites(model).depth == DEPTH
    assert text_config(tiny_config(family)).hidden_size == 32
    if family != "gpt2":
        assert model.config.vision_config.num_hidden_layers == VISION_DEPTH


def test_what_becomes_of_a_family(monkeypatch: pytest.MonkeyPatch) -> None:
    edited, refused, unknown = sweep.swept(["bert", "roberta", "no-such"])
    assert (edited.kind, edited.model, edited.how) == ("edited", "BertLMHeadModel", "r-rome")
    assert (refused.kind, refused.how) == ("refused", "RobertaForCausalLM does not count positions from 0")
    assert unknown.kind == "not built"
    monkeypatch.setattr(sweep, "same_weights", lambda model, before: False)
    assert sweep.tried("bert").kind == "failed"
    slow = sweep.tried("bert", seconds=0.01)
    assert (slow.kind, slow.how) == ("not built", "TooLong: more than 0.01 s")


def test_the_page_says_what_is_edited_and_why_others_are_not() -> None:
    written = sweep.page(
        [
            sweep.Outcome("b", "edited", "BForCausalLM", "r-rome"),
            sweep.Outcome("gemma3", "edited", "G", "r-rome"),
            sweep.Outcome("x", "refused", "XForCausalLM", "XForCausalLM carries a recurrent state"),
            sweep.Outcome("y", "refused", "YForCausalLM", "YForCausalLM carries a recurrent state"),
            sweep.Outcome("z", "not built", "", "a <class> | b"),
        ]
    )
    assert "5 model types" in written
    assert "Of 4 that could be built, 2 were edited" in written
    assert "| `b` | `BForCausalLM` |  | r-rome |" in written
    assert "| `gemma3` | `G` | yes | r-rome |" in written
    assert "| `x` `y` | it carries a recurrent state" in written
    assert "| `z` | a &lt;class> \\| b |" in written
