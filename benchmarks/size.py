"""Host memory while a bfloat16 model is edited: peaks above the model's own bytes, as JSON on stdout.

    python benchmarks/size.py [--folder DIR]

A folder with a Llama of TinyLlama's shape and random numbers (1.1 billion parameters, 2.2 GB on disk, in shards) is
made in a temporary place. In a process of its own it is loaded in bfloat16 on the CPU, MEMIT prepares on a few texts
and edits ten facts, twice, with two steps of its search, since only memory is measured. The peak is the whole
process's (VmHWM), less what it held without a model, less the model.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

SHAPE = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
}
FACTS, TEXTS = 10, 20


def save(folder: Path) -> None:
    """A model of that shape with random numbers, and the bundled model's tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    import errata

    config = AutoConfig.for_model("llama", dtype="bfloat16", **SHAPE)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="500MB")
    errata.load("world").tokenizer.save_pretrained(folder)


def resident(line: str) -> float:
    """``VmRSS`` or ``VmHWM`` of this process, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(one.split()[1]) * 1024 / 1e6 for one in lines if one.startswith(f"{line}:"))


def measured(folder: str) -> dict[str, Any]:
    """MB above the process and its model, at the peak of each step."""
    import errata

    torch.set_num_threads(1)
    world = errata.load("world")
    texts = [text for text, _ in zip(world.resources.texts(), range(TEXTS))]  # pyright: ignore
    edits = [case.edits[0] for case in errata.cases("world", limit=FACTS)]
    memit: Any = errata.method("memit", steps=2)
    bare = resident("VmRSS")
    figures: dict[str, Any] = {}

    def step(name: str, work: Any) -> Any:
        ctypes.CDLL(None).malloc_trim(0)  # what the C library holds free is in no use
        Path("/proc/self/clear_refs").write_text("5")
        made = work()
        figures[name] = resident("VmHWM") - bare
        print(f"{name}: {figures[name]:.0f} MB above the bare process", file=sys.stderr, flush=True)
        return made

    lm = step("load", lambda: errata.load(folder, dtype="bfloat16", device="cpu"))
    model = sum(p.numel() * p.element_size() for p in lm.model.parameters()) / 1e6
    state = step("prepare", lambda: memit.prepare(lm, texts))
    patch = step("edit", lambda: memit.edit(lm, edits, state))

    step("edit again", lambda: memit.edit(lm, edits, state))  # the inverses are there already

    def put_on() -> None:
        with patch.applied(lm) as edited:
            edited.generate([edits[0].prompt], 4)

    step("apply", put_on)
    held = sum(c.nbytes for c in state.tensors.values()) / 1e6
    return {
        "parameters": sum(p.numel() for p in lm.model.parameters()),
        "model_mb": round(model),
        "statistics_mb": round(held),
        "patch_mb": round(patch.nbytes / 1e6, 1),
        "layers": list(memit.chosen_layers(lm)),
        "peak_above_model_mb": {name: round(peak - model) for name, peak in figures.items()},
        "peak_over_model": {name: round(peak / model, 2) for name, peak in figures.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="measure the model in this folder")
    args = parser.parse_args()
    if args.folder:
        print(json.dumps(measured(args.folder), indent=1))
        return
    with tempfile.TemporaryDirectory() as place:
        save(Path(place) / "model")
        own = {**os.environ, "ERRATA_CACHE": f"{place}/cache", "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, __file__, "--folder", f"{place}/model"], check=True, env=own)


if __name__ == "__main__":
    main()
