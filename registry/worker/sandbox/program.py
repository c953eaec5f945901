"""Programs of the worker: modules that run as a process of their own, take one request and return one report.

    request (one JSON document)  ──stdin──▶  program
    {"progress": text}           ◀──stdout──
    {"report": …} or {"problem": …} or {"error": text}, the last line

A program gets no secret: an allow-list of variables, and folders. It has no network and sees no home folder except its
folders where Linux can do that, and ends with its parent. The parent imports no torch and may kill it at any time.
"""

import gc
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import IO, Annotated, Any, ClassVar, NoReturn, TypeVar

from pydantic import AfterValidator

from registry.errors import RegistryError, Unavailable, from_problem
from registry.model import FrozenModel
from registry.worker.sandbox import confine, namespaces
from registry.worker.sandbox.confine import clean_environment

Progress = Callable[[str], None]


FolderPath = Annotated[str, AfterValidator(lambda path: os.path.abspath(path) if path else path)]
"""A folder's path, absolute because a program leaves the folder that it is started in; empty for none."""


class ProgramRequest(FrozenModel):
    """A request of folders. `FOLDERS`: the fields that hold one, or several."""

    FOLDERS: ClassVar[tuple[str, ...]]

    @property
    def existing_folders(self) -> list[Path]:
        """The folders, or the ones that they will be made in."""
        values = (getattr(self, name) for name in self.FOLDERS)
        folders = [Path(path) for value in values for path in ([value] if isinstance(value, str) else value) if path]
        return [next(path for path in (folder, *folder.parents) if path.is_dir()) for folder in folders]


Request = TypeVar("Request", bound=ProgramRequest)

TICK_SECONDS = 1.0
END_SECONDS = 10.0
"""Time to clean up after SIGTERM."""
ERROR_CHARACTERS_LIMIT = 1000
LINE_LIMIT_BYTES = 16 * 2**20
OUTPUT_LIMIT_BYTES = 16 * LINE_LIMIT_BYTES
"""Limits of what a program writes to standard output: a line, such as its report, and all lines. Read as JSON, a line
can take 25 times its bytes."""
ERRORS_KEPT_BYTES = 16 * 2**10
"""How much of what a program writes to standard error is kept: the end."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_TRACEBACK = "Traceback (most recent call last)"  # libraries write on after it, such as nanobind about leaks
_BOOTSTRAP = (
    # No garbage collection while importing: torch and PEFT create a million objects that stay (a sixth of the start).
    "import gc, logging, runpy, sys; gc.disable(); "
    # With AVX-512, importing bitsandbytes warns that the package `kernels` is missing.
    "logging.getLogger('bitsandbytes').setLevel(logging.ERROR); "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs a module as `python -m` would, with a faster start."""
    return [sys.executable, "-c", _BOOTSTRAP, module, *arguments]


def finish_start() -> None:
    """Turn garbage collection on, without the imported objects: forks share their memory. First call of `main`."""
    gc.freeze()
    gc.enable()


def ignore_progress(_progress: object) -> None:
    """Report no progress."""


def run_program(
    module: str, request: ProgramRequest, *, work: str, progress: Progress | None = None,
    check: Callable[[], None] | None = None, threads: int = 0, seconds: float = 0,
) -> dict[str, Any]:  # fmt: skip
    """Run the module's `serve` on this request and return its report.

    `progress` gets each progress message; `check` is called every second. An exception of either ends the program and
    propagates. Raises the error that the program reported, or `Unavailable` (TRY_LATER) if it died, wrote too much or
    took over `seconds` (0: no limit). `work` names what is being done in messages ("the merge").
    """
    hidden = os.pathsep.join(confine.secret_places(os.environ))
    environment = clean_environment(os.environ) | {confine.HIDDEN_PLACES: hidden}
    if threads:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    deadline = time.monotonic() + seconds if seconds else None
    pipe = subprocess.PIPE
    process = subprocess.Popen(command(module), stdin=pipe, stdout=pipe, stderr=pipe, env=environment)
    errors = _Errors(process)
    try:
        message = _converse(process, request, progress, check, deadline)
    except TimeoutError:
        raise Unavailable("TRY_LATER", f"{work} took over {seconds:g} seconds and was stopped") from None
    except OverflowError as e:
        raise Unavailable("TRY_LATER", f"{work} could not be done: {e}") from None
    finally:
        end(process)
    if "report" in message:
        report: dict[str, Any] = message["report"]
        return report
    if "problem" in message:
        raise from_problem(message["problem"])
    reason = message.get("error") or errors.end_of(process.returncode)
    raise Unavailable("TRY_LATER", f"{work} could not be done: {reason}")


