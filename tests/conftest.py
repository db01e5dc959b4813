"""What all tests share: tiny models with a tokenizer, made once; one torch thread per worker."""

import logging
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import build

from errata.methods.base import Method
from errata.methods.registry import method, method_class
from errata.model.hf import HFLM
from errata.types import Case, Edit, Probe

torch.set_num_threads(1)

TEXTS = [
    f"{who} {what} {where}."
    for who in ("Ann Lee", "Bob Ray", "Cy Moor", "Dora Finn", "The old king", "A baker")
    for what in ("was born in", "lives in", "went by night to", "is the mayor of")
    for where in ("Rome", "Oslo", "New York", "Lima", "Paris")
]
ARCHITECTURES = ("gpt2", "llama", "gpt_neox")
EDIT = Edit("Ann Lee was born in", "Ann Lee", "Oslo", "Rome")
EDITS = [
    EDIT,
    Edit("Bob Ray lives in", "Bob Ray", "New York"),
    Edit("The mayor is Cy Moor of", "Cy Moor", "Lima"),
]
CASES = [
    Case(
        f"case {i}",
        (Edit("{} was born in", who, new, old),),
        (
            Probe("paraphrase", f"{who} lives in", (new,)),
            Probe("question", f"The mayor is {who} of", (new,)),
            Probe("neighborhood", f"{other} was born in", (old,)),
            Probe("same_subject", f"{who} went by night to", (old,)),
        ),
    )
    for i, (who, other, new, old) in enumerate(
        [
            ("Eve Stone", "Flo Ash", "Rome", "Oslo"),
            ("Gil Berg", "Hal Cole", "Paris", "Lima"),
            ("Ida", "Jo", "Oslo", "Rome"),
            ("Kim Dale", "Lou Hart", "Lima", "Rome"),
            ("Mia", "Ned", "Rome", "Lima"),
            ("Ola Page", "Pia Rose", "Oslo", "Paris"),
            ("Quin", "Ray", "Paris", "Oslo"),
            ("Sue Webb", "Tom York", "Lima", "Paris"),
        ]
    )
]


def quick(name: str) -> Method:
    """The method with the settings of its tag ``quick``: an edit of a tiny random model takes seconds."""
    return method(name, **method_class(name).tags.quick)


def data_for(made: Method) -> list[Any]:
    """What the method prepares with."""
    return CASES if made.tags.prepares_with == "cases" else TEXTS


@cache
def tokenizer() -> Any:
    """A byte-level BPE of a few sentences, as the bundled model's is made."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|begin|>", "<|end|>", "<|pad|>"]  # ids 0, 1, 2, as in tiny.SHARED
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=special[0], eos_token=special[1], pad_token=special[2]
    )


@cache
def tiny_model(name: str, dtype: torch.dtype) -> Any:
    return build(name, vocab_size=320).to(dtype)


def tiny_lm(name: str, dtype: torch.dtype = torch.float32) -> HFLM:
    """A fresh HFLM around a shared tiny model: tests must leave the weights as they were."""
    if name.endswith(SENTENCEPIECE):
        return HFLM(sentencepiece_model(name, dtype), sentencepiece(), name=f"tiny {name}")
    return HFLM(tiny_model(name, dtype), tokenizer(), name=f"tiny {name}")


# A tokenizer as Llama 2's and Mistral's: `tiny_lm("llama sentencepiece")` is the tiny Llama that reads with it.

SENTENCEPIECE = " sentencepiece"


@cache
def sentencepiece() -> Any:
    """BPE over texts with ▁ for spaces, bytes where a character is unknown, and a token in front of every text."""
    import json

    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    spaces = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = spaces
    learner.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=120, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    special = ["<s>", "</s>", "<pad>", "<unk>"]  # ids 0, 1, 2 as in tiny.SHARED
    pieces = sorted(learned["vocab"], key=learned["vocab"].get)
    vocab = {piece: i for i, piece in enumerate([*special, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces])}
    merges = [tuple(merge) for merge in learned["merges"]]
    core = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    core.pre_tokenizer = spaces
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


@cache
def sentencepiece_model(name: str, dtype: torch.dtype) -> Any:
    return build(name.removesuffix(SENTENCEPIECE), vocab_size=len(sentencepiece())).to(dtype)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:  # pyright: ignore[reportUnusedFunction]
    """States of tests never reach the user's cache; workers share one, so that each is computed once."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    os.environ["ERRATA_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The folder of the socket of a Postgres; skips where there is none."""
    from journals import postgres_server

    with postgres_server() as server:
        yield server


@pytest.fixture(autouse=True)
def _own_logs() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    """What a command set up for its logs ends with its test."""
    yield
    log = logging.getLogger("errata")
    log.handlers = []
    log.setLevel(logging.NOTSET)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every parameter and buffer."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same_weights(model: torch.nn.Module, before: dict[str, torch.Tensor]) -> bool:
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)
