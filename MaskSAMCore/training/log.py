"""metrics.csv: one row per epoch."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from MaskSAMCore.io.atomic import write_text

METRICS = "metrics.csv"


class MetricsLog:
    """Rows of metrics.csv; its columns may grow from one row to the next."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / METRICS
        self.rows: list[dict[str, Any]] = []

    def restore(self, *, until_step: int) -> None:
        """Read the rows of an earlier part of the run; rows after `until_step` are dropped."""
        if until_step and self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) <= until_step]

    def add(self, row: dict[str, Any]) -> None:
        """Append one row and write the file whole, atomically."""
        self.rows.append(row)
        columns = list(dict.fromkeys(key for each in self.rows for key in each))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, text.getvalue(), overwrite=True)

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """(epochs, values) of one column, where it has a value."""
        pairs = [(float(r["epoch"]), float(r[name])) for r in self.rows if r.get(name) not in (None, "")]
        return [p[0] for p in pairs], [p[1] for p in pairs]