def _converse(
    process: subprocess.Popen[bytes], request: FrozenModel, progress: Progress | None,
    check: Callable[[], None] | None, deadline: float | None,
) -> dict[str, Any]:  # fmt: skip
    """Send the request, and return the last message on standard output."""
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the process has no pipes")
    message: dict[str, Any] = {}
    try:
        with process.stdin:
            process.stdin.write(request.model_dump_json().encode())
    except BrokenPipeError:
        return message
    for line in _lines(process.stdout, check, deadline):
        if not line.startswith(b"{"):
            continue
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):  # libraries may print other lines
            continue
        if progress is not None and "progress" in message:
            progress(str(message["progress"]))
    return message


def _lines(pipe: IO[bytes], check: Callable[[], None] | None, deadline: float | None) -> Iterator[bytes]:
    """Yield complete lines of the pipe as they arrive. `TimeoutError` at the deadline, `OverflowError` at a limit."""
    rest, size = bytearray(), 0
    with pipe, selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            remaining = TICK_SECONDS if deadline is None else deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError
            ready = selector.select(min(TICK_SECONDS, remaining))
            if check is not None:
                check()
            if ready:
                data = os.read(pipe.fileno(), 65536)
                size += len(data)
                if size > OUTPUT_LIMIT_BYTES or len(rest) + len(data) > LINE_LIMIT_BYTES:
                    limits = f"{LINE_LIMIT_BYTES} bytes in a line or {OUTPUT_LIMIT_BYTES} in all"
                    raise OverflowError(f"it wrote over {limits} to standard output")
                rest += data
                if b"\n" in data:
                    *lines, rest = rest.split(b"\n")
                    yield from map(bytes, lines)
                if not data:
                    return


class _Errors(threading.Thread):
    """Reads what a process writes to standard error, so that it never waits, and keeps the end."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        super().__init__(name="errors", daemon=True)
        self._pipe, self._end = process.stderr, b""
        self.start()

    def run(self) -> None:
        """Read until the process ends."""
        if self._pipe is not None:
            with self._pipe as pipe:
                while data := os.read(pipe.fileno(), 65536):
                    self._end = (self._end + data)[-ERRORS_KEPT_BYTES:]

    def end_of(self, status: int) -> str:
        """How the process ended, and the exception of its last traceback, or else the last line that it wrote."""
        self.join(TICK_SECONDS)  # a process that it started may still have the pipe
        lines = self._end.decode("utf-8", "replace").strip().splitlines()
        reason = f"it was ended by signal {-status}" if status < 0 else f"exit status {status}"
        start = max((number for number, line in enumerate(lines, 1) if line.startswith(_TRACEBACK)), default=len(lines))
        exceptions = [line for line in lines[start:] if line and not line.startswith(" ")]
        return f"{reason}: {(exceptions[:1] or lines[-1:])[0][:500]}" if lines else reason


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask the process to end so that it cleans up, and kill it if it does not."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def serve(model: type[Request], work: Callable[[Request, Progress], FrozenModel]) -> NoReturn:
    """Handle the request on standard input, respond on standard output, and end the process.

    What was imported is not torn down, which takes half a second of CPU with torch.
    """
    finish_start()
    exit_on_signals()
    confine.die_with_parent(signal.SIGTERM)  # a partial result may be as large as the base, so it is cleaned up
    status = 1
    try:
        request = model.model_validate_json(sys.stdin.buffer.read())
        visible = namespaces.visible_folders(*request.existing_folders)
        namespaces.isolate(os.environ.get(confine.HIDDEN_PLACES, "").split(os.pathsep), visible, read_only=False)
        report = work(request, lambda text: _send({"progress": text}))
        _send({"report": report.model_dump(mode="json")})
        status = 0
    except RegistryError as e:
        _send({"problem": e.to_problem()})
    except Exception as e:
        _send({"error": error_text(e)[:ERROR_CHARACTERS_LIMIT]})
    os._exit(status)


def error_text(error: BaseException, *, whole: bool = True) -> str:
    """The class of an exception and its message, or the first line of it; without one, the code that raised it."""
    lines = str(error).strip().splitlines() or [""]
    text = " ".join(" ".join(lines).split()) if whole else lines[0]
    if not text and (frames := traceback.extract_tb(error.__traceback__)):
        text = f"`{frames[-1].line}` in {frames[-1].name}"
    return f"{type(error).__name__}: {text or 'no reason given'}"


def _send(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def exit_on_signals() -> None:
    """Turn SIGINT and SIGTERM into SystemExit, once, so that partial results are cleaned up on the way out."""
    for number in _SIGNALS:
        signal.signal(number, _exit)


def _exit(number: int, _frame: FrameType | None) -> None:
    for other in _SIGNALS:  # a second Ctrl-C must not interrupt the clean-up
        signal.signal(other, signal.SIG_IGN)
    sys.exit(128 + number)
