"""Rows of PEFT's and the registry's answers, and the tables made of them."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tests.truth.methods import VARIANTS, method_of
from tests.truth.oracle import FILE_NOT_FINITE, STRUCTURE, Answer
from tests.truth.product import NO, YES, Said

STAGES = ("check", "compat", "weights", "engine", "smoke", "all")
KINDS = ("false yes", "false no", "stricter", "unknown", "crash")
MAY_NOT_KNOW = frozenset({"check", "engine"})
"""Stages whose unknown is not counted: the worker asks PEFT itself what they leave open."""


class Fault(NamedTuple):
    """`stricter`: PEFT tolerates a changed adapter that the registry refuses; `false no` is about honest ones."""

    stage: str
    kind: str


class Unmade(NamedTuple):
    """What the installed libraries cannot build: a group, or all groups of an architecture; `by` which library."""

    id: str
    by: str
    message: str


@dataclass(frozen=True)
class Row:
    """One case."""

    id: str
    honest: bool
    answer: Answer
    said: Said

    @property
    def together(self) -> str:
        """What a gate makes of all stages: yes only if each of them says so."""
        words = {word for stage, (word, _) in self.said.items() if stage != "engine"}
        if "crash" in words or words & NO:
            return "crash" if "crash" in words else "fail"
        was_pushed = {"compat", "weights", "smoke"} <= self.said.keys()
        return (
            "pass"
            if was_pushed and "unknown" not in [self.said[s][0] for s in ("compat", "weights", "smoke")]
            else "unknown"
        )

    @property
    def faults(self) -> list[Fault]:
        """Where a stage says something else than PEFT. A stage before the numbers need not see what only they show."""
        words = {stage: word for stage, (word, _) in self.said.items()}
        if self.said.keys() - {"check"}:
            words["all"] = self.together
        faults = []
        for stage, word in words.items():
            if word == "crash":
                faults.append(Fault(stage, "crash"))
            elif self.answer.is_yes and word in NO:
                faults.append(Fault(stage, "false no" if self.honest else "stricter"))
            elif not self.answer.is_yes and word in YES and self._shows(stage):
                faults.append(Fault(stage, "false yes"))
            elif word == "unknown" and stage not in MAY_NOT_KNOW and self.together == "unknown":
                faults.append(Fault(stage, "unknown"))
        return faults

    def _shows(self, stage: str) -> bool:
        if stage == "weights":
            return self.answer.message == FILE_NOT_FINITE
        return stage in ("smoke", "all") or self.answer.why in STRUCTURE

    @property
    def disagrees(self) -> bool:
        return any(fault.kind in ("false yes", "false no", "crash") for fault in self.faults)

    @property
    def family(self) -> str:
        """Its method or architecture and what was changed, without the tensor or the value."""
        return f"{self.id.split('/')[0]} {self.id.rpartition('/')[2].split(':')[0]}"


def count(rows: Iterable[Row]) -> Counter[Fault]:
    """How many cases have each fault."""
    return Counter(fault for row in rows for fault in row.faults)


def families(rows: Iterable[Row]) -> dict[Fault, dict[str, list[Row]]]:
    """Fault → family → its cases."""
    grouped: dict[Fault, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for fault in row.faults:
            grouped[fault][row.family].append(row)
    return grouped


def figures(rows: Sequence[Row]) -> dict[str, object]:
    """The counts as one object."""
    honest = [row for row in rows if row.honest and row.answer.is_yes]
    subjects = {row.id.split("/")[0] for row in rows}
    tried = {subject for subject in subjects if method_of(subject) in VARIANTS}
    return {
        "methods": len({method_of(subject) for subject in tried}), "architectures": len(subjects - tried),
        "cases": len(rows), "peft_yes": sum(row.answer.is_yes for row in rows), "honest": len(honest),
        "honest_unknown": sum(Fault("all", "unknown") in row.faults for row in honest),
        **{f"{stage}_{kind}".replace(" ", "_"): n for (stage, kind), n in sorted(count(rows).items())},
    }  # fmt: skip


def text(rows: Sequence[Row], unmade: Sequence[Unmade] = (), *, show: bool = False) -> str:
    """A table by stage, the differences by family, what cannot be made, one line of JSON."""
    lines = [f"{'stage':10}" + "".join(f"{kind:>12}" for kind in KINDS)]
    lines += [f"{stage:10}" + "".join(f"{number:12}" for number in numbers) for stage, *numbers in _table(rows)]
    for fault, members in sorted(families(rows).items()):
        for family, cases in sorted(members.items()):
            lines.append(f"{fault.stage} {fault.kind}: {family} ({len(cases)})")
            lines += [f"    {_difference(row, fault.stage)}" for row in (cases if show else cases[:1])]
    lines += [f"not made by {item.by}: {item.id}: {item.message}" for item in unmade]
    lines.append(json.dumps(figures(rows) | {"not_made": len(unmade)}))
    return "\n".join(lines)


def cell(stage: str, kind: str, number: int) -> str:
    """A number of the table; a dash where it is not counted."""
    return "–" if kind == "unknown" and stage in MAY_NOT_KNOW else str(number)


def _table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    counts = count(rows)
    stages = [
        stage for stage in STAGES if any(stage in row.said for row in rows) or any(f.stage == stage for f in counts)
    ]
    return [(stage, *(cell(stage, kind, counts[Fault(stage, kind)]) for kind in KINDS)) for stage in stages]


def _difference(row: Row, stage: str) -> str:
    shown = row.said.get(stage) or next((words for words in row.said.values() if words[0] in (*NO, "crash")), ("", ""))
    return (
        f"{row.id}: PEFT {row.answer.why or 'yes'} {row.answer.message[:150]}; "
        f"registry {shown[0] or row.together} {shown[1][:150]}"
    )
