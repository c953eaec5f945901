"""Write changed copies of safetensors files: the kernel copies unchanged ranges, the rest is computed row by row.

Memory does not grow with the file: some rows (`BLOCK_BYTES`) and one tensor's change are held at a time. A file whose
tensors keep their names and sizes keeps its header byte for byte.
"""

import errno
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from registry.adapters.safetensors import DTYPE_BYTES, Header
from registry.errors import Invalid
from registry.worker.merge.changes import Change
from registry.worker.model.fingerprints import DTYPES

BLOCK_BYTES = 2**20
COPY_BYTES = 64 * 2**20
_NO_KERNEL_COPY = frozenset({errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF})

_WIDE = frozenset({"F64", "F32", "F16"})
"""Types whose last bit 32-bit arithmetic would not get right; bfloat16 keeps 8 bits, for which it is ample."""

Fill = Callable[[int, Tensor], None]
"""(index of the first row, block) → write unpacked values into the block."""


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor of the new file: its name, where its bytes are now, and their changes.

    `changes` are made just before they are used, so one tensor's factors are in memory at a time. `fill` reads rows of
    a packed tensor instead of bytes at `start`; then `dtype` and `shape` are the new ones.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: Path
    start: int
    changes: tuple[Callable[[], Change], ...] = ()
    fill: Fill | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor in its file."""
        return DTYPE_BYTES[self.dtype] * math.prod(self.shape)

    @property
    def is_copied(self) -> bool:
        """Whether its bytes are those of the base."""
        return not self.changes and self.fill is None


@dataclass(slots=True)
class WriteSummary:
    """Counts of one run: computed tensors, and copied bytes."""

    changed_tensors: int = 0
    copied_bytes: int = 0


def write(
    target: Path, pieces: Sequence[OutputTensor], metadata: dict[str, str], summary: WriteSummary, *,
    same: Header | None = None, progress: Callable[[int], None] = lambda _bytes: None,
) -> None:  # fmt: skip
    """Write the file. `same`: the header of the only source, copied if no tensor changes name, type or size."""
    described = [(piece.name, piece.dtype, piece.shape) for piece in pieces]
    if same is not None and described == [(t.name, t.dtype, t.shape) for t in same]:
        with open(pieces[0].source, "rb") as file:
            head = file.read(same.data_start)
    else:
        head = _header(pieces, metadata)
    with open(target, "wb") as out:
        out.write(head)
        at = len(head)
        os.truncate(out.fileno(), at + sum(piece.size_bytes for piece in pieces))
        for run in _runs(pieces):
            size = sum(piece.size_bytes for piece in run)
            if run[0].is_copied:
                _copy(run[0].source, run[0].start, out.fileno(), at, size, progress)
                summary.copied_bytes += size
            else:
                _compute(run[0], out, at, progress)
                summary.changed_tensors += 1
            at += size


def _header(pieces: Sequence[OutputTensor], metadata: dict[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": metadata or {"format": "pt"}}
    at = 0
    for piece in pieces:
        end = at + piece.size_bytes
        entries[piece.name] = {"dtype": piece.dtype, "shape": list(piece.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _runs(pieces: Sequence[OutputTensor]) -> Iterator[list[OutputTensor]]:
    """Group copied tensors that follow each other; every computed one is alone."""
    run: list[OutputTensor] = []
    for piece in pieces:
        last = run[-1] if run else None
        joins = last is not None and piece.is_copied and last.is_copied and piece.source == last.source
        if last is not None and joins and piece.start == last.start + last.size_bytes:
            run.append(piece)
            continue
        if run:
            yield run
        run = [piece]
    if run:
        yield run


def _copy(source: Path, start: int, out: int, at: int, size: int, progress: Callable[[int], None]) -> None:
    with open(source, "rb", buffering=0) as file:
        copied, kernel = 0, True
        while copied < size:
            chunk_bytes = min(COPY_BYTES, size - copied)
            count = 0
            if kernel:
                try:
                    count = os.copy_file_range(file.fileno(), out, chunk_bytes, start + copied, at + copied)
                except OSError as e:
                    if e.errno not in _NO_KERNEL_COPY:
                        raise
                kernel = count > 0
            if not kernel:
                data = os.pread(file.fileno(), min(chunk_bytes, 4 * 2**20), start + copied)
                if not data:
                    raise _short(source)
                count = os.pwrite(out, data, at + copied)
            copied += count
            progress(count)


def _compute(piece: OutputTensor, out: BinaryIO, at: int, progress: Callable[[int], None]) -> None:
    """Read, widen, change, round once and write, some rows at a time, in two reused buffers."""
    stored = DTYPES[piece.dtype]
    columns = piece.shape[-1] if len(piece.shape) != 4 else piece.size_bytes // stored.itemsize // piece.shape[0]
    rows = piece.size_bytes // stored.itemsize // columns if piece.size_bytes else 0
    working = torch.float64 if piece.dtype in _WIDE else torch.float32
    height = max(1, min(rows, BLOCK_BYTES // (columns * stored.itemsize)))
    data = bytearray(height * columns * stored.itemsize)
    raw = torch.frombuffer(data, dtype=stored).view(height, columns)
    wide = torch.empty(height, columns, dtype=working)
    out.seek(at)
    with open(piece.source, "rb") as file:

        def blocks() -> Iterator[tuple[int, Tensor]]:
            for first in range(0, rows, height):
                count = min(height, rows - first)
                if piece.fill is not None:
                    piece.fill(first, wide[:count])
                else:
                    view = memoryview(data)[: count * columns * stored.itemsize]
                    file.seek(piece.start + first * columns * stored.itemsize)
                    if file.readinto(view) < len(view):
                        raise _short(piece.source)
                    wide[:count].copy_(raw[:count])
                yield first, wide[:count]

        changes = [make() for make in piece.changes]
        for change in changes:
            change.begin(working, blocks)
        for first, block in blocks():
            for change in changes:
                change.apply(block, first)
            raw[: len(block)].copy_(block)
            if stored is torch.float16 and not bool(raw[: len(block)].isfinite().all()):
                raise Invalid("TENSORS_INVALID", f"{piece.name}: the fused values do not fit into 16-bit floats")
            progress(out.write(memoryview(data)[: len(block) * columns * stored.itemsize]))


def _short(path: Path) -> Invalid:
    return Invalid("BASE_INVALID", f"{path.name} ended inside a tensor", next_step="download the base again")
