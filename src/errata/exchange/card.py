"""The card of a patch: a README for a hub, with what was edited, how, how it was reviewed, and how to undo it.

Texts of edits and reviews come from anywhere: each is shown letter by letter, on its line.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from errata.errors import BadInput
from errata.patch.patch import Patch
from errata.printable import in_markdown, markdown_table, printable, shown
from errata.types import as_text

Form = Literal["patch", "peft", "merged"]
ROWS = 100  # of a table
WIDTH = 300  # characters of a cell
LIBRARY = {"patch": "errata", "peft": "peft", "merged": "transformers"}
RELATION = {"patch": "adapter", "peft": "adapter", "merged": "finetune"}  # as the hub calls what is made of a model
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
PATCH = "patch.safetensors"  # of a folder that holds a patch

USE = {
    "patch": """\
import errata

lm = errata.load({base})
patch = errata.Patch.load("patch.safetensors")
with patch.applied(lm) as edited:  # afterwards the model is bit for bit what it was
    print(edited.generate([{prompt}]))""",
    "peft": """\
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base}), {folder})
with model.disable_adapter():  # the model without the edits
    ...""",
    "merged": """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({folder})
tokenizer = AutoTokenizer.from_pretrained({folder})""",
}
UNDO = {
    "patch": "A patch adds to the model while it is applied, and is gone behind the `with` block.",
    "peft": "Leave the adapter off (`disable_adapter`, or `unload`). vLLM takes the folder as a LoRA module.",
    "merged": "The edits are in the weights. Without them there is the base model; `errata audit` shows what differs.",
}


def card(
    patch: Patch,
    form: Form = "patch",
    *,
    base: str = "",
    folder: str = "",
    licence: str = "unknown",
    review: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> str:
    """A README.md in the form that hubs read: YAML in front, then the edits, the method, the review, apply and undo.

    ``base`` is the base model's hub id or path, by default as the patch says; ``folder`` is what the form is loaded
    from. ``licence`` is an identifier of the hub's list. ``review`` is a review's JSON; ``notes`` are what else must be
    said, a line each. Raises :class:`BadInput` for a licence or a review of another form.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,60}", as_text(licence, "a licence")):
        raise BadInput(f"a licence is an identifier such as apache-2.0, found {shown(licence)}")
    if review is not None and not isinstance(review, Mapping):
        raise BadInput(f"a review is a JSON object, found {type(review).__name__}; give what Review.to_json made")
    base = base or str(patch.meta.get("model", {}).get("name") or "")
    count = len(patch.edits)
    facts = f"{count} fact{'s' * (count != 1)}"
    blocks = [
        _front(patch, form, base, licence),
        f"# {_plain(base or 'A model')}, {facts} edited" if count else f"# A change of {_plain(base or 'a model')}",
        f"What the model says of {facts} was changed with Errata; everything else shall stay as it was." * bool(count),
        *(f"> {_plain(note)}" for note in notes),
        *_edits(patch),
        *_methods(patch),
        *_sites(patch),
        *(_review(review) if review else ["## Review", "None was made."]),
        "## Apply and undo",
        f"```python\n{_code(patch, form, base, folder)}\n```",
        UNDO[form],
    ]
    return "\n\n".join(filter(None, blocks)) + "\n"


def _front(patch: Patch, form: Form, base: str, licence: str) -> str:
    """The YAML in front; texts in it are written as JSON, which YAML reads."""
    methods = [made["method"] for made in patch.meta.get("made", ())]
    tags = ["knowledge-editing", "model-editing", "errata", *dict.fromkeys(methods)]
    lines = [f"license: {licence}", f"library_name: {LIBRARY[form]}"]
    if HUB_ID.fullmatch(base) and not Path(base).exists():
        lines += [f"base_model: {_quoted(base)}", f"base_model_relation: {RELATION[form]}"]
    lines += ["tags:", *(f"- {_quoted(tag)}" for tag in (*tags, *(["low-rank-adapter"] if form == "peft" else [])))]
    return "\n".join(["---", *lines, "---"])


def _edits(patch: Patch) -> list[str]:
    outcomes = {id: out for made in patch.meta.get("made", ()) for id, out in made.get("outcomes", {}).items()}
    rows = [
        (e.prompt, e.subject, e.target_true or "", e.target_new, _met(outcomes.get(e.id, {})))
        for e in patch.edits[:ROWS]
    ]
    if not rows:
        return ["## Edits", "The patch says of no edit that it made."]
    more = f"The first {ROWS} of {len(patch.edits)}." if len(patch.edits) > ROWS else ""
    return ["## Edits", _table(("prompt", "subject", "before", "after", "took"), rows), more]


