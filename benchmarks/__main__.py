"""What this project measures, one command each: python -m benchmarks [NAME ...]

Without a name, the commands and what they measure. Only the module that is named is imported.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

FIRST = ("peers", "readme", "paper", "floor", "check", "gpu", "pipeline")


def commands() -> dict[str, str]:
    """Name -> the first line of its docstring, of every module here with a `main`; the tables of the README first."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return {
        name: found[name]
        for name in sorted(found, key=lambda n: (n not in FIRST, FIRST.index(n) if n in FIRST else 0, n))
    }


def main(argv: Sequence[str]) -> int:
    """Exit code: of the command; 2 for a name that is none."""
    known = commands()
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        width = max(map(len, known))
        for name, line in known.items():
            print(f"  {name:{width}}  {line.partition(': python')[0]}")
        return 0
    name, *rest = argv
    if name not in known:
        print(f"benchmarks: {name}: no such command; there are {', '.join(known)}", file=sys.stderr)
        return 2
    run = import_module(f"benchmarks.{name}").main
    if inspect.signature(run).parameters:
        return int(run(rest) or 0)
    sys.argv = [f"python -m benchmarks {name}", *rest]
    return int(run() or 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
