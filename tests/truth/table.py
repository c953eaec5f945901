"""Rows of PEFT's and the registry's answers, and the tables made of them."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from textwrap import wrap
from typing import NamedTuple

from tests.truth.methods import VARIANTS, method_of
from tests.truth.oracle import FILE_NOT_FINITE, STRUCTURE, Answer
from tests.truth.product import NO, YES, Said

STAGES = ("check", "compat", "weights", "engine", "smoke", "all")
KINDS = ("false yes", "false no", "stricter", "unknown", "crash")
SHOWN = 30


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
            elif word == "unknown" and stage not in ("check", "engine") and self.together == "unknown":
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


def _table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    counts = count(rows)
    stages = [
        stage for stage in STAGES if any(stage in row.said for row in rows) or any(f.stage == stage for f in counts)
    ]
    return [(stage, *(str(counts[Fault(stage, kind)]) for kind in KINDS)) for stage in stages]


def _difference(row: Row, stage: str) -> str:
    shown = row.said.get(stage) or next((words for words in row.said.values() if words[0] in (*NO, "crash")), ("", ""))
    return (
        f"{row.id}: PEFT {row.answer.why or 'yes'} {row.answer.message[:150]}; "
        f"registry {shown[0] or row.together} {shown[1][:150]}"
    )


# ------------------------------------------------------------------ docs/truth.md, docs/truth-unbuilt.md
HEAD = """\
# How far verdicts agree with PEFT

PEFT {peft} itself (with transformers {transformers} and torch {torch}) and the registry answered about the
same adapters: {cases} cases of {methods} methods and {architectures} architectures. {honest} of them are honest
adapters, {honest_unknown} of those without a verdict.

| stage | {kinds} |
|---|{rule}
"""
NOTES = """
- **Stages.** `check` is the domain alone. `compat`, `weights`, `engine` (the rules about PEFT) and `smoke` are stored
  verdicts after a push and a worker's run. `all` is what a gate makes of them.
- **False yes.** PEFT says no, and the stage passes. A stage that sees no numbers answers for structure only: `compat`
  is what headers show, so a lost tensor of some methods is seen by `smoke` first.
- **False no.** PEFT says yes to an honest adapter, and the stage fails it.
- **Stricter.** PEFT tolerates a damaged or malformed adapter that the registry refuses.
- **Unknown.** No verdict, and no other stage says no.
- **Crash.** An error instead of a verdict.

## How it is measured

The cases are

- every PEFT method that can be made on a tiny Llama, on classifiers (BERT; Llama for methods of decoders) and on T5,
  with every tensor lost, added, resized, transposed, zeroed or made NaN, and every field of its configuration null,
  missing, of another type or out of range; the last table says how many of them were asked on each;
- LoRA on a tiny random model of every text architecture that transformers can build: all linear modules, the defaults,
  DoRA, rsLoRA, biases, a saved head, embeddings, trained tokens; honest and wrong in seven ways.

PEFT says yes if its configuration class reads the configuration, its loader finds every tensor that it expects and no
other, two loads answer alike, and the outputs are finite and differ from the bare base's. {unmade} models and adapters
[could not be built](truth-unbuilt.md).

`make test-truth` wrote this page. A whole run takes hours and continues where it stopped. Reproduce a case with
`make test-truth CASES='loha/plain/drop-one:hada_w1_a'`. The code of these commits gave the answers of the registry:

| cases | number | by commit |
|---|---|---|
{answered}
"""
UNBUILT = """\
# What the comparison with PEFT could not build

Models that transformers, and adapters that PEFT did not build for [the comparison](truth.md), by the library's own
error. Some need inputs, sizes or packages that the comparison does not have. `make test-truth` wrote this page.
"""
PAGE_WIDTH = 140
MESSAGE_LENGTH = 160


def page(
    rows: Sequence[Row], unmade: Sequence[Unmade], versions: Mapping[str, str], answered: Mapping[str, Counter[str]]
) -> str:
    """The page docs/truth.md. `answered`: kind of cases → commit → number."""
    rows = sorted(rows, key=lambda row: row.id)
    head = HEAD.format(**versions, **figures(rows), kinds=" | ".join(KINDS), rule="---|" * len(KINDS))
    notes = NOTES.format(unmade=len(unmade), answered="\n".join(_sources(answered)))
    lines = [head + "\n".join(f"| {' | '.join(row)} |" for row in _table(rows)), notes]
    for kind in ("false yes", "false no", "crash"):
        stages: dict[tuple[str, str], list[str]] = defaultdict(list)
        for fault, by_family in families(rows).items():
            for family, cases in by_family.items():
                if fault.kind == kind:
                    stages[family, cases[0].id].append(fault.stage)
        members = [
            f"- {family}, such as `{example}`: {', '.join(sorted(family_stages, key=STAGES.index))}"
            for (family, example), family_stages in sorted(stages.items())
        ]
        if members:
            lines += [f"## Open: {kind}", "", *_first(members), ""]
    lines += _unknown(rows)
    return "\n".join(lines).rstrip() + "\n"


def _sources(answered: Mapping[str, Counter[str]]) -> Iterator[str]:
    for kind, commits in answered.items():
        shares = (f"{name or 'older code'}: {number}" for name, number in commits.most_common())
        yield f"| {kind} | {commits.total()} | {', '.join(shares)} |"


def unbuilt_page(unmade: Iterable[Unmade]) -> str:
    """The page docs/truth-unbuilt.md."""
    lines = [UNBUILT]
    for library, items in groupby(sorted(unmade, key=lambda item: (item.by, item)), key=attrgetter("by")):
        ids_of: dict[str, list[str]] = defaultdict(list)
        for item in items:
            ids_of[_code(item.message)].append(item.id)
        lines += [f"## {library}", ""]
        for message, ids in sorted(ids_of.items()):
            text = f"- {message}: `{'`, `'.join(ids)}`"
            lines += wrap(text, PAGE_WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _unknown(rows: Sequence[Row]) -> list[str]:
    """Every honest adapter without a verdict and what its smoke test says; of the others, how many of each change."""
    unknown = [row for row in rows if Fault("all", "unknown") in row.faults]
    if not unknown:
        return []
    lines, changes = ["## Open: unknown", ""], Counter(row.id.rpartition("/")[2] for row in unknown if not row.honest)
    honest = [row for row in unknown if row.honest]
    lines += [f"- `{row.id}`: {_code(row.said.get('smoke', ('', ''))[1])}" for row in honest]
    return [*lines, *(f"- `{change}`: {number} cases" for change, number in sorted(changes.items())), ""]


def _first(items: list[str]) -> list[str]:
    """The first items, and how many more there are."""
    return items if len(items) <= SHOWN else [*items[:SHOWN], f"- and {len(items) - SHOWN} more"]


def _code(message: str) -> str:
    """The beginning of a library's message as code, which Markdown leaves as it is."""
    text = " ".join(message.replace("`", "'").split())
    return f"`{text}`" if len(text) <= MESSAGE_LENGTH else f"`{text[:MESSAGE_LENGTH].rstrip()}…`"
