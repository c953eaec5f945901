"""Measure how much CPU time a command takes, against `python -c pass`, and against `hf` and `oras` where they are here.

    $ make bench-cli

Runs each command several times on a server with one adapter, and on the embedded registry. Bytecode is cached, as
in an installed package, also where the environment forbids it. The last line is one JSON object of CPU seconds (user
and system) of the command's own process, the least of its runs.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests import samples
from tests.cli.runner import COMMAND, served
from tests.import_table import ROOT

RUNS = 5
NAME = "acme/support"
CALLS = {
    "version": ["--version"],
    "help": ["--help"],
    "list": ["list"],
    "list_csv": ["list", "-o", "csv"],
    "show": ["show", NAME],
    "versions": ["versions", NAME],
    "resolve_and_cat": ["cat", NAME, "adapter_config.json"],
    "whoami": ["whoami"],
    "history": ["history", NAME],
    "audit_log": ["audit", "log"],
}
OTHERS = {"hf_help": ["hf", "--help"], "hf_version": ["hf", "version"], "oras_version": ["oras", "version"]}


def cpu_seconds(command: list[str], env: dict[str, str]) -> float:
    """The least CPU time of `RUNS` runs of a command, which must succeed."""
    return least_cpu_seconds([command] * RUNS, env)


def least_cpu_seconds(commands: list[list[str]], env: dict[str, str]) -> float:
    """The least CPU time of several commands, which must succeed."""
    times = []
    for command in commands:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, env=env, cwd=ROOT, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    return round(min(times), 3)


def main() -> None:
    """Measure every call on a server, then the embedded registry, then the other programs."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        env = os.environ | {"XDG_CONFIG_HOME": scratch, "XDG_CACHE_HOME": scratch, "REGISTRY_DATA": f"{scratch}/local"}
        env |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": f"{scratch}/bytecode"}
        base, adapter = samples.llama(), folder / "adapter"
        samples.write(samples.lora(base), adapter)
        base.write(folder / "base")
        figures["python_pass"] = cpu_seconds([sys.executable, "-c", "pass"], env)
        with served(folder / "data") as (_, printed):
            remote = env | {"ADAPTER_REGISTRY": printed["url"], "ADAPTER_TOKEN": printed["token"]}
            prepared = (
                ["base", "add", base.name, f"{scratch}/base"],
                ["push", str(adapter), NAME, "--base", base.name],
            )
            for target in (remote, env):
                for words in prepared:
                    subprocess.run([*COMMAND, *words], check=True, env=target, cwd=ROOT, capture_output=True)
            figures |= {name: cpu_seconds([*COMMAND, *words], remote) for name, words in CALLS.items()}
        figures["embedded_list"] = cpu_seconds([*COMMAND, "list"], env)
        figures["embedded_show"] = cpu_seconds([*COMMAND, "show", NAME], env)
        figures["embedded_pull"] = cpu_seconds([*COMMAND, "pull", NAME, f"{scratch}/served"], env)
        new = [samples.write(samples.lora(base, seed=100 + run), folder / f"new-{run}") for run in range(RUNS)]
        pushes = [[*COMMAND, "push", str(path), NAME, "--base", base.name] for path in new]
        figures["embedded_push"] = least_cpu_seconds(pushes, env)
        for name, command in OTHERS.items():
            program = shutil.which(command[0]) or shutil.which(command[0], path=str(Path(sys.executable).parent))
            if program is not None:
                figures[name] = cpu_seconds([program, *command[1:]], env)
    for name, seconds in figures.items():
        print(f"{name:<18}{seconds:7.3f} s CPU  {seconds / figures['python_pass']:6.1f} × python -c pass")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
