"""`python -m tests.truth.run [IDS…]`: ask PEFT and the registry about every case; print the differences.

IDS are beginnings or patterns of cases' ids, such as `lora/plain` or `*/drop-kind:*`. Finished cases are in a journal:
a run that was stopped goes on where it stopped, and after a change of the registry only the registry is asked again.
PEFT makes AdaMSS with scikit-learn only, which nothing else here needs: install it beside the others to ask about it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fnmatch
import functools
import hashlib
import os
import resource
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import peft
import torch
import transformers

from tests.truth import cases, odd, oracle, product, summary, table
from tests.truth.cases import Case, Group, Plan
from tests.truth.journal import Journal, code_digest, commit
from tests.truth.product import Product, Said
from tests.truth.table import Row, Unmade
from tests.truth.warm import forked_programs

MEMORY_BYTES = 8 * 2**30
VERSIONS = {"peft": peft.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
PUSHED_ANYWAY = 10
"""One in so many of the adapters that the stage `check` refuses is pushed all the same."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if PEFT and the registry disagree anywhere."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ids", nargs="*", help="beginnings or patterns of ids; default: every case")
    parser.add_argument("--journal", type=Path, default=Path(".cache/truth"))
    parser.add_argument("--only-check", action="store_true", help="ask the domain alone, without push and worker")
    parser.add_argument(
        "--sample", type=int, default=0, metavar="N", help="ask N cases of each group, honest ones first"
    )
    parser.add_argument("--show", action="store_true", help="print every difference, not one of each family")
    parser.add_argument(
        "--record", action="store_true", help="write what the journal holds whole into the summary and its pages"
    )
    options = parser.parse_args(arguments)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    choice = {"only_check": options.only_check, "sample": options.sample}
    with forked_programs(), Run(options.journal, options.ids, **choice) as run:
        rows = list(run.rows(every_plan()))
        print(table.text(rows, run.unmade, show=options.show))
        if options.record:
            groups = all_groups()
            summary.write(run.lines(groups), {group.partition("/")[0] for group in groups})
    return int(any(row.disagrees for row in rows))


def every_plan() -> Iterator[Plan]:
    """The odd adapters, the methods, the architectures."""
    yield from odd.plans()
    yield from cases.plans()


def all_groups() -> list[str]:
    """The groups of every plan."""
    return [group for plan in every_plan() for group in plan.groups]


