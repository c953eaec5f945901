"""`Demonstration`: runs commands and shows them, checks their effects, and ends every process at the end.

Invariants
- Each command is echoed and its own output follows, with secrets shortened.
- An expectation that fails ends the demonstration with exit code 1, whatever was printed before.
- Processes that were started are ended on every way out, and die with this process if it is killed.

Example
    with Demonstration(folder) as demonstration:
        demonstration.adapter("push", "out/pirate", "blackbeard/support", expect=0)
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

_PR_SET_PDEATHSIG = 1
_BOLD, _DIM, _GREEN, _RED, _OFF = ("\033[1m", "\033[2m", "\033[32m", "\033[31m", "\033[0m")


class Failed(Exception):
    """An expectation does not hold."""


class Demonstration:
    """`folder` holds everything that the demonstration writes; `environment` is that of every command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results: list[str] = []
        self.commands = 0
        self._began = time.monotonic()
        self._processes: list[subprocess.Popen[Any]] = []
        self._colors = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        drop = ("ADAPTER_", "REGISTRY_", "XDG_")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(drop)} | {
            "XDG_CONFIG_HOME": str(folder / "home" / "config"),
            "XDG_DATA_HOME": str(folder / "home" / "data"),
            "XDG_CACHE_HOME": str(folder / "home" / "cache"),
            "OMP_WAIT_POLICY": "passive",
            "HF_HUB_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "ignore",
        }

    def __enter__(self) -> Demonstration:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, _leave)
        return self

    def __exit__(self, *exc: object) -> None:
        for process in reversed(self._processes):
            end(process)

    # ------------------------------------------------------------ output
    def print_title(self, title: str) -> None:
        seconds = time.monotonic() - self._began
        print(f"\n{self._in(_BOLD, f'== {title}')} {self._in(_DIM, f'({seconds:.0f} s)')}\n", flush=True)

    def print_text(self, text: str) -> None:
        print(text, flush=True)

    def print_result(self, message: str) -> None:
        """Print what has just been shown, and keep it for the summary."""
        self.results.append(message)
        print(self._in(_GREEN, f"  ✓ {message}") + "\n", flush=True)

    def expect(self, true: object, message: str) -> None:
        """End the demonstration if this does not hold."""
        if not true:
            raise Failed(message)

    def error(self, message: str) -> None:
        print(self._in(_RED, f"The demonstration failed: {message}"), file=sys.stderr, flush=True)

    def _in(self, style: str, text: str) -> str:
        return f"{style}{text}{_OFF}" if self._colors else text

    # ------------------------------------------------------------ commands
    def adapter(self, *words: str, expect: int = 0, token: str = "") -> None:
        """Run `adapter …` and show it; end the demonstration unless it exits with `expect`."""
        note = f"   # exit code {expect}: refused" if expect == 6 else ""
        print(self._in(_BOLD, f"$ adapter {self.shown(words)}") + self._in(_DIM, note), flush=True)
        done = subprocess.run(self._command(words), env=self._with(token), cwd=self.folder, check=False)
        self.commands += 1
        self.expect(done.returncode == expect, f"`adapter {self.shown(words)}` ended with {done.returncode}")
        print(flush=True)

    def ask(self, *words: str, token: str = "") -> Any:
        """Run `adapter … --json` without showing it and return its result."""
        command = self._command((*words, "--json"))
        done = subprocess.run(
            command, env=self._with(token), cwd=self.folder, capture_output=True, text=True, check=False
        )
        self.expect(done.returncode == 0, f"`adapter {self.shown(words)} --json` says: {done.stderr.strip()[-800:]}")
        return json.loads(done.stdout)

    def start(self, *words: str, log: str, token: str = "") -> subprocess.Popen[str]:
        """Start `adapter …` in the background; its standard error goes to a log file."""
        print(self._in(_BOLD, f"$ adapter {self.shown(words)} &"), flush=True)
        self.commands += 1
        with (self.folder / log).open("w") as errors:
            process = subprocess.Popen(
                self._command(words), env=self._with(token), cwd=self.folder, stdout=subprocess.PIPE, stderr=errors,
                text=True, start_new_session=True, preexec_fn=_die_with_the_parent,
            )  # fmt: skip
        self._processes.append(process)
        return process

    def python(self, *words: str, quiet: bool = False) -> str:
        """Run a Python module of this repository; its standard output."""
        root = Path(__file__).resolve().parent.parent
        process = subprocess.Popen(
            [sys.executable, "-m", *words], env=self.environment, cwd=root, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=_die_with_the_parent,
        )  # fmt: skip
        self._processes.append(process)
        out, errors = process.communicate()
        self._processes.remove(process)
        self.expect(process.returncode == 0, f"python -m {' '.join(words)}: {errors.strip()[-1500:]}")
        if not quiet:
            print("".join(f"  {line}\n" for line in out.splitlines()), flush=True)
        return out

    def shown(self, words: Sequence[str]) -> str:
        """The words as one would type them, with folders relative to where the demonstration writes."""
        return " ".join(shlex.quote(word.replace(f"{self.folder}/", "")) for word in words)

    def _command(self, words: Sequence[str]) -> list[str]:
        return [str(Path(sys.executable).with_name("adapter")), *words]

    def _with(self, token: str) -> Mapping[str, str]:
        return self.environment | ({"ADAPTER_TOKEN": token} if token else {})


def end(process: subprocess.Popen[Any]) -> None:
    """SIGTERM and five seconds, then SIGKILL for its whole group."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _die_with_the_parent() -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
