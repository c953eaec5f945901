"""`Weights`: the tensors of a base's files in a folder, read in chunks; and the digest of all of them. No torch.

Names are the model's, so files of the bare model and of the head model name a tensor alike. The digest does not depend
on the order of tensors in files.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from registry import bases
from registry.adapters.safetensors import TensorInfo
from registry.bases import identity, pipelines
from registry.bases import modules as base_modules
from registry.bases.identity import Leaf
from registry.bases.modules import Facts, LogicalTensor
from registry.client.local.base_folder import components_of, weights_of
from registry.digest import Digest, Hasher
from registry.errors import Invalid
from registry.versions.files import WEIGHTS_CHUNK_BYTES
from registry.worker.sandbox.program import ignore_progress

Progress = Callable[[int], None]
"""Gets the number of bytes read since the last call."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor in a file. `shape` is the logical one (empty if unknown); `is_side` belongs to a packed tensor."""

    name: str
    shape: tuple[int, ...]
    is_side: bool
    info: TensorInfo
    path: Path
    data_start: int


@dataclass(frozen=True, slots=True)
class Weights:
    """All tensors of a base, by the names in its files."""

    folder: Path
    quantization: str
    by_file_name: dict[str, Stored]

    @classmethod
    def of(cls, folder: str | Path) -> Self:
        """Read configuration and headers. `Invalid` (BASE_INVALID, TENSORS_INVALID) when they are malformed.

        Of a pipeline the models that take adapters, each tensor under its component (`unet.mid_block…`).
        """
        if components := components_of(folder):
            by_file_name = {
                f"{part}.{name}": replace(stored, name=f"{part}.{stored.name}")
                for part in components for name, stored in _stored(Path(folder) / part, pipelines.FACTS).items()
            }  # fmt: skip
            return cls(Path(folder), "", by_file_name)
        facts = bases.facts_of(weights_of(folder)[0])
        return cls(Path(folder), facts.quantization, _stored(Path(folder), facts))

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(stored.info.size_bytes for stored in self.by_file_name.values())

    def in_order(self) -> list[Stored]:
        """All tensors in the order of their bytes on disk."""
        return sorted(self.by_file_name.values(), key=lambda stored: (stored.path, stored.info.start))

    def exact(self, progress: Progress = ignore_progress) -> Digest:
        """Compute the Merkle root over every tensor; reads all weights once."""
        leaves = []
        for stored in self.in_order():
            hasher = Hasher()
            for chunk in chunks(stored, WEIGHTS_CHUNK_BYTES):
                hasher.update(chunk)
                progress(len(chunk))
            leaves.append(leaf(stored, hasher.digest()))
        return identity.root(leaves)


def _stored(folder: Path, facts: Facts) -> dict[str, Stored]:
    """The tensors of one model, by the names in its files."""
    _, headers = weights_of(folder)
    tensors = bases.all_tensors(headers.values())
    side = base_modules.side_names(tensors, facts)
    logical = iter(base_modules.logical(tensors, facts))
    starts = {t.name: (path, header.data_start) for path, header in headers.items() for t in header}
    stored = {}
    for t in tensors:
        is_side = t.name in side
        logical_tensor = LogicalTensor(side[t.name], t.shape, t.dtype, t.elements) if is_side else next(logical)
        stored[t.name] = Stored(logical_tensor.name, logical_tensor.shape, is_side, t, *starts[t.name])
    return stored


def leaf(stored: Stored, digest: Digest) -> Leaf:
    """The tensor's leaf of the Merkle tree."""
    return Leaf(stored.name, stored.info.dtype, stored.info.shape, digest)


def chunks(stored: Stored, size_bytes: int) -> Iterator[memoryview]:
    """Read the tensor's bytes in chunks of `size_bytes`, all in one reused buffer.

    `Invalid` (BASE_INVALID) if the file ends before the tensor does.
    """
    view = memoryview(bytearray(min(size_bytes, stored.info.size_bytes)))
    remaining = stored.info.size_bytes
    with open(stored.path, "rb") as file:
        file.seek(stored.data_start + stored.info.start)
        while remaining:
            chunk = view[:remaining]
            if file.readinto(chunk) < len(chunk):
                raise Invalid("BASE_INVALID", f"{stored.path.name} ended inside the tensor {stored.info.name!r}")
            yield chunk
            remaining -= len(chunk)
