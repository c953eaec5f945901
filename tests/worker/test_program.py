"""How a program of the worker's own is started: as a module is, but without collecting garbage while it imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from registry.worker.sandbox import program

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
