"""Making a gold: retrained models are asked every probe of some cases, and what they expect is kept.

    gold = gold_of(errata.load("world"), [errata.load(folder) for folder in folders], cases, "world limit=100 seed=0")

The first of the retrained models is the reference; the others, of other seeds, say how far retrainings are apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch

from errata.answers import answer_of
from errata.errors import BadInput
from errata.evaluation.asking import Generation, Requests, ask
from errata.evaluation.gold import CHUNK, Asked, Gold, by_kind, outlook_of
from errata.evaluation.gold_header import vocabulary_of
from errata.evaluation.metrics import Mean
from errata.evaluation.metrics.outlook import FLOOR
from errata.model.hf import HFLM
from errata.types import Case, Edit, Score
from errata.world.named import edits_of, no_recipe, recipe_of
from errata.world.recipe import FIXED

KEPT = 0.999  # of the probability behind a prompt: its likeliest tokens that together hold so much stand in the file


def gold_of(
    base: HFLM,
    retrained: Sequence[HFLM],
    cases: Sequence[Case],
    data: str,
    recipes: Sequence[Mapping[str, Any]] = (),
) -> Gold:
    """The gold of the cases' edits of ``base``; ``data`` says which cases these are.

    Raises :class:`BadInput` for fewer than two retrained models, and where those or their tokenizers are not alike.
    """
    if len(retrained) < 2:
        raise BadInput("a distance is in units of that between two retrainings; give two or more, of different seeds")
    for lm in retrained:
        if vocabulary_of(lm) != vocabulary_of(base):
            raise BadInput(f"{lm.name} and {base.name} have different tokenizers; train it with --edits, or --from")
    reference, *others = retrained
    asked, prompts = _asked(cases)
    gold = Gold(
        model={"name": base.name, "fingerprint": base.fingerprint},
        data=data,
        recipes=[dict(recipe) for recipe in recipes],
        vocabulary=vocabulary_of(base),
        edits=[edit.id for case in cases for edit in case.edits],
        asked=asked,
        prompts=prompts,
        between={},
        **_expected(reference, prompts),
    )
    apart = [by_kind(asked, gold.divergences(other).values) for other in others]
    gold = replace(gold, between={kind: _joined([means[kind] for means in apart]) for kind in apart[0]})
    if same := [kind for kind, unit in gold.between.items() if unit.mean <= 0]:
        raise BadInput(f"the retrained models do not differ in {', '.join(same)}; give models of different seeds")
    gold.check_content()
    return gold


def check_recipes(model: str | Path, folders: Sequence[str | Path], edits: Sequence[Edit]) -> list[dict[str, Any]]:
    """The recipes of the retrained models in these folders, without their edits.

    Raises :class:`BadInput` unless each was trained as ``model`` was, with these edits, and alike but for the seed.
    """
    if (base := recipe_of(model)) is None:
        raise BadInput(f"{model} is no model of a world; give 'world', or a folder that `errata world train` made")
    recipes: list[dict[str, Any]] = []
    for folder in folders:
        recipe = recipe_of(folder) or {}
        try:
            held, _ = {edit.id for edit in edits_of(recipe)}, int(recipe.get("seed", 0))
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise no_recipe(folder, error) from error
        if held != {edit.id for edit in edits}:
            shared = sum(edit.id in held for edit in edits)
            raise BadInput(
                f"{folder} was trained with {len(held)} edits, among them {shared} of the {len(edits)} that the cases "
                "make; write those with `errata world edits` and train it with --edits"
            )
        recipe = {name: value for name, value in recipe.items() if name != "edits"}
        _check_alike(folder, recipe, model, base, FIXED)
        if recipes:
            old = "precision" not in recipe or "precision" not in recipes[0]  # which older recipes do not name
            names = [name for name in {**recipe, **recipes[0]} if name != "seed" and not (old and name == "precision")]
            _check_alike(folder, recipe, folders[0], recipes[0], names)
        recipes.append(recipe)
    seeds = [recipe.get("seed") for recipe in recipes]
    if len(set(seeds)) < len(seeds):
        raise BadInput(f"retrainings of different seeds are compared, found {seeds}; train one with another --seed")
    return recipes


def _check_alike(
    folder: str | Path, recipe: Mapping[str, Any], other: str | Path, wanted: Mapping[str, Any], names: Sequence[str]
) -> None:
    """Raises :class:`BadInput` where two recipes differ in one of these."""
    for name in names:
        if recipe.get(name) != wanted.get(name):
            raise BadInput(
                f"{name} is {recipe.get(name)} in {folder} and {wanted.get(name)} in {other}; train the two alike"
            )


def _asked(cases: Sequence[Case]) -> tuple[list[Asked], list[str]]:
    """What is asked: the edits' own prompts and the cases' probes; and each distinct prompt."""
    probes = [
        (case.id, kind, label, prompt)
        for case in cases
        for kind, label, prompt in (
            *(("edit", "", edit.prompt) for edit in case.edits),
            *((probe.kind, probe.label, probe.prompt) for probe in case.probes),
        )
    ]
    numbers: dict[str, int] = {}
    for *_, prompt in probes:
        numbers.setdefault(prompt, len(numbers))
    return [(case, kind, label, numbers[prompt]) for case, kind, label, prompt in probes], list(numbers)


def _expected(lm: HFLM, prompts: Sequence[str]) -> dict[str, Any]:
    """What the model answers and expects behind each prompt, as fields of a :class:`Gold`."""
    answers: list[str] = []
    numbers: dict[str, list[int]] = {"counts": [], "ids": [], "lengths": [], "answer_ids": []}
    logprobs: dict[str, list[float]] = {"logprobs": [], "rest": [], "answer_logprobs": []}
    row = np.zeros(0)
    for start in range(0, len(prompts), CHUNK):
        some = tuple(prompts[start : start + CHUNK])
        replies = ask(lm, Requests(answers=some, next_logprobs=some), Generation(), Generation())
        given = {prompt: answer_of(replies.answers[prompt]) for prompt in some}
        pairs = tuple((prompt, answer) for prompt, answer in given.items() if answer)
        scores = ask(lm, Requests(scores=pairs), Generation(), Generation()).scores
        for prompt, answer in given.items():
            row, score = replies.next_logprobs[prompt], scores.get((prompt, answer), Score((), (), ()))
            ids = _likeliest(row, score.tokens[:1])
            outlook = outlook_of(row, ids, score.logprobs)
            answers.append(answer)
            numbers["counts"].append(len(ids))
            numbers["ids"] += ids.tolist()
            numbers["lengths"].append(len(score.tokens))
            numbers["answer_ids"] += score.tokens
            logprobs["logprobs"] += outlook.first.tolist()
            logprobs["rest"].append(max(outlook.rest, log(FLOOR)))
            logprobs["answer_logprobs"] += outlook.answer.tolist()
    return {
        "answers": answers,
        "tokens": len(row),
        **{name: torch.tensor(values, dtype=torch.int32) for name, values in numbers.items()},
        **{name: torch.tensor(values, dtype=torch.float32) for name, values in logprobs.items()},
    }


def _likeliest(row: np.ndarray, also: Sequence[int]) -> np.ndarray:
    """The ids of the likeliest tokens that together hold ``KEPT`` of the probability, and ``also``. (k,)"""
    order = np.argsort(-row, kind="stable")
    some = order[: int(np.searchsorted(np.exp(row[order].astype(np.float64)).cumsum(), KEPT)) + 1]
    return np.array([*some.tolist(), *(token for token in also if token not in some)], np.int64)


def _joined(means: Sequence[Mean]) -> Mean:
    """The mean of several means, which are of the same cases."""
    errors = [mean.error for mean in means if mean.error is not None]
    error = sqrt(sum(e * e for e in errors)) / len(means) if errors else None
    return Mean(sum(mean.mean for mean in means) / len(means), error, means[0].count)
