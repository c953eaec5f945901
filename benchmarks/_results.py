"""Runs benchmarks and writes their figures into benchmarks/RESULTS.md: `make bench`.

    python -m benchmarks._results [NAME…]        without names: all

Each benchmark prints one JSON object as its last line. Its section of the page is replaced; the others stay as they
are, each with the commit it was measured at, so compare only figures of one commit and one machine.
"""

import datetime
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
PAGE = FOLDER / "RESULTS.md"
HEAD = """\
# Results of the benchmarks

Written by `make bench`. Ratios compare with another tool or with the limit of the hardware in the same run; absolute
times on shared machines mean little. `…_speed_vs_…` is the other tool's median time over ours (above 1: we are faster),
`…_cpu_vs_…` the same for CPU seconds of clients and servers, `…_spread` the slowest run over the fastest: a ratio
closer to 1 than the spread says nothing.
"""


def rows(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each figure of a result with its name; names of nested ones are joined by points."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from rows(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def section(name: str, result: Mapping[str, Any], commit: str) -> str:
    """The section of one benchmark."""
    machine = ", ".join(f"{value} {key}" for key, value in result.get("machine", {}).items())
    figures = {key: value for key, value in result.items() if key not in ("bench", "machine")}
    lines = [
        f"## {name}",
        "",
        f"{datetime.date.today()}, commit {commit}; {machine}",
        "",
        "| figure | value |",
        "|---|---|",
    ]
    return "\n".join(lines + [f"| {key} | {value} |" for key, value in rows(figures)]) + "\n"


def main() -> None:
    names = sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))
    text = PAGE.read_text() if PAGE.is_file() else ""
    sections = {part.split("\n", 1)[0]: f"## {part}" for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]}
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
    ).stdout
    failed = []
    for name in names:
        command = [sys.executable, "-m", f"benchmarks.{name}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode or not done.stdout.strip():
            failed.append(name)
            continue
        sections[name] = section(name, json.loads(done.stdout.splitlines()[-1]), commit.strip())
        PAGE.write_text("\n".join([HEAD, *(sections[key].rstrip() + "\n" for key in sorted(sections))]))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
