"""`python -m benchmarks` runs every bench_*.py in turn; `python -m benchmarks NAME …` only one.

What follows NAME goes to that benchmark: `python -m benchmarks evaluator --images 10`.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

PREFIX = "bench_"


def names() -> list[str]:
    """Benchmarks by the names of their files."""
    files = sorted(Path(__file__).parent.glob(f"{PREFIX}*.py"))
    return [file.stem.removeprefix(PREFIX) for file in files]


def main() -> None:
    """Run the benchmark named on the command line, or all of them."""
    chosen, options = sys.argv[1:2] or names(), sys.argv[2:]
    if unknown := set(chosen) - set(names()):
        raise SystemExit(
            f"no benchmark {unknown.pop()!r}; there are: {', '.join(names())}. "
            "Type python -m benchmarks, or python -m benchmarks NAME --help."
        )
    for name in chosen:
        sys.argv = [f"python -m benchmarks {name}", *options]
        print(f"== {name}", flush=True)
        importlib.import_module(f"benchmarks.{PREFIX}{name}").main()


if __name__ == "__main__":
    main()
