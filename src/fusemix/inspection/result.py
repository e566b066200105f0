"""The result of an inspection: all findings, their rows as one table, and both on the disk."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from fusemix import durable
from fusemix.data.pairs import Pairs
from fusemix.inspection.findings import Account, Concern, Finding
from fusemix.inspection.page import write_inspection


@dataclass(frozen=True)
class Inspection:
    """Everything that was found.

    Attributes:
        source: what was inspected, as it was named.
        pairs: its rows and items.
        accounts: for each modality.
        findings: worst first.
        has_latents: whether it was a folder of latents.
    """

    source: str
    pairs: Pairs
    accounts: dict[str, Account]
    findings: list[Finding]
    has_latents: bool

    @property
    def table(self) -> pa.Table:
        """One row for each row, item or pair that a finding is about.

        Columns: kind, severity, modality, row (of the table, counted from 1), id, value (file name or text), other_row,
        other_modality, other_id, other_value, score, message; null where one does not apply.
        """
        lines = [self._line(finding, concern) for finding in self.findings for concern in finding.concerns]
        kinds = {
            "kind": pa.string(), "severity": pa.string(), "modality": pa.string(), "row": pa.int64(),
            "id": pa.string(), "value": pa.string(), "other_row": pa.int64(), "other_modality": pa.string(),
            "other_id": pa.string(), "other_value": pa.string(), "score": pa.float64(), "message": pa.string(),
        }  # fmt: skip
        columns = list(zip(*lines, strict=True)) or [()] * len(kinds)
        return pa.table({name: pa.array(c, kind) for (name, kind), c in zip(kinds.items(), columns, strict=True)})

    def _line(self, finding: Finding, concern: Concern) -> tuple[Any, ...]:
        modality = concern.item[0] if concern.item else finding.modality
        other = concern.other[0] if concern.other else None
        row, other_row = (None if row is None else row + 1 for row in (concern.row, concern.other_row))
        named = *self._named(concern.item), other_row, other, *self._named(concern.other)
        return finding.kind, finding.severity, modality, row, *named, concern.score, concern.message

    def _named(self, item: tuple[str, int] | None) -> tuple[str | None, str | None]:
        if item is None:
            return None, None
        items = self.pairs.items[item[0]]
        return items.ids[item[1]], items.values[item[1]]

    def to_dict(self) -> dict[str, Any]:
        """Return source, rows, accounts and findings without their rows, as plain values for JSON."""
        return {
            "source": self.source,
            "rows": len(self.pairs),
            "modalities": {name: dict(account.__dict__) for name, account in self.accounts.items()},
            "findings": [
                {name: value for name, value in finding.__dict__.items() if name != "concerns"}
                for finding in self.findings
            ],
        }

    def save(self, folder: str | Path) -> None:
        """Write report.html and inspect.parquet, each whole or not at all.

        Raises:
            OSError: the disk refused.
        """
        folder = Path(folder)
        sink = pa.BufferOutputStream()
        pa.parquet.write_table(self.table, sink)
        durable.write(folder / "inspect.parquet", sink.getvalue().to_pybytes())
        write_inspection(folder / "report.html", self.source, self.pairs, self.accounts, self.findings)
