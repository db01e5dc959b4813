"""The layers of the package and the list of what must never be, read from the source."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import errata
from errata.methods.registry import METHODS

ROOT = Path(errata.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
PLAIN = (
    "printable", "errors", "answers", "subjects", "types", "phrasings", "locks", "files", "inputs", "tensor_files",
    "encoders",
)  # fmt: skip
LAYERS = (
    *PLAIN,
    "completions",
    "model",
    "patch",
    "distributed",
    "locate",
    "exchange",
    "audit",
    "conflicts",
    "methods",
    "free_text",
    "world",
    "cost",
    "data",
    "evaluation",
    "report",
    "review",
    "bench",
    "journal",
    "cli",
    "__main__",
)
HEAVY = {"torch", "transformers", "numpy", "safetensors", "tokenizers"}
DRIVERS = (
    "model", "patch", "locate", "exchange", "audit", "conflicts", "cost", "evaluation", "bench", "report", "review",
    "journal",
)  # fmt: skip


def name_of(path: Path) -> str:
    """The module's dotted name."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path) for path in FILES}


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(node: ast.AST) -> Iterator[str]:
    """Every module that is imported anywhere in ``node``: submodules by their full names."""
    for part in ast.walk(node):
        if isinstance(part, ast.Import):
            yield from (alias.name for alias in part.names)
        elif isinstance(part, ast.ImportFrom):
            assert not part.level, "imports are absolute here"
            module = part.module or ""
            for alias in part.names:
                inner = f"{module}.{alias.name}"
                yield inner if inner in MODULES else module


def at_import(path: Path) -> ast.Module:
    """The statements that run when the module is imported: no functions, nothing for type checkers alone."""
    typing = [n for n in tree_of(path).body if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)]
    body = [n for n in tree_of(path).body if not isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    skipped = {ast.dump(n) for n in typing}
    return ast.Module([n for n in body if ast.dump(n) not in skipped], [])


def forbidden(importer: str, imported: str) -> bool:
    """Whether the design forbids this arrow between two modules of Errata."""
    a, b = (name.split(".")[1:] for name in (importer, imported))
    if not a or a[0] == "cli":  # these two join everything
        return not a and b[:1] == ["cli"]
    if not b or LAYERS.index(b[0]) > LAYERS.index(a[0]):
        return True
    if b[0] != "methods":
        return False
    if a[0] != "methods":
        return True  # methods are passed as objects, never imported
    if len(b) == 2:  # a file beside the families is shared, unless it is a method
        return a != b and b[1] in SINGLE_FILES and a[1] != "registry"
    if b[1] not in FAMILIES:  # a folder of shared files
        return False
    return a[1] != b[1] or (b[2] in METHOD_FILES and a[2:] != b[2:])


# Files that define a registered method: all of them, and those beside the families' folders.
METHOD_FILES = {where.split(":")[0].split(".")[-1] for where in METHODS.values()}
FAMILIES = {where.split(".")[2] for where in METHODS.values() if where.count(".") == 3}
SINGLE_FILES = {where.split(":")[0].split(".")[-1] for where in METHODS.values() if where.count(".") == 2}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_arrow_goes_up(path: Path) -> None:
    own = [name for name in imports(tree_of(path)) if name.split(".")[0] == "errata"]
    assert [name for name in own if forbidden(name_of(path), name)] == []


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("errata.types", "errata.model.lm"),
        ("errata.model.hf", "errata.patch.patch"),
        ("errata.methods.closed_form.rome", "errata.methods.closed_form.memit"),
        ("errata.methods.closed_form.rome", "errata.methods.codebook.keys"),
        ("errata.methods.closed_form.keys", "errata.methods.closed_form.rome"),
        ("errata.methods.closed_form.rome", "errata.methods.steering"),
        ("errata.methods.memory.adapter", "errata.methods.codebook.keys"),
        ("errata.methods.prompting.rag", "errata.methods.codebook.keys"),
        ("errata.methods.closed_form.rome", "errata.data.reader"),
        ("errata.methods.closed_form.rome", "errata.evaluation.metrics"),
        ("errata.evaluation.evaluate", "errata.methods.base"),
        ("errata.evaluation.evaluate", "errata"),
        ("errata.review.probes", "errata.methods.losses"),
        ("errata.review.probes", "errata.methods.closed_form.rome"),
        ("errata.review.probes", "errata.methods.base"),
        ("errata.bench.run", "errata.cli.edit"),
        ("errata", "errata.cli"),
    ],
)
def test_the_test_sees_a_forbidden_arrow(importer: str, imported: str) -> None:
    assert forbidden(importer, imported)


