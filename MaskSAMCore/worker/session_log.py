"""What the client must tell a new worker so that it knows what the dead one knew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class OpenScan:
    """A scan that is open: its `open` request, and the last `prompt` request that was answered of every structure."""

    fields: dict[str, Any]
    structures: dict[int, dict[str, Any]] = field(default_factory=dict)


class SessionLog:
    """The answered requests that a worker's state consists of.

    A structure's prompts are sent as a whole list each time, and the answer depends on scan, model and list alone;
    so the last list is all there is to keep.
    """

    def __init__(self) -> None:
        self.cases: dict[int, OpenScan] = {}

    def add(self, op: str, fields: dict[str, Any]) -> None:
        """A request was answered."""
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
        """The requests that bring a case back."""
        opened = self.cases[case]
        yield "open", opened.fields
        for fields in opened.structures.values():
            yield "prompt", fields

    def forget(self, case: int) -> None:
        """The case cannot be brought back."""
        self.cases.pop(case, None)
