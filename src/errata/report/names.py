"""Short names of methods with their settings, for legends and labels."""

from collections.abc import Iterable

WIDTH = 30  # characters


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Name -> a short one that no other has: the method alone where nothing else is called so, or cut with an ellipsis.

    short_names(["memit lam=2.0 steps=50", "ft", "ft lr=0.1"])["memit lam=2.0 steps=50"]   # 'memit'
    """
    names = list(dict.fromkeys(names))
    methods = [name.partition(" ")[0] for name in names]
    short: dict[str, str] = {}
    taken: set[str] = set()
    for name, method in zip(names, methods):
        wanted = _cut(name if methods.count(method) > 1 else method)
        chosen, number = wanted, 2
        while chosen in taken:
            chosen, number = f"{wanted} ({number})", number + 1
        taken.add(chosen)
        short[name] = chosen
    return short


def _cut(name: str) -> str:
    return name if len(name) <= WIDTH else name[: WIDTH - 1].rstrip() + "…"