class Run:
    """Chosen cases, one after another. `unmade`: what transformers or PEFT cannot build, with its own error."""

    def __init__(self, journal: Path, ids: Sequence[str] = (), *, only_check: bool = False, sample: int = 0) -> None:
        """`sample`: at most so many cases of each group, chosen by their ids."""
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.unmade: list[Unmade] = []
        self._ids, self._only_check, self._sample = ids, only_check, sample
        self._answers, self._checks = Journal(journal / "oracle.jsonl"), Journal(journal / "check.jsonl")
        self._stages, self._results = Journal(journal / "stages.jsonl"), Journal(journal / "results.jsonl")
        self._code, self._libraries = code_digest(), "".join(VERSIONS.values())
        libraries = ", ".join(f"{name} {version}" for name, version in VERSIONS.items())
        self._source = {"code": self._code, "commit": commit(), "libraries": libraries}
        self._scratch = Path(tempfile.mkdtemp(prefix="truth-", dir=_memory()))

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_error: object) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)

    def rows(self, plans: Iterator[Plan]) -> Iterator[Row]:
        """A row for each chosen case."""
        for plan in plans:
            groups = [group for group in plan.groups if self._may_hold(group)]
            if not groups:
                continue
            scratch = self._scratch / "plan"
            try:
                with contextlib.ExitStack() as stack:
                    stack.callback(shutil.rmtree, scratch, ignore_errors=True)
                    with oracle.deadline(60):
                        base = plan.base(scratch / "base")
                    self._made(plan.id)
                    empty = self._scratch / "empty.db"
                    registry = _Registry(functools.partial(Product, scratch / "registry", base, empty), stack)
                    for name in groups:
                        try:
                            group = plan.group(base, name, scratch / "honest")
                        except Exception as e:
                            self._not_made(Unmade(name, "PEFT", oracle.one_line(e)))
                            continue
                        self._made(name)
                        for row in self._group(group, registry, scratch / "cases"):
                            self._results.put(row.id, {**self._source, **dataclasses.asdict(row)})
                            yield row
                        if not (self._sample or self._only_check) and all(self._is_chosen(c.id) for c in group):
                            self._results.forget(name, {case.id for case in group})
                            self._results.put(name, {**self._source, "whole": name})
            except Exception as e:
                self._not_made(Unmade(plan.id, "transformers", oracle.one_line(e)))

    def lines(self, groups: list[str]) -> list[summary.Line]:
        """A line for each subject that the journal holds whole. `groups`: all that there are."""
        return list(summary.lines_of(self._results.values(), groups))

    def _made(self, name: str) -> None:
        if self._results.get(name) is not None:
            self._results.put(name, self._source)

    def _not_made(self, item: Unmade) -> None:
        self.unmade.append(item)
        self._results.put(item.id, {**self._source, "unmade": list(item)})

    def _group(self, group: Group, registry: _Registry, scratch: Path) -> Iterator[Row]:
        chosen = [case for case in group if self._is_chosen(case.id)]
        chosen.sort(key=lambda case: (not case.honest, hashlib.sha256(case.id.encode()).digest()))
        case_answers: dict[str, Said] = {}
        answers: dict[str, oracle.Answer] = {}
        waiting: dict[str, tuple[str, Path]] = {}
        try:
            for number, case in enumerate(chosen[: self._sample or None]):
                folder = scratch / str(number)
                key = f"{case.id} {case.write(folder)} {group.base.digest}"
                answers[case.id] = self._ask(key, group, folder)
                case_answers[case.id] = self._check(key, group, folder)
                if not self._only_check and self._goes_on(case, case_answers[case.id]):
                    stored = self._stages.get(f"{key} {self._code}")
                    if stored is None:
                        waiting[case.id] = key, folder
                    else:
                        case_answers[case.id] |= summary.said_of(stored)
            if waiting:
                evaluated = registry.evaluate({case: folder for case, (_, folder) in waiting.items()})
                for case_id, words in evaluated.items():
                    case_answers[case_id] |= words
                    self._stages.put(f"{waiting[case_id][0]} {self._code}", words)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        honest = next(iter(answers.values()), oracle.Answer())
        print(f"{group.id}: {len(answers)} cases, PEFT {honest.why or 'yes'} {honest.message}", file=sys.stderr)
        yield from (Row(c.id, c.honest, answers[c.id], case_answers[c.id]) for c in chosen if c.id in answers)

    def _ask(self, key: str, group: Group, folder: Path) -> oracle.Answer:
        if not oracle.is_finite(folder):
            return oracle.Answer("not_finite", oracle.FILE_NOT_FINITE)
        stored = self._answers.get(f"{key} {self._libraries}")
        if stored is None:
            answer = oracle.ask(group.base.subject, folder, tolerated=group.tolerated)
            stored = [answer.why, answer.message]
            self._answers.put(f"{key} {self._libraries}", stored)
        return oracle.Answer(*stored)

    def _check(self, key: str, group: Group, folder: Path) -> Said:
        stored = self._checks.get(f"{key} {self._code}")
        if stored is None:
            stored = product.check_alone(folder, group.base)
            self._checks.put(f"{key} {self._code}", stored)
        return summary.said_of(stored)

    @staticmethod
    def _goes_on(case: Case, answer: Said) -> bool:
        """Whether the adapter is pushed: a refused one rarely is, because the push refuses it by the same rules."""
        digest = hashlib.sha256(case.id.encode()).digest()
        return answer["check"][0] not in product.NO or case.honest or digest[0] % PUSHED_ANYWAY == 0

    def _is_chosen(self, case_id: str) -> bool:
        return not self._ids or any(case_id.startswith(i) or fnmatch.fnmatchcase(case_id, i) for i in self._ids)

    def _may_hold(self, group: str) -> bool:
        """Whether a group may have a chosen case."""
        heads = ["/".join(pattern.split("/")[:2]) for pattern in self._ids or ["*"]]
        return any(fnmatch.fnmatchcase(group, head) or group.startswith(head) for head in heads)


class _Registry:
    """A `Product` that starts when it is needed and ends with the stack."""

    def __init__(self, start: Callable[[], Product], stack: contextlib.ExitStack) -> None:
        self._start, self._stack = start, stack
        self._product: Product | None = None

    def evaluate(self, folders: dict[str, Path]) -> dict[str, Said]:
        try:
            if self._product is None:
                self._product = self._stack.enter_context(self._start())
            return self._product.evaluate(folders)
        except Exception as e:
            return {case: {"compat": ("crash", oracle.one_line(e))} for case in folders}


def _memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 2**30 else None


if __name__ == "__main__":
    sys.exit(main())
