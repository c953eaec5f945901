"""`python -m tests.truth.run [IDS…]`: ask PEFT and the registry about every case; print the differences.

IDS are beginnings or patterns of cases' ids, such as `lora/plain` or `*/drop-kind:*`.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import resource
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import peft
import torch
import transformers

from tests.truth import cases, methods, oracle, product, table
from tests.truth.cases import Base, Group
from tests.truth.journal import Journal, code_digest

MEMORY_BYTES = 12 * 2**30
VERSIONS = {"peft": peft.__version__, "transformers": transformers.__version__, "torch": torch.__version__}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if PEFT and the registry disagree anywhere."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ids", nargs="*", help="beginnings or patterns of ids; default: every case")
    parser.add_argument("--journal", type=Path, default=Path(".cache/truth"))
    parser.add_argument("--show", action="store_true", help="print every disagreement, not one a family")
    options = parser.parse_args(arguments)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory(prefix="truth-", dir=_memory()) as scratch:
        rows = list(judge(Path(scratch), options.ids, options.journal))
    print(table.text(rows, show=options.show))
    return int(any(row.disagrees for row in rows))


def judge(scratch: Path, ids: Sequence[str], journal: Path) -> Iterator[table.Row]:
    """A row for each case, PEFT's answer beside the registry's."""
    answers, said = Journal(journal / "oracle.jsonl"), Journal(journal / "check.jsonl")
    code, libraries = code_digest(), "".join(VERSIONS.values())
    base = cases.methods_base(scratch / "base")
    for group in groups(base, scratch, ids):
        for number, case in enumerate(group):
            if not chosen(case.id, ids):
                continue
            folder = scratch / "case"
            digest = case.write(folder)
            key = f"{case.id} {digest} {group.base.digest}"
            answer = answers.get(f"{key} {libraries}")
            if answer is None:
                found = oracle.ask(group.base.subject, folder, tolerated=group.tolerated)
                answer = [found.why, found.message]
                answers.put(f"{key} {libraries}", answer)
            words = said.get(f"{key} {code}")
            if words is None:
                words = product.check_alone(folder, group.base.spec)
                said.put(f"{key} {code}", words)
            yield table.Row(case.id, case.honest, oracle.Answer(*answer), {k: tuple(v) for k, v in words.items()})
            if number == 0:
                print(f"{group.id}: PEFT {answer[0] or 'yes'} {answer[1]}", file=sys.stderr, flush=True)


def groups(base: Base, scratch: Path, ids: Sequence[str]) -> Iterator[Group]:
    """Every group with a chosen case that PEFT can make."""
    for method, variant in methods.variants():
        name = f"{method.lower()}/{variant}"
        if not any(may_hold(name, pattern) for pattern in ids or ["*"]):
            continue
        try:
            yield cases.of_method(base, method, variant, scratch / f"{method}-{variant}")
        except Exception as e:
            print(f"{name}: PEFT cannot make it: {oracle.one_line(e)}", file=sys.stderr, flush=True)


def chosen(case_id: str, ids: Iterable[str]) -> bool:
    """Whether a case is one of those that were asked for."""
    return not ids or any(case_id.startswith(i) or fnmatch.fnmatchcase(case_id, i) for i in ids)


def may_hold(group: str, pattern: str) -> bool:
    """Whether a group may have a case with such an id."""
    head = "/".join(pattern.split("/")[:2])
    return fnmatch.fnmatchcase(group, head) or group.startswith(head)


def _memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 2**30 else None


if __name__ == "__main__":
    sys.exit(main())
