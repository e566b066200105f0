"""One RESULT line per goal, and an exit code that tells whether all of them hold."""

import json
import sys
from collections.abc import Callable
from typing import Any

_missed: list[str] = []


def result(name: str, figure: Any, target: str, holds: Callable[[Any], bool]) -> bool:
    """Print one RESULT line and tell whether the goal holds.

    Args:
        name: what was measured, with its unit.
        figure: what came.
        target: what was wanted, in words.
        holds: the same as a function of the figure.
    """
    held = bool(holds(figure))
    print("RESULT", json.dumps({"name": name, "figure": figure, "target": target, "holds": held}), flush=True)
    if not held:
        _missed.append(name)
    return held


def leave() -> None:
    """End the process, with 1 if a goal was missed."""
    sys.exit(f"missed: {'; '.join(_missed)}" if _missed else 0)
