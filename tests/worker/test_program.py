"""How a program of the worker's own is started, and how much of what it writes the worker reads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry.errors import Invalid, Unavailable
from registry.merging.conversions import Conversion, TargetFormat
from registry.worker.conversions.request import ConversionRequest
from registry.worker.sandbox import program
from tests import samples
from tests.domain import specs

PROBE = """
import gc, logging, sys
print(gc.isenabled(), logging.getLogger("bitsandbytes.backends").isEnabledFor(logging.WARNING))
from registry.worker.sandbox import program
program.finish_start()
print(gc.isenabled(), gc.get_freeze_count() > 0)
print(__name__, sys.modules["__main__"].__spec__.name, sys.argv[1:])
sys.exit(3)
"""


def test_a_program_imports_without_the_collector_and_works_with_it(tmp_path: Path) -> None:
    (tmp_path / "probe.py").write_text(PROBE)
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        program.command("probe", "one", "two"), env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout.splitlines() == [
        "False False", "True True", "__main__ probe ['one', 'two']",
    ]  # fmt: skip


class Nothing(program.ProgramRequest):
    """A request without folders."""

    FOLDERS = ()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Runs a program of this text."""

    def run_text(text: str, progress: program.Progress | None = None) -> dict[str, Any]:
        (tmp_path / "probe.py").write_text(f"import sys\nsys.stdin.read()\nwrite = sys.stdout.write\n{text}\n")
        path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
        start = program.command("probe")
        start[2] = f"import sys; sys.path[:0] = {path.split(os.pathsep)!r}; {start[2]}"
        monkeypatch.setattr(program, "command", lambda _module: start)
        return program.run_program("probe", Nothing(), work="the merge", progress=progress)

    return run_text


@pytest.mark.security
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("while True: write('x' * 2**16)", id="a line without an end"),
        pytest.param("while True: write('x' * 2**10 + chr(10))", id="lines without an end"),
    ],
)
def test_a_program_that_writes_without_an_end_is_stopped(
    run: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(program, "LINE_LIMIT_BYTES", 2**20)
    monkeypatch.setattr(program, "OUTPUT_LIMIT_BYTES", 2**22)
    with pytest.raises(Unavailable, match="the merge could not be done: it wrote over 1048576 bytes in a line or"):
        run(text)


@pytest.mark.security
def test_only_the_end_of_what_a_program_writes_to_standard_error_is_kept(
    run: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It went to a file of any size, which was then read as a whole."""
    readers: list[program._Errors] = []

    class Errors(program._Errors):
        def start(self) -> None:
            readers.append(self)
            super().start()

    monkeypatch.setattr(program, "_Errors", Errors)
    with pytest.raises(Unavailable, match=r"exit status 3: the reason$"):
        run("for _ in range(100): sys.stderr.write('x' * 2**16)\nprint('\\nthe reason', file=sys.stderr); sys.exit(3)")
    assert [len(errors._end) for errors in readers] == [program.ERRORS_KEPT_BYTES]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("assert len('ab') == 3, 'two'", "exit status 1: AssertionError: two", id="a traceback"),
        pytest.param("print('the reason', file=sys.stderr); sys.exit(3)", "exit status 3: the reason", id="a line"),
    ],
)
def test_the_exception_of_a_program_is_named_whatever_libraries_write_after_it(
    run: Callable[[str], dict[str, Any]], text: str, reason: str
) -> None:
    late = "import atexit; atexit.register(sys.stderr.write, 'nanobind: leaked 3 types!\\n - see refleaks\\n')"
    with pytest.raises(Unavailable) as e:
        run(f"{late if 'assert' in text else ''}\n{text}")
    assert e.value.detail == f"the merge could not be done: {reason}"


def test_an_exception_without_a_message_is_named_by_the_code_that_raised_it(
    run: Callable[[str], dict[str, Any]],
) -> None:
    with pytest.raises(Unavailable, match=r"AssertionError: `assert request is None` in fail$"):
        run(
            "import io; from registry.worker.sandbox import program; from tests.worker import test_program\n"
            "sys.stdin = io.TextIOWrapper(io.BytesIO(b'{}'))\n"
            "program.serve(test_program.Nothing, test_program.fail)"
        )


def fail(request: object, _progress: object) -> None:
    """What a program's library may do."""
    assert request is None


def test_a_conversion_that_would_fail_again_is_refused(run: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    conversion = Conversion(to=TargetFormat.PEFT, into="acme/made")
    request = ConversionRequest(
        conversion=conversion, source=str(tmp_path), out=str(tmp_path / "out"), base=specs.base_spec(samples.llama())
    )
    with pytest.raises(Invalid, match=r"the conversion fails on this adapter: KeyError: 'layers'$"):
        run(
            "import io; from registry.worker.conversions.request import serve\n"
            f"sys.stdin = io.TextIOWrapper(io.BytesIO({request.model_dump_json().encode()!r}))\n"
            "serve(lambda request: {}['layers'])"
        )


def test_other_lines_of_a_program_are_skipped(run: Callable[..., dict[str, Any]]) -> None:
    steps: list[str] = []
    lines = ("loading", '{"progress": "half"}', "{not json", '{"report": {"a": 1}}')
    assert run(f"print({chr(10).join(lines)!r})", steps.append) == {"a": 1}
    assert steps == ["half"]


PROGRAMS = (
    "registry.worker.conversions.to_peft", "registry.worker.merge.combine", "registry.worker.merge.fuse",
    "registry.worker.model.fingerprints", "registry.worker.model.library", "registry.worker.model_process.host",
)  # fmt: skip


def test_no_program_imports_a_client_that_speaks_http() -> None:
    """They reach no network, and their start waits for no import that they do not use."""
    script = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    print(name, *({'httpx', 'registry.client.registry'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script, *PROGRAMS], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == list(PROGRAMS)
