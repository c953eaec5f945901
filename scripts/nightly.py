"""Run the slow tiers one after the other and record them: `make nightly` (ARGS='faults deep' runs these).

Each run is a line of tests/RUNS.md: date, commit, tier, pytest's last line. A tier that fails does not stop the others.
"""

import datetime
import re
import subprocess
import sys
import time
from pathlib import Path

TIERS = ("model", "faults", "test-ha", "test-web", "deep", "test-databases", "fuzz")
PAGE = Path("tests/RUNS.md")
HEAD = """\
# Runs of the slow tiers

Written by `make nightly`. `make test` leaves these tests out; CI runs a sample of them (`make sample`).

| date | commit | tier | result | minutes |
|---|---|---|---|---|
"""
LAST_LINE = re.compile(r"=* ?((?:\d+ [a-z]+(?:, )?)+) in [\d.]+s")


def run(tier: str, commit: str) -> bool:
    """Run one tier, print its output as it comes, and add its line to the page."""
    started = time.monotonic()
    # make hands the variables of its command line on: ARGS, which names tiers here, would name tests there.
    process = subprocess.Popen(["make", tier, "ARGS="], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    result = "no result"
    for line in process.stdout or ():
        print(line, end="", flush=True)
        if match := LAST_LINE.search(line):
            result = match.group(1)
    failed = process.wait() != 0
    text = PAGE.read_text() if PAGE.is_file() else HEAD
    minutes = (time.monotonic() - started) / 60
    result += ", failed" if failed and "failed" not in result else ""
    PAGE.write_text(f"{text}| {datetime.date.today()} | {commit} | {tier} | {result} | {minutes:.1f} |\n")
    return failed


def main() -> None:
    describe = ["git", "describe", "--always", "--exclude=*", "--dirty"]
    commit = subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    failed = [tier for tier in sys.argv[1:] or TIERS if run(tier, commit)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
