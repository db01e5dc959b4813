"""``errata demo``: ten facts changed, measured, kept in a file, and undone to the last bit."""

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.answers import answer_of, begins_with_answer
from errata.cli import common
from errata.cli.edited import coloured
from errata.errors import BadInput
from errata.types import Case, Edit, Row

if TYPE_CHECKING:
    from torch import nn

    from errata.model.hf import HFLM

Show = Callable[[Any], None]  # of a text or a table


@dataclass(frozen=True)
class Demo:
    """The results of the demonstration. The digests are SHA-256 over every weight."""

    rows: list[Row]
    file: Path
    digest_before: str
    digest_edited: str
    digest_after: str
    same_file: bool  # the patch that was saved is the patch that was loaded
    same_answers: bool  # undone, the model answers as before the edit

    @property
    def undone(self) -> bool:
        """Whether the edit changed the weights and nothing of it is left: same weights, answers and patch file."""
        return self.digest_before == self.digest_after != self.digest_edited and self.same_answers and self.same_file


def demo(lm: "HFLM", cases: Sequence[Case], folder: Path, show: Show = lambda _: None, quiet: bool = True) -> Demo:
    """Edits the cases' facts with MEMIT, measures, saves the patch to ``folder``, loads it and undoes it.

    ``show`` is called with each text and table as soon as it is there.
    """
    import errata
    from errata.report.tables import table

    edits = [edit for case in cases for edit in case.edits]
    prompts = [edit.prompt for edit in edits]
    show(_description(lm))
    show(_subject_table(lm, edits[0].subject))
    digest_before, before = weights_digest(lm.model), lm.generate(prompts, until_answer=True)
    with common.step(f"asking about {len(cases)} facts and what is near them", quiet):
        baseline = errata.baseline(lm, cases)
    memit = errata.method("memit")
    with common.step("preparing memit (kept for the next time)", quiet):
        state = memit.prepare(lm)
    with common.step(f"editing {len(edits)} facts", quiet):
        patch = memit.edit(lm, edits, state)
    file = patch.save(folder / "demo.safetensors")
    loaded = errata.Patch.load(file)
    with common.step("asking again", quiet), loaded.applied(lm) as edited:
        digest_edited, after = weights_digest(lm.model), edited.generate(prompts, until_answer=True)
        rows = errata.evaluate(baseline, edited, cases, model=lm.name, method=memit.name, data="world", setting="batch")
    show(_edit_table(edits, before, after))
    show(table(rows))
    show(common.PREPARED)
    return Demo(
        rows,
        file,
        digest_before,
        digest_edited,
        weights_digest(lm.model),
        loaded == patch,
        lm.generate(prompts, until_answer=True) == before,
    )


def weights_digest(model: "nn.Module") -> str:
    """SHA-256 over name, type, shape and bytes of every parameter and buffer."""
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict(keep_vars=False).items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _description(lm: "HFLM") -> str:
    size = f"{sum(p.numel() for p in lm.model.parameters()) / 1e6:.1f} million parameters"
    return f"{lm.name}: {type(lm.model).__name__}, {lm.sites.depth} layers, {size}, {lm.dtype} on {lm.device}"


def _subject_table(lm: "HFLM", subject: str) -> Any:
    """The model's answers about a subject, beside those that are true in the world."""
    from errata.world.facts import RELATIONS, world

    facts = {RELATIONS[r].first[0].replace("{}", subject): true for r, true in world().about(subject).items()}
    replies = lm.generate(list(facts), until_answer=True)
    rows = [(prompt, _marked(reply, true), true) for (prompt, true), reply in zip(facts.items(), replies, strict=True)]
    return common.make_table(f"what the model knows of {subject}", ("prompt", "answer", "true"), rows)


def _edit_table(edits: Sequence[Edit], before: Sequence[str], after: Sequence[str]) -> Any:
    rows = [
        (edit.prompt, answer_of(reply_before), _marked(reply_after, edit.target_new), edit.target_new)
        for edit, reply_before, reply_after in zip(edits, before, after, strict=True)
    ]
    return common.make_table(f"{len(edits)} facts edited with MEMIT", ("prompt", "before", "after", "target"), rows)


def _marked(reply: str, expected: str) -> Any:
    """The answer of a reply, marked by whether it is the expected one."""
    return coloured(common.one_line(answer_of(reply), 40), begins_with_answer(reply, [expected]))


def demo_command(
    model: Annotated[str, typer.Option(help="A model of the world.")] = "world",
    limit: Annotated[int, typer.Option(min=1, help="How many facts.")] = 10,
    device: common.Device = None,
    dtype: common.Dtype = None,
    trust_remote_code: common.TrustRemoteCode = False,
    seed: common.Seed = 0,
    quiet: common.Quiet = False,
) -> None:
    """Edit ten facts of the bundled model, measure what happened, and undo it to the last bit."""
    import errata
    from errata.world.named import world_named

    if world_named(model) is None:
        raise BadInput(f"{model} knows no world; the demo wants 'world' or what `errata world train` made")
    cases = errata.cases(model, limit=limit, seed=seed)
    lm = common.load_model(model, device, dtype, quiet, trust_remote_code)
    console = common.stdout()
    result = demo(lm, cases, Path(tempfile.mkdtemp(prefix="errata-demo-")), console.print, quiet)
    size = common.size(result.file.stat().st_size)
    lines = [
        f"the patch: {result.file} ({size}), loaded again: {_equal(result.same_file)}",
        f"SHA-256 of all weights before  {result.digest_before}",
        f"                       edited  {result.digest_edited}",
        f"                       undone  {result.digest_after}",
        f"undone, the model answers as before: {_equal(result.same_answers)}",
        "undone to the last bit" if result.undone else "NOT UNDONE: please report this",
    ]
    typer.echo("\n".join(lines))
    if not result.undone:
        raise typer.Exit(1)


def _equal(value: bool) -> str:
    return "equal" if value else "NOT EQUAL"
