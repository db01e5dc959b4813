"""``errata ask``: what the model says, edited or not."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from errata.cli import common
from errata.cli.patches import PatchFiles, joined_patch, load_patches
from errata.errors import BadInput
from errata.printable import printable

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from errata.model.hf import HFLM
    from errata.model.sampling import Sampling
    from errata.patch.patch import Patch


def ask(
    lm: "HFLM",
    prompts: Sequence[str],
    patch: "Patch | None" = None,
    max_new_tokens: int = 32,
    force: bool = False,
    **sampling: "Unpack[Sampling]",
) -> list[str]:
    """The model's continuation of each prompt, with the patch in force where there is one; greedy, or drawn."""
    if patch is None:
        return lm.generate(prompts, max_new_tokens, **sampling)
    with patch.applied(lm, force=force) as edited:
        return edited.generate(prompts, max_new_tokens, **sampling)


def explain(lm: "HFLM", prompts: Sequence[str], patch: "Patch", force: bool = False) -> list[list[str]]:
    """For each prompt, a line for each entry or fact of the patch that acts on it."""
    with patch.applied(lm, force=force) as edited:
        return edited.explain(prompts)


def ask_command(
    model: common.Model,
    prompts: Annotated[list[str], typer.Argument(help="What the model shall go on from.", show_default=False)],
    patch: PatchFiles = None,
    max_new_tokens: Annotated[int, typer.Option(help="How far to go on.")] = 32,
    temperature: common.Temperature = None,
    top_p: common.TopP = None,
    seed: common.Seed = 0,
    why: Annotated[bool, typer.Option("--why", help="Say which entry or fact of the patch fired.")] = False,
    force: common.AnyModel = False,
    device: common.Device = None,
    dtype: common.Dtype = None,
    trust_remote_code: common.TrustRemoteCode = False,
    chat: common.Chat = None,
    system: common.System = None,
    quiet: common.Quiet = False,
    as_json: common.Json = False,
) -> None:
    """Let a model go on from prompts, or answer them in a chat, edited or not."""
    from errata.model.sampling import is_drawn

    sampling: Sampling = {"temperature": temperature, "top_p": top_p, "seed": seed}
    sampling = sampling if is_drawn(sampling) else {}
    loaded = load_patches(patch)
    if why and not loaded:
        raise BadInput("--why asks what in a patch fired; give one with --patch")
    lm = common.load_model(model, device, dtype, quiet, trust_remote_code, chat, system)
    spoken_through = joined_patch(loaded, lm, force)
    texts = ask(lm, prompts, spoken_through, max_new_tokens, force, **sampling)
    fired = explain(lm, prompts, spoken_through, force) if why and spoken_through is not None else [[] for _ in prompts]
    if as_json:
        explained = [{"why": lines} if why else {} for lines in fired]
        rows = zip(prompts, texts, explained, strict=True)
        common.print_json([{"prompt": prompt, "text": text, **more} for prompt, text, more in rows])
        return
    for prompt, text, lines in zip(prompts, texts, fired, strict=True):
        said = Text(printable(text, keep="\n\t"))
        asked = Text(printable(prompt, keep="\n\t") + "\n" * lm.chat, style="bold")
        common.stdout().print(asked + said, soft_wrap=True)
        for line in lines or (["nothing of a memory fired"] if why else []):
            common.stdout().print(Text(f"  {printable(line)}", style="dim"), soft_wrap=True)
