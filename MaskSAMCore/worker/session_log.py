"""Session log of the client: the requests that restore scans and structures in a new worker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class OpenScan:
    """The fields of a scan's `open` request, and of the last answered `prompt` request of each structure."""

    fields: dict[str, Any]
    structures: dict[int, dict[str, Any]] = field(default_factory=dict)


class SessionLog:
    """The answered requests that a worker's state depends on.

    Each request for a structure has all of its prompts, and the answer depends on scan, model and prompts alone. So
    the last request is enough.
    """

    def __init__(self) -> None:
        self.cases: dict[int, OpenScan] = {}

    def add(self, op: str, fields: dict[str, Any]) -> None:
        """Add a request that was answered."""
        case = fields.get("case", -1)
        if op == "open":
            self.cases[case] = OpenScan(fields)
        elif op == "release":
            self.cases.pop(case, None)
        elif case in self.cases:
            structures, structure = self.cases[case].structures, fields.get("structure", -1)
            if op == "prompt":
                structures[structure] = fields
            elif op == "drop":
                structures.pop(structure, None)
            elif op == "propagate" and structure in structures:
                *before, last = structures[structure]["prompts"]
                last = last | {"scope": fields.get("scope", "volume")}
                structures[structure] = structures[structure] | {"prompts": [*before, last]}

    def requests(self, case: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """The operations and fields that restore a case."""
        opened = self.cases[case]
        yield "open", opened.fields
        for fields in opened.structures.values():
            yield "prompt", fields

    def forget(self, case: int) -> None:
        """Remove a case."""
        self.cases.pop(case, None)
