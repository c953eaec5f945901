"""A pytest plugin: which lines of registry/ and cli/ the tests run, with one number at the end (`make test`).

- SlipCover puts a probe on each line when a module is imported and removes it when it was hit: 4 % of CPU time here.
  Tracing every line with coverage.py costs 70 % on Python 3.11, which has no `sys.monitoring`.
- Programs that tests start (the command, servers, workers) are not counted.
- With `--coverage-floor N` the run fails when less than N percent of the lines ran. `--coverage-missing` lists them.

Example
    $ pytest -p tests.line_coverage --coverage-floor 90 tests
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

import pytest
from slipcover import Slipcover
from slipcover.importer import SlipcoverLoader

from tests.import_table import ROOT

MEASURED = ("registry", "cli")
Lines = dict[str, tuple[set[int], set[int]]]
"""File → lines that ran, lines that did not."""


class Resolver:
    """Puts probes into our modules as they are imported."""

    def __init__(self) -> None:
        self.probes = Slipcover(source=[str(ROOT / top) for top in MEASURED])

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name.partition(".")[0] not in MEASURED:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader) and spec.origin:
            spec.loader = SlipcoverLoader(self.probes, spec.loader, spec.origin)
        return spec

    def lines(self) -> Lines:
        files = self.probes.get_coverage()["files"]
        return {name: (set(file["executed_lines"]), set(file["missing_lines"])) for name, file in files.items()}


FINDER = Resolver()
sys.meta_path.insert(0, FINDER)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--coverage-floor", type=float, default=0.0, help="fail if less than this percentage of lines ran")
    parser.addoption("--coverage-missing", action="store_true", help="list the lines that did not run")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Report(config))


class Report:
    """Collects the lines of all test processes and reports them."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.ran: dict[str, set[int]] = {}
        self.all: dict[str, set[int]] = {}

    def add(self, lines: Lines) -> None:
        for name, (ran, missing) in lines.items():
            self.ran.setdefault(name, set()).update(ran)
            self.all.setdefault(name, set()).update(ran | missing)

    @property
    def percentage(self) -> float:
        total = sum(map(len, self.all.values()))
        return 100 * sum(map(len, self.ran.values())) / total if total else 0.0

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        lines = getattr(node, "workeroutput", {}).get("lines", {})
        self.add({name: (set(ran), set(missing)) for name, (ran, missing) in lines.items()})

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.add(FINDER.lines())
        if self.percentage < self.config.getoption("--coverage-floor") and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.config.getoption("--coverage-missing"):
            for name in sorted(self.all):
                missing = self.all[name] - self.ran[name]
                if missing:
                    terminalreporter.write_line(f"{name}: {ranges(sorted(missing))}")
        floor = self.config.getoption("--coverage-floor")
        total = sum(map(len, self.all.values()))
        verdict = f"below the floor of {floor:g} %" if self.percentage < floor else f"floor {floor:g} %"
        terminalreporter.write_line(f"coverage: {self.percentage:.1f} % of {total:,} lines ({verdict})")


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["lines"] = {name: [sorted(ran), sorted(missing)] for name, (ran, missing) in FINDER.lines().items()}


def ranges(lines: list[int]) -> str:
    """`1, 3-5` for [1, 3, 4, 5]."""
    texts: list[str] = []
    start = 0
    for at, line in enumerate(lines):
        if at + 1 == len(lines) or lines[at + 1] != line + 1:
            texts.append(str(line) if lines[start] == line else f"{lines[start]}-{line}")
            start = at + 1
    return ", ".join(texts)
