"""Rows of PEFT's and the registry's answers, and the tables made of them."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tests.truth.oracle import STRUCTURE, Answer
from tests.truth.product import NO, YES, Said

STAGES = ("check", "compat", "weights", "engine", "smoke")
KINDS = ("false yes", "false no", "stricter", "unknown", "crash")
"""`stricter`: PEFT tolerates a fault that the registry refuses; not a disagreement about an honest adapter."""


class Fault(NamedTuple):
    stage: str
    kind: str


@dataclass(frozen=True)
class Row:
    """One case."""

    id: str
    honest: bool
    answer: Answer
    said: Said

    @property
    def faults(self) -> list[Fault]:
        """Where a stage says something else than PEFT. A stage before the numbers need not see what only they show."""
        faults = []
        for stage, (word, _) in self.said.items():
            if word == "crash":
                faults.append(Fault(stage, "crash"))
            elif self.answer.is_yes and word in NO:
                faults.append(Fault(stage, "false no" if self.honest else "stricter"))
            elif not self.answer.is_yes and word in YES and self._shows(stage):
                faults.append(Fault(stage, "false yes"))
            elif word == "unknown" and stage not in ("check", "engine"):
                faults.append(Fault(stage, "unknown"))
        return faults

    def _shows(self, stage: str) -> bool:
        if stage == "weights":
            return self.answer.why == "not_finite"
        return stage == "smoke" or self.answer.why in STRUCTURE

    @property
    def disagrees(self) -> bool:
        return any(fault.kind in ("false yes", "false no", "crash") for fault in self.faults)

    @property
    def family(self) -> str:
        """Its method and its mutation, without the tensor or the value."""
        group, _, change = self.id.rpartition("/")
        return f"{group}/{change}"


def text(rows: Sequence[Row], *, show: bool = False) -> str:
    """A table by stage, the disagreements by family, one line of JSON."""
    counts = count(rows)
    lines = [f"{'stage':10}" + "".join(f"{kind:>12}" for kind in KINDS)]
    for stage in STAGES:
        if any(stage in row.said for row in rows):
            lines.append(f"{stage:10}" + "".join(f"{counts[Fault(stage, kind)]:12}" for kind in KINDS))
    families: dict[tuple[str, str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        for fault in row.faults:
            families[fault.stage, fault.kind, row.id.split("/")[0], row.id.rpartition("/")[2].split(":")[0]].append(row)
    for (stage, kind, group, change), members in sorted(families.items()):
        shown = members if show else members[:1]
        lines.append(f"{stage} {kind}: {group} {change} ({len(members)})")
        for row in shown:
            lines.append(
                f"    {row.id}: PEFT {row.answer.why or 'yes'} {row.answer.message[:150]}; "
                f"registry {row.said[stage][0]} {row.said[stage][1][:150]}"
            )
    lines.append(json.dumps(figures(rows)))
    return "\n".join(lines)


def count(rows: Sequence[Row]) -> Counter[Fault]:
    """How many cases have each fault."""
    return Counter(fault for row in rows for fault in row.faults)


def figures(rows: Sequence[Row]) -> dict[str, object]:
    """The counts as one object."""
    counts = count(rows)
    return {
        "cases": len(rows), "honest": sum(row.honest for row in rows),
        "peft_yes": sum(row.answer.is_yes for row in rows),
        **{f"{stage}_{kind}".replace(" ", "_"): n for (stage, kind), n in sorted(counts.items())},
    }  # fmt: skip
