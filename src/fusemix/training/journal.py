"""What a fit tells while it runs: metrics.jsonl, a live remark, and whoever else listens."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fusemix import durable

NAME = "metrics.jsonl"
Track = Callable[[dict[str, float]], None]
"""Called with every record of metrics.jsonl: numbers by name, among them "step"."""


class Journal:
    """metrics.jsonl: one JSON object a line, in order of the steps; a fit that goes on continues its file.

    Attributes:
        step: of the last line.
    """

    def __init__(
        self, folder: Path | None, step: int, history: Sequence[dict[str, float]], track: Track | None
    ) -> None:
        """Open the file.

        Args:
            folder: to write in; None writes nothing.
            step: where the fit stands; later lines are of steps that an interruption undid.
            history: the epochs that are done; an interruption can come before their line.
            track: told every new record too.
        """
        self._path = folder / NAME if folder is not None else None
        self._track = track
        lines: dict[int, dict[str, Any]] = {int(record["step"]): record for record in history}
        if self._path is not None:
            if step:
                lines |= {line["step"]: line for line in read(self._path) if line["step"] <= step}
            content = "".join(json.dumps(lines[at]) + "\n" for at in sorted(lines))
            durable.write(self._path, content.encode())
        self.step = max(lines, default=0)

    def write(self, record: dict[str, Any]) -> None:
        """Add a record, unless one of its step was told before the interruption."""
        if record["step"] <= self.step:
            return
        self.step = int(record["step"])
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        if self._track is not None:
            self._track(record)


def read(path: Path) -> list[dict[str, Any]]:
    """Return the records of a metrics.jsonl; what a kill cut off is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


class Meter:
    """How fast the steps come, validation and saving left out.

    Args:
        pairs: loaded in a step.
        flops: of a step.
        limit: FLOP/s of the device's matrix products; 0 where it was not measured.
    """

    def __init__(self, pairs: int, flops: float, limit: float) -> None:
        self.pairs, self.flops, self.limit = pairs, flops, limit
        self._a_step = 0.0  # seconds, averaged over the last looks
        self.start(0)

    def start(self, step: int) -> None:
        """Begin to count at a step: what was done before is no part of one."""
        self._since, self._from = time.perf_counter(), step

    def look(self, step: int) -> float:
        """Count the steps since the last look; return the seconds that they took."""
        now = time.perf_counter()
        took, count = now - self._since, step - self._from
        if count:
            self._a_step = 0.8 * self._a_step + 0.2 * took / count if self._a_step else took / count
        self._since, self._from = now, step
        return took

    def speed(self) -> dict[str, float]:
        """Return pairs_per_second and share_of_limit, in [0, 1]; nothing before the first step."""
        if not self._a_step:
            return {}
        speed = {"pairs_per_second": round(self.pairs / self._a_step, 1)}
        if self.limit:
            self.limit = max(self.limit, self.flops / self._a_step)  # it was measured while other programs ran
            speed["share_of_limit"] = round(self.flops / self._a_step / self.limit, 3)
        return speed
