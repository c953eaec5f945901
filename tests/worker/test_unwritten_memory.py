"""Which tensors the kernel reports as unwritten since the fork, in a process that forks for this test."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from registry.worker.smoke import shared

SCRIPT = """
import json, os, torch
from registry.worker.smoke.shared import is_unwritten
torch.set_num_threads(1)
base = [torch.full((2**21,), float(i)) for i in range(3)]
before = is_unwritten(base[0])
inward, outward = os.pipe()
if os.fork() == 0:
    at_first = [is_unwritten(tensor) for tensor in base]
    sums = [float(tensor.sum()) for tensor in base]
    after_reading = [is_unwritten(tensor) for tensor in base]
    base[1][12345] += 1
    base[2].data = base[2].clone()
    after_writing = [is_unwritten(tensor) for tensor in base]
    with os.fdopen(outward, "w") as pipe:
        json.dump([at_first, after_reading, after_writing], pipe)
    os._exit(0)
os.close(outward)
with os.fdopen(inward) as pipe:
    print(json.dumps([before, *json.load(pipe)]))
"""


@pytest.mark.skipif(not shared.MAP.exists(), reason="this system has no page map")
def test_tensors_written_since_the_fork_differ_from_those_only_read() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=300)
    before, at_first, after_reading, after_writing = json.loads(done.stdout)
    assert before is False, "no other process maps it"
    assert at_first == after_reading == [True, True, True]
    assert after_writing == [True, False, False]
