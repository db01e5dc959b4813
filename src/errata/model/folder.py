"""What a model's files say before anything is made of them: read as plain JSON, no code of theirs is run."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from errata.errors import BadInput, ErrataError, first_line
from errata.model.configuration import auto_class

FROM_WHERE = ("trust_remote_code", "revision", "token", "cache_dir", "local_files_only", "subfolder")
COUNTED = re.compile("layer|expert|head|labels|attention_types")  # in the names of what a model has a number of
MEASURED = re.compile("size|dim|width|capacity")  # in the names of what has a size
MOST = {"layer": 1000, "": 100_000}  # of layers (the deepest that is published has some 150), and of anything else
DEPTH = re.compile("(num_(hidden_|decoder_)?|n_|encoder_|decoder_)layers?")
PACKED = 8  # parameters that a byte of a file may hold: one bit each, which no quantisation reaches
ROOM = 2**27  # parameters that are no matter: half a gigabyte in float32; masks and positions are in no file
POINTER = b"version https://git-lfs"


def hub_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of ``from_pretrained`` about where files come from and what they may do: config and tokenizer too."""
    return {name: options[name] for name in FROM_WHERE if name in options}


@contextmanager
def named(name: str, what: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Context manager: whatever a library raises over the files of ``name`` leaves as :class:`BadInput`.

    It begins with the name and ``what`` is the matter. Where the files ask to run code of their own, it says so.
    """
    try:
        yield
    except ErrataError:
        raise
    except Exception as error:  # files that nobody checked break libraries in any way
        if "trust_remote_code" in str(error) and not options.get("trust_remote_code"):
            raise BadInput(_refused(name, options)) from error
        raise BadInput(f"{name} {what}: {_reason(name, error)}") from error


def _reason(name: str, error: Exception) -> str:
    """Why files cannot be used, with what to do where that is known."""
    if pointers := [file.name for file in Path(name).glob("*.*") if _is_pointer(file)]:
        return f"{pointers[0]} is a pointer of Git LFS and not the file itself; run git lfs pull there"
    kind = type(error).__name__
    if kind == "UnpicklingError":
        return (
            "its weights are a pickle that is broken or wants to run code, and Errata takes nothing but tensors out of "
            "one; ask for the same model as model.safetensors"
        )
    if kind in ("SafetensorError", "EOFError"):
        return f"its file of weights is broken or not whole ({first_line(error)}); fetch it anew"
    return first_line(error)


def _is_pointer(file: Path) -> bool:
    try:
        if not file.is_file():  # a pipe would be waited for
            return False
        with file.open("rb") as opened:
            return opened.read(len(POINTER)) == POINTER
    except OSError:
        return False


def read_json(name: str, file: str, options: Mapping[str, Any], needed: bool = False) -> dict[str, Any] | None:
    """The JSON object in one of a model's files (folder, cache or hub); None where there is no such file.

    Raises :class:`BadInput` where it is no JSON object, and OSError for what the hub answers otherwise: where the file
    is ``needed``, also that it does not answer.
    """
    from transformers.utils.hub import cached_file

    where = {key: value for key, value in hub_options(options).items() if key != "trust_remote_code"}
    path = cached_file(name, file, _raise_exceptions_for_missing_entries=needed, **where)
    if path is None:
        return None
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{file} of {name} is no JSON ({error}); save or fetch the model anew") from error
    if not isinstance(content, dict):
        raise BadInput(f"{file} of {name} holds a {type(content).__name__}; expected a JSON object, {{…}}")
    return content


# Code ------------------------------------------------------------------------------------------------


def code_of(name: str, options: Mapping[str, Any]) -> list[str]:
    """What the files of a model want to run: the classes that its ``auto_map`` names, and code for generating."""
    found: list[str] = []
    for file in ("config.json", "tokenizer_config.json"):
        named_there: Any = (read_json(name, file, options) or {}).get("auto_map") or {}
        classes = named_there.values() if isinstance(named_there, dict) else [named_there]
        found += [str(one) for entry in classes for one in (entry if isinstance(entry, list) else [entry]) if one]
    if (Path(name) / "custom_generate" / "generate.py").is_file():
        found.append("custom_generate/generate.py")
    return list(dict.fromkeys(found))


def _refused(name: str, options: Mapping[str, Any]) -> str:
    wanted = ", ".join(code_of(name, options)) or "code of its own"
    return (
        f"{name} wants to run code that comes with it ({wanted}), and Errata runs none unasked; "
        "read that code, and if you trust it, say trust_remote_code=True (--trust-remote-code)"
    )


def refuse_kernels(name: str, config: Mapping[str, Any], trusted: bool) -> None:
    """Raises :class:`BadInput` where a configuration asks for a kernel of the hub, which is code that runs here."""
    for key in ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation"):
        if not trusted and "/" in str(config.get(key) or ""):
            raise BadInput(
                f"config.json of {name} wants to run the kernel {config[key]!r} of the hub, and Errata runs no code "
                f"unasked; take {key} out of it, or if you trust it, say trust_remote_code=True (--trust-remote-code)"
            )


# Sizes -----------------------------------------------------------------------------------------------


def check_counts(name: str, config: Any, key: str = "") -> None:
    """Raises :class:`BadInput` where config.json asks for more layers, heads or experts than could ever be made."""
    if isinstance(config, dict):
        for inner, value in config.items():
            check_counts(name, value, str(inner))
    elif isinstance(config, list):
        for value in config:
            check_counts(name, value, key)
    elif isinstance(config, int) and COUNTED.search(key) and not MEASURED.search(key):
        most = MOST["layer" if "layer" in key else ""]
        if config > most:
            raise BadInput(f"config.json of {name} says {key}: {config}; no model has more than {most}")
        if config < 1 and DEPTH.fullmatch(key):
            raise BadInput(f"config.json of {name} says {key}: {config}; a model has one at least")


def check_size(name: str, config: Any, options: Mapping[str, Any]) -> None:
    """Raises :class:`BadInput` where the configuration describes a model that a folder's files cannot hold.

    transformers would fill what is missing at random, and the memory with it. The model is made without weights.
    """
    import torch

    folder = Path(name)
    if not folder.is_dir() or options.get("trust_remote_code"):
        return
    with named(name, "cannot be made as its config.json says", options), torch.device("meta"):
        bare = auto_class(config).from_config(config, trust_remote_code=False)
    needed = sum(tensor.numel() for tensor in (*bare.parameters(), *bare.buffers()))
    held = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if needed > PACKED * held + ROOM:
        raise BadInput(
            f"config.json of {name} describes a model of {needed:,} parameters; "
            f"the files of that folder have {held:,} bytes together: the two do not belong together"
        )
