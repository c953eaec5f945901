"""The journal of `make soak`: what each run was and what it violated, added up over all parts; table and report."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.faults.environments import KINDS
from tests.faults.invariants import INVARIANTS

KILL = "kill at "
END = "at the end: every acknowledged push, "
PROBLEMS_LIMIT = 5
"""Texts of one run in the journal."""


class Journal:
    """The runs so far. With a path each is a line of that file, and those that are there already count."""

    def __init__(self, path: str, seed: int) -> None:
        self.runs: Counter[str] = Counter()
        self.violations: Counter[str] = Counter()
        self.checked: Counter[str] = Counter()
        """How often each invariant was checked."""
        self.problems: list[str] = []
        self.seconds = 0.0
        self.parts = 0
        self._commits: list[str] = []
        self.numbers: set[int] = set()
        """The numbers of the runs."""
        self._restart = 0.0
        self._seed = seed
        self._path = Path(path) if path else None
        if self._path and self._path.exists():
            for line in self._path.read_text().splitlines():
                self._read(json.loads(line))
        self._began = time.monotonic()
        part = {"part": self.parts + 1, "seed": seed, "commit": _commit()}
        self._write(part)
        self._read(part)

    def _read(self, line: dict[str, Any]) -> None:
        if line.get("seed", self._seed) != self._seed:
            raise SystemExit(f"the journal is of seed {line['seed']}")
        if "part" in line:
            self.parts = line["part"]
            self._commits.append(line["commit"])
        if "run" in line:
            self._enter(line)

    def _enter(self, line: dict[str, Any]) -> None:
        name, problems = line["name"], line["problems"]
        self.runs[name] += 1
        self.numbers.add(line["run"])
        self.checked += Counter(line["checked"])
        self.seconds += line["seconds"]
        self._restart = max(self._restart, line["restart"])
        if line["violations"]:
            self.violations[name] += line["violations"]
            self.problems += [f"{name}: {problem}" for problem in problems]

    @property
    def last(self) -> int:
        """The highest number of a run."""
        return max(self.numbers, default=0)

    def add(self, number: int, name: str, problems: Sequence[str], restart: float, checked: Mapping[str, int]) -> None:
        """Enter a run. `restart`: the longest time in seconds that a server needed to start again. `checked`: how often
        the run checked each invariant."""
        now = time.monotonic()
        line = {
            "run": number, "name": name, "violations": len(problems), "problems": list(problems[:PROBLEMS_LIMIT]),
            "seconds": round(now - self._began, 2), "restart": round(restart, 2), "checked": dict(checked),
        }  # fmt: skip
        self._began = now
        self._enter(line)
        self._write(line)

    def _write(self, line: dict[str, Any]) -> None:
        if self._path:
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")

    # ------------------------------------------------------------ what it says
    def table(self, classes: Sequence[str]) -> str:
        """Kills by class of failpoint and by kind of server, then everything else; each as runs and violations."""
        kinds = ["+".join(kind) for kind in KINDS]
        lines = ["kill -9 (runs/violations)" + "".join(f"{kind:>16}" for kind in kinds)]
        for point_class in dict.fromkeys(classes):
            names = [f"{KILL}{point_class}, {kind}" for kind in kinds]
            lines.append(f"{point_class:25}" + "".join(f"{f'{self.runs[n]}/{self.violations[n]}':>16}" for n in names))
        rest = {name: count for name, count in self.runs.items() if not name.startswith(KILL)}
        lines += ["", f"{'everything else':55}{'runs':>6}{'violations':>12}"]
        lines += [f"{name:55}{count:>6}{self.violations[name]:>12}" for name, count in sorted(rest.items())]
        lines += ["", "checks of each invariant: " + ", ".join(f"{name} {self.checked[name]}" for name in INVARIANTS)]
        return "\n".join([*lines, f"longest restart after a kill: {self._restart:.1f} s"])

    def report(self, classes: Sequence[str]) -> str:
        """The table as a page of the documentation."""
        kills = sum(count for name, count in self.runs.items() if name.startswith(KILL))
        parts = "in one part" if self.parts == 1 else f"in {self.parts} parts, each with empty registries"
        commits = list(dict.fromkeys(self._commits))
        parts += f", of the commit{'s' if len(commits) > 1 else ''} {', '.join(commits)}"
        return (
            "# Soak test\n\n"
            "`make soak` kills servers with `kill -9` at named points of their work, restarts them, and then checks\n"
            "the invariants I1 to I18 that `tests/faults/invariants.py` lists. It also runs many clients at once, and\n"
            "a store that fails. It wrote this page.\n\n"
            f"{kills} kills, {self.violations.total()} violations, {parts}. Seed {self._seed}, runs 1 to {self.last}, "
            f"{self.seconds / 60:.0f} minutes,\nPython {platform.python_version()}.\n\n"
            f"```text\n{self.table(classes)}\n```\n"
        )


def _commit() -> str:
    """The commit that is checked out."""
    done = subprocess.run(["git", "rev-parse", "--short=8", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
