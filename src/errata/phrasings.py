"""Prompts that ask for the same relation, learned from cases: an edit's prompt and its paraphrases."""

from collections.abc import Iterable, Sequence

from errata.subjects import mentions, template_of
from errata.types import Case, Edit, Kind


def templates_of(cases: Iterable[Case], kinds: Sequence[Kind] = ("paraphrase",)) -> list[list[str]]:
    """Templates in groups that ask for the same relation, in the order of the cases.

    The prompt of a case's edit and its probes of these kinds belong together, and so do those of all cases that share
    one.
    """
    group_of: dict[str, dict[str, None]] = {}
    for case in cases:
        if len(case.edits) != 1:  # whose paraphrase it is would be a guess
            continue
        edit = case.edits[0]
        paraphrases = (p.prompt for p in case.probes if p.kind in kinds)
        others = (template_of(prompt, edit.subject) for prompt in paraphrases if mentions(prompt, edit.subject))
        templates = [edit.template, *others]
        joined = dict.fromkeys(other for template in templates for other in group_of.get(template, [template]))
        for template in joined:
            group_of[template] = joined
    return [list(group) for group in {id(group): group for group in group_of.values()}.values()]


def group_index(groups: Sequence[Sequence[str]]) -> dict[str, int]:
    """Template -> the number of its group."""
    return {template: g for g, group in enumerate(groups) for template in group}


def facts_of(groups: Sequence[Sequence[str]], cases: Sequence[Case], most: int) -> list[list[Edit]]:
    """For each group, at most ``most`` facts of the cases that its templates ask for."""
    group_of = group_index(groups)
    facts: list[list[Edit]] = [[] for _ in groups]
    for case in cases:
        for edit in case.edits:
            g = group_of.get(edit.template)
            if g is not None and len(facts[g]) < most:
                facts[g].append(edit)
    return facts


def rephrased(edit: Edit, group: Sequence[str], most: int) -> list[str]:
    """The edit's prompt and the group's other templates with its subject, at most ``most`` in all."""
    prompts = (template.replace("{}", edit.subject) for template in group)
    return list(dict.fromkeys([edit.prompt, *prompts]))[:most]
