"""The committed summary `answers.jsonl`: a line for each method on a base and for each architecture.

A run replaces the lines of what it asked whole. docs/truth.md is made of the lines alone.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from tests.truth import architectures
from tests.truth.methods import VARIANTS, base_kind_of, method_of
from tests.truth.oracle import Answer
from tests.truth.product import Said
from tests.truth.table import KINDS, STAGES, Fault, Row, cell

ANSWERS = Path(__file__).with_name("answers.jsonl")
PAGE = Path(__file__).parents[2] / "docs" / "truth.md"
WRONG = ("false yes", "false no", "crash")


@dataclass(frozen=True)
class Line:
    """What the last run said about a subject that it asked whole. Without cases, it was not asked yet, or is not built.

    `commits`: whose code evaluated → number of cases; `libraries`: PEFT and what it ran on; `faults`: `stage kind` →
    number; `wrong`: [case, stage, kind] of what disagrees; `without_verdict`: [case, message] of honest adapters;
    `unknown`: change → number, of the others; `unbuilt`: see `Unmade`.
    """

    subject: str
    libraries: str = ""
    commits: dict[str, int] = field(default_factory=dict)
    cases: int = 0
    honest: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    wrong: list[list[str]] = field(default_factory=list)
    without_verdict: list[list[str]] = field(default_factory=list)
    unknown: dict[str, int] = field(default_factory=dict)
    unbuilt: list[list[str]] = field(default_factory=list)

    @property
    def part(self) -> str:
        """Of which of the kinds of cases it is."""
        if method_of(self.subject) == "ODD":
            return "odd adapters"
        if method_of(self.subject) not in VARIANTS:
            return "architectures"
        kind = base_kind_of(self.subject)
        article = "an" if kind.startswith(tuple("aeiou")) else "a"
        return f"methods on {article} {kind}" if kind else "methods"

    @property
    def is_buildable(self) -> bool:
        """Whether any of its groups can be built. `unbuilt` may hold some groups of a subject that was not asked."""
        names = {item[0] for item in self.unbuilt}
        groups = VARIANTS.get(method_of(self.subject), architectures.VARIANTS)
        return self.subject not in names and not names.issuperset(f"{self.subject}/{group}" for group in groups)


def read() -> dict[str, Line]:
    """The committed lines by subject."""
    lines = (Line(**json.loads(text)) for text in ANSWERS.read_text().splitlines()) if ANSWERS.is_file() else ()
    return {line.subject: line for line in lines}


def write(lines: Iterable[Line], subjects: Iterable[str]) -> None:
    """Replace these lines of the summary, and write the page. `subjects`: all that there are."""
    merged = {subject: Line(subject) for subject in subjects} | read() | {line.subject: line for line in lines}
    ordered = [merged[subject] for subject in sorted(merged)]
    ANSWERS.write_text("".join(f"{json.dumps(_stated(line), ensure_ascii=False)}\n" for line in ordered))
    PAGE.write_text(page(ordered))


def _stated(line: Line) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(line).items() if value not in ("", [], {})}


def lines_of(results: Iterable[dict[str, Any]], groups: Iterable[str]) -> Iterator[Line]:
    """A line for each subject whose groups were all asked whole, or cannot be built.

    `results`: those of the journal; `groups`: all that there are.
    """
    whole: set[str] = set()
    rows: dict[str, list[Row]] = defaultdict(list)
    commits: dict[str, Counter[str]] = defaultdict(Counter)
    libraries: dict[str, str] = {}
    unbuilt: dict[str, list[list[str]]] = defaultdict(list)
    for value in filter(None, results):
        subject = (value.get("id") or value.get("whole") or value.get("unmade", [""])[0]).partition("/")[0]
        libraries[subject] = value["libraries"]
        if "answer" in value:
            answer, stages = Answer(**value["answer"]), said_of(value["said"])
            rows[subject].append(Row(value["id"], value["honest"], answer, stages))
            commits[subject][value["commit"]] += 1
        elif "unmade" in value:
            unbuilt[subject].append(value["unmade"])
            whole.add(value["unmade"][0])
        elif "whole" in value:
            whole.add(value["whole"])
    for subject, names in groupby(sorted(groups), key=lambda name: name.partition("/")[0]):
        if subject in whole or whole.issuperset(names):
            line = Line(subject, libraries[subject], dict(commits[subject]), unbuilt=sorted(unbuilt[subject]))
            yield _line(line, rows[subject])


def said_of(stored: Mapping[str, Sequence[str]]) -> Said:
    """What the stages said, as JSON kept it."""
    return {stage: (words[0], words[1]) for stage, words in stored.items()}


def _line(line: Line, rows: Sequence[Row]) -> Line:
    """The line with the figures of these rows."""
    faults = [(row, fault) for row in rows for fault in row.faults]
    unknown = [row for row, fault in faults if fault == Fault("all", "unknown")]
    return dataclasses.replace(
        line,
        cases=len(rows),
        honest=sum(row.honest and row.answer.is_yes for row in rows),
        faults=dict(sorted(Counter(f"{fault.stage} {fault.kind}" for _, fault in faults).items())),
        wrong=sorted([row.id, fault.stage, fault.kind] for row, fault in faults if fault.kind in WRONG),
        without_verdict=[[row.id, row.said.get("smoke", ("", ""))[1]] for row in unknown if row.honest],
        unknown=dict(Counter(row.id.rpartition("/")[2] for row in unknown if not row.honest)),
    )


# ------------------------------------------------------------------ docs/truth.md
HEAD = """\
# How far verdicts agree with PEFT