def _met(outcome: Mapping[str, Any]) -> str:
    met = outcome.get("met")
    return "" if met is None else "yes" if met else "no"


def _methods(patch: Patch) -> list[str]:
    blocks = ["## Method"]
    for made in patch.meta.get("made", ())[:ROWS]:
        versions = ", ".join(f"{name} {version}" for name, version in made.get("versions", {}).items())
        count, how = (
            len(made["edits"]),
            ", ".join(filter(None, (made.get("time", ""), made.get("dtype", ""), versions))),
        )
        blocks.append(f"- {_plain(made['method'])}: {count} edit{'s' * (count != 1)} ({_plain(how)})")
        if settings := made.get("resolved") or made.get("settings"):
            rows = [(name, json.dumps(value, ensure_ascii=False)) for name, value in settings.items()]
            blocks.append(_table(("setting", "value"), rows))
    if imported := patch.meta.get("imported"):
        blocks.append(f"- imported: {_plain(json.dumps(imported, ensure_ascii=False)[:WIDTH])}")
    return blocks if len(blocks) > 1 else []


def _sites(patch: Patch) -> list[str]:
    keys = ("kind", "site", "shape", "rank", "norm")
    rows = [[_word(record.get(key)) for key in keys] for record in patch.summary()[:ROWS]]
    model = patch.meta.get("model", {})
    said = f"Of the model with the fingerprint {_plain(str(model['fingerprint']))}." if model else ""
    return ["## What it changes", _table(keys, rows), said] if rows else []


# Reviews -----------------------------------------------------------------------------------------


def _review(review: Mapping[str, Any]) -> list[str]:
    """What a review says: its plain values a line each, its lists of records as tables, rows as means by kind."""
    blocks = ["## Review"]
    for key, value in review.items():
        if key == "rows" and isinstance(value, list) and (means := _means(value)):
            blocks.append(_table(("kind", "metric", "mode", "before", "after", "n"), means))
        elif isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
            columns = list(dict.fromkeys(name for one in value[:ROWS] for name in one))[:8]
            rows = [[_word(one.get(name)) for name in columns] for one in value[:ROWS]]
            blocks += [f"{_plain(str(key))}:", _table([str(name) for name in columns], rows)]
        elif isinstance(value, Mapping) and value:
            rows = [(str(name), _word(one)) for name, one in list(value.items())[:ROWS]]
            blocks += [f"{_plain(str(key))}:", _table(("", ""), rows)]
        else:
            blocks.append(f"- {_plain(str(key))}: {_plain(_word(value))}")
    return blocks


def _means(rows: Sequence[Any]) -> list[tuple[str, ...]]:
    """kind, metric, mode, mean before, mean after, count: of rows that have both numbers."""
    groups: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for row in rows:
        if isinstance(row, Mapping) and all(
            isinstance(row.get(key), bool | int | float) for key in ("before", "after")
        ):
            key = tuple(str(row.get(name, "")) for name in ("kind", "metric", "mode"))
            groups.setdefault((key[0], key[1], key[2]), []).append((float(row["before"]), float(row["after"])))
    means = {key: [sum(side) / len(pairs) for side in zip(*pairs, strict=True)] for key, pairs in groups.items()}
    return [(*key, f"{a:.2f}", f"{b:.2f}", str(len(groups[key]))) for key, (a, b) in means.items()]


# Texts -------------------------------------------------------------------------------------------


def _code(patch: Patch, form: Form, base: str, folder: str) -> str:
    prompt = patch.edits[0].prompt if patch.edits else "…"
    return USE[form].format(
        base=_quoted(base or "the base model"), folder=_quoted(folder or "."), prompt=_quoted(prompt)
    )


def _quoted(text: str) -> str:
    """The text in double quotes, as Python and YAML both read it."""
    return '"' + printable(text.replace("\\", "\\\\")).replace('"', '\\"') + '"'


def _plain(text: str) -> str:
    """As :func:`in_markdown`; an address is no link either."""
    return re.sub(r"(?i)(?<=www)\.", r"\\.", in_markdown(text).replace("://", ":\\/\\/"))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown_table(head, rows).replace("://", ":\\/\\/").replace("www.", "www\\.")


def _word(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = (
        value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    )
    return text[:WIDTH] + "…" * (len(text) > WIDTH)