def test_every_module_has_a_layer() -> None:
    assert {name.split(".")[1] for name in MODULES if "." in name} == set(LAYERS)


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES} - {ROOT}), ids=name_of)
def test_a_folder_states_what_lives_there_and_what_it_may_import(folder: Path) -> None:
    docstring = ast.get_docstring(tree_of(folder / "__init__.py")) or ""
    assert "may import" in docstring.lower(), f"{folder.name}/__init__.py says what is in it and what it may import"


# Never -------------------------------------------------------------------------------------------


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Each call and what is called, as ``torch.save``."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def callers(called: str) -> set[str]:
    """The files that call a function or method of this name."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in FILES
        for name, _ in calls(path)
        if name == called or name.endswith("." + called)
    }


def constants(path: Path) -> set[object]:
    """Every constant in a file: texts, numbers."""
    return {n.value for n in ast.walk(tree_of(path)) if isinstance(n, ast.Constant)}


@pytest.mark.parametrize(
    "function",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
        "register_hook",
    ],
)
def test_hooks_are_registered_in_one_file(function: str) -> None:
    assert callers(function) <= {"model/hooks.py"}


def test_only_the_command_line_prints() -> None:
    printing = {p.relative_to(ROOT).parts[0] for p in FILES for name, _ in calls(p) if name == "print"}
    assert printing <= {"cli"}


def test_no_pickle() -> None:
    every = {name.split(".")[0] for path in FILES for name in imports(tree_of(path))}
    assert not every & {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def test_torch_files_are_checkpoints_of_training_and_hold_tensors_alone() -> None:
    uses = [
        (p.relative_to(ROOT).as_posix(), name, call)
        for p in FILES
        for name, call in calls(p)
        if name in ("torch.save", "torch.load")
    ]
    assert {path for path, _, _ in uses} <= {"world/checkpoints.py"}
    for _, name, call in uses:
        words = {k.arg: ast.unparse(k.value) for k in call.keywords}
        assert name == "torch.save" or words.get("weights_only") == "True"


def test_nothing_loaded_may_run_code() -> None:
    for path in FILES:
        for name, call in calls(path):
            assert name not in ("eval", "exec"), path
            keywords = {k.arg: ast.unparse(k.value) for k in call.keywords}
            assert keywords.get("trust_remote_code") != "True", path


def test_parameters_are_assigned_in_one_file() -> None:
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            targets = node.targets if isinstance(node, ast.Assign) else []
            data = [t for t in targets if isinstance(t, ast.Attribute) and t.attr == "data"]
            assert not data or path.name == "delta.py", path


def test_drivers_know_no_method() -> None:
    for path in FILES:
        if path.relative_to(ROOT).parts[0] in DRIVERS and path.name != "protocols.py":  # named after papers
            assert not constants(path) & set(METHODS), path


def test_devices_are_named_where_models_are_loaded() -> None:
    for path in FILES:
        assert not constants(path) & {"cuda", "mps"} or path.name == "loading.py", path


def test_models_are_not_recognised_by_name() -> None:
    for path in FILES:
        attributes = {n.attr for n in ast.walk(tree_of(path)) if isinstance(n, ast.Attribute)}
        assert "model_type" not in attributes or path.name == "defaults.py", path


def test_nothing_happens_at_import() -> None:
    for path in FILES:
        if path.relative_to(ROOT).parts[0] != "cli":  # where commands are registered
            bare = [
                ast.unparse(n)
                for n in at_import(path).body
                if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)
            ]
            assert not bare, path


@pytest.mark.parametrize("path", [p for p in FILES if p.parent == ROOT / "cli"] + [ROOT / "__init__.py"], ids=name_of)
def test_nothing_heavy_comes_with_the_command_line(path: Path) -> None:
    light = [f"errata.{name}" for name in PLAIN]
    for name in imports(at_import(path)):
        assert name.split(".")[0] not in HEAVY
        assert not name.startswith("errata.") or name in light or name.startswith("errata.cli")


def imports_of(path: Path) -> set[str]:
    """The modules that a file names in imports, wherever they stand; only those for type checkers too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_no_two_files_lead_to_each_other() -> None:
    names = {name_of(path): path for path in FILES if path.name != "__init__.py"}
    arrows = {name: imports_of(path) & names.keys() for name, path in names.items()}
    order: list[str] = []
    while left := arrows.keys() - set(order):
        free = sorted(name for name in left if not arrows[name] - set(order))
        assert free, f"a circle within {sorted(left)}"
        order += free