PEFT itself and the registry answered about the same adapters: {cases} cases of {methods} methods and {architectures}
architectures. {honest} of them are honest adapters, {without_verdict} of those without a verdict.

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
- **Unknown.** No verdict, and no other stage says no. Not counted (–) in `check`, which leaves to the worker what only
  PEFT can tell, and in `engine`, whose rules do not cover every kind of adapter and base. Both say it often: in the
  journals of 49360 cases, `check` about 511 of 2231 honest adapters, `engine` about 549. Neither makes `all` unknown.
- **Crash.** An error instead of a verdict.

## How it is measured

The cases are

- every PEFT method that can be made on a tiny Llama, on classifiers (BERT; Llama for methods of decoders) and on T5,
  with every tensor lost, added, resized, transposed, zeroed or made NaN, and every field of its configuration null,
  missing, of another type or out of range;
- LoRA on a tiny random model of every text architecture that transformers can build: all linear modules, the defaults,
  DoRA, rsLoRA, biases, a saved head, embeddings, trained tokens; honest and wrong in seven ways;
- odd adapters, written by hand: parameters of experts, patterns of ranks and layers, tied heads, misleading names,
  mixed types of numbers, fields that an initialization left behind, models with and without a head.

PEFT says yes if its configuration class reads the configuration, its loader finds every tensor that it expects and no
other, two loads answer alike, and the outputs are finite and differ from the bare base's. {unbuilt} models and adapters
could not be built, mostly because they need inputs, sizes or packages that the comparison does not have.

An honest adapter is what PEFT saves after all trained numbers moved at random by about 0.05. Where that alone ruins
what a base says, they move less: 0.005 for RandLoRA on T5, 0.01 for LoRA on the embeddings of CPM-Ant. The smoke test
fails the larger update there, although PEFT loads it.

A case takes about 0.1 s of a processor, so a whole run takes hours; it continues where it stopped. No GPU is used: a
CUDA release beside torch's version names PyPI's build. `make test-truth ARGS=--record` asks, and writes the subjects
that it asked whole into `tests/truth/answers.jsonl` and this page from that file. Reproduce a case with
`make test-truth CASES='loha/plain/drop-one:hada_w1_a'`. What is recorded was asked with these libraries and commits;
what cannot be built is not counted:

| cases | subjects | number | by commit | libraries |
|---|---|---|---|---|
"""
MESSAGE_LENGTH = 160


def page(lines: Sequence[Line]) -> str:
    """The page docs/truth.md."""
    faults = sum((Counter(line.faults) for line in lines), Counter[str]())
    table = [
        f"| {stage} | {' | '.join(cell(stage, kind, faults[f'{stage} {kind}']) for kind in KINDS)} |"
        for stage in STAGES
        if lines
    ]
    built = [line for line in lines if line.cases]
    figures = {
        "cases": sum(line.cases for line in lines),
        "methods": len({method_of(line.subject) for line in built if line.part.startswith("methods")}),
        "architectures": sum(line.part == "architectures" for line in built),
        "honest": sum(line.honest for line in lines),
        "without_verdict": sum(len(line.without_verdict) for line in lines),
    }
    head = HEAD.format(**figures, kinds=" | ".join(KINDS), rule="---|" * len(KINDS))
    notes = NOTES.format(unbuilt=sum(len(line.unbuilt) for line in lines))
    totals = Counter(line.part for line in lines if line.is_buildable)
    text = [head + "\n".join(table), notes.rstrip("\n"), *_sources(built, totals), ""]
    for kind in WRONG:
        cases = [f"- `{case}`: {stage}" for line in lines for case, stage, fault in line.wrong if fault == kind]
        text += [f"## Open: {kind}", "", *cases, ""] if cases else []
    changes = sum((Counter(line.unknown) for line in lines), Counter[str]())
    unknown = [f"- `{case}`: {_code(message)}" for line in lines for case, message in line.without_verdict]
    unknown += [f"- `{change}`: {number} cases" for change, number in sorted(changes.items())]
    text += ["## Open: unknown", "", *unknown] if unknown else []
    return "\n".join(text).rstrip() + "\n"


def _sources(lines: Sequence[Line], totals: Mapping[str, int]) -> Iterator[str]:
    """Rows of the table of the parts, with the number of subjects in each."""
    order = sorted(lines, key=lambda line: (line.part, line.libraries))
    for (part, libraries), members in groupby(order, key=lambda line: (line.part, line.libraries)):
        subjects = list(members)
        commits = sum((Counter(line.commits) for line in subjects), Counter[str]())
        shares = ", ".join(f"{name}: {number}" for name, number in commits.most_common())
        yield f"| {part} | {len(subjects)} of {totals[part]} | {commits.total()} | {shares} | {libraries} |"


def _code(message: str) -> str:
    """The beginning of a library's message as code, which Markdown leaves as it is."""
    text = " ".join(message.replace("`", "'").split())
    return f"`{text}`" if len(text) <= MESSAGE_LENGTH else f"`{text[:MESSAGE_LENGTH].rstrip()}…`"
