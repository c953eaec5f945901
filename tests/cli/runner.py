"""`CommandRunner`: the real command on an embedded registry in a temporary folder.

cli("push", folder, "acme/support")      run a command; the result has exit_code, stdout, stderr, json
cli.make_adapter("first")                write the folder of a new adapter
cli.finish_smoke_test("acme/support")    report a smoke test as a worker would
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from cli.console import session
from cli.main import main
from registry.api.jobs import ClaimRequest, FinishRequest
from registry.client.registry import Registry
from registry.evaluation.reports import Answer, Report
from registry.evaluation.verdicts import Check
from registry.findings import Finding
from registry.server.audit import audit_log
from tests import samples
from tests.import_table import ROOT

audit_log.CATCH_UP_SECONDS = 120.0  # readers of events wait a second for the newest: too short on a busy machine
COMMAND = [sys.executable, "-m", "cli.main"]


@contextmanager
def served(data: Path, *words: str, **env: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """`adapter serve` on a free port, once it is ready, and the JSON that it printed. Starting it costs two seconds of
    CPU: a test that needs no server of its own uses the fixture `server`."""
    command = [*COMMAND, "serve", "--port", "0", "--data", str(data), "--json", *words]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"REGISTRY_LOG_LEVEL": "warning"} | env,
    )
    try:
        line = process.stdout.readline() if process.stdout else ""
        assert line, process.stderr.read() if process.stderr else ""
        yield process, json.loads(line)
    finally:
        process.kill()
        process.communicate()


@dataclass(frozen=True)
class CommandResult:
    """Output and exit code of a command."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)

    @property
    def problem(self) -> Any:
        return json.loads(self.stderr)


class CommandRunner:
    def __init__(self, folder: Path, first_seed: int = 1) -> None:
        self.folder = folder
        self._seeds = itertools.count(first_seed)

    def __call__(self, *words: object, expect: int = 0, stdin: str | None = None, **env: str) -> CommandResult:
        """Run `adapter WORDS…`; a bug's exception is raised. Any other exit code than `expect` fails."""
        handlers = logging.root.handlers[:]
        result = CliRunner().invoke(main, [str(word) for word in words], input=stdin, env=env)
        logging.root.handlers[:] = handlers  # a worker's or a server's log belongs to its own process
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        command_result = CommandResult(result.exit_code, result.stdout, result.stderr)
        assert command_result.exit_code == expect, f"{words}: {command_result}"
        return command_result

    def add_base(self, base: samples.Base | None = None) -> str:
        """Register a generated base. Returns its name."""
        base = base or samples.llama()
        folder = base.write(self.folder / "bases" / base.name)
        self("base", "add", base.name, folder)
        return base.name

    def make_adapter(self, name: str, base: samples.Base | None = None, **how: Any) -> Path:
        """The folder of a new adapter with random weights."""
        files = samples.lora(base or samples.llama(), **{"seed": next(self._seeds), **how})
        return samples.write(files, self.folder / "adapters" / name)

    def push(self, name: str, *words: object, **how: Any) -> Any:
        folder = self.make_adapter(f"{next(self._seeds)}-{name.replace('/', '-')}", **how)
        return self("push", folder, name, "--base", "tiny-llama", "--json", *words).json

    def finish_smoke_test(self, ref: str, *findings: Finding, answers: tuple[Answer, ...] = ()) -> None:
        """Finish the oldest queued smoke test, which must be of `ref`."""
        with session.embedded(Registry) as registry:
            version = registry.version(ref)
            claimed = registry.claim(ClaimRequest(worker="test"))
            assert claimed is not None
            assert claimed.job.subject_digest == version.digest
            report = Report(
                check=Check.SMOKE,
                subject=version.digest,
                base=version.base,
                base_fingerprint=version.base_fingerprint,
                findings=findings,
                made_by={"worker": "test"},
                answers=answers,
            )
            registry.finish(claimed.job.id, FinishRequest(lease_token=claimed.lease.token, report=report))


def lines(text: str) -> list[str]:
    """The text without times and digests, which differ from run to run."""
    text = re.sub(r"sha256:[0-9a-f]{64}", "DIGEST", text)
    text = re.sub(r"\b[0-9a-f]{12}\b", "SHORT", text)
    text = re.sub(r"█\S* +[0-9.]+", "BAR", text)
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC|\d+ (s|min|h) ago", "TIME", text).splitlines()
