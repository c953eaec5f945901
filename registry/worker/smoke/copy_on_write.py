"""Pages of memory: which tensors still lie in those that this process was forked with, and so are what they were.

A forked process shares its parent's pages until one of the two writes to one: then the kernel gives the writer a copy.
So a page that is still mapped by both holds every bit that it held at the fork.

Invariants
- `untouched` is True only where the kernel says of each page of the tensor that it is ordinary memory, is there, and is
  mapped by another process, too. Anything else (no page map, a page that is swapped out or belongs to a file, a
  other adapter in a page that was written) is False: whoever asks then reads the numbers themselves.
- It speaks of the time since the fork, for a process that has not forked since.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import torch

MAP = Path("/proc/self/pagemap")
ENTRY_BYTES = 8
_EXCLUSIVE, _OF_A_FILE = 1 << 56, 1 << 61  # bit 63, the sign: it is there


def untouched(tensor: torch.Tensor) -> bool:
    """Whether nobody here has written to the tensor since this process was forked; False where that is not known."""
    if tensor.device.type != "cpu" or not tensor.is_contiguous() or not tensor.nbytes:
        return False
    size = os.sysconf("SC_PAGE_SIZE")
    first, end = tensor.data_ptr() // size, -(-(tensor.data_ptr() + tensor.nbytes) // size)
    with contextlib.suppress(OSError), open(MAP, "rb", buffering=0) as file:
        file.seek(first * ENTRY_BYTES)
        pagemap = bytearray(file.read((end - first) * ENTRY_BYTES))
        if len(pagemap) == (end - first) * ENTRY_BYTES:
            entries = torch.frombuffer(pagemap, dtype=torch.int64)
            return bool(((entries < 0) & (entries & (_EXCLUSIVE | _OF_A_FILE) == 0)).all())
    return False
