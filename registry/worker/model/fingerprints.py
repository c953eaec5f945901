"""The identity of a base, from its weights: digests, sketches and norms in one pass, in a process of its own.

    $ python -m registry.worker.model.fingerprints FOLDER
    {"read_bytes": 4194304}
    {"identity": {…}}

Invariants
- One tensor's chunk is in memory at a time, and the scales of a packed tensor: a 70B base needs no more than a 1B one.
- The signs of the sketch come from SHAKE-256 of a fixed text, so every machine and every version draws the same ones.
- Packed values are unpacked for the sketch only: NF4, FP4 and int8 of bitsandbytes, and 8-bit floats with scales.
  Other packings get no sketch, and the base is then judged by its plain tensors.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from registry.bases import identity
from registry.bases.identity import SKETCH_SIZE, Identity, TensorMark
from registry.digest import Hasher
from registry.errors import RegistryError
from registry.worker.model import weights
from registry.worker.model.weights import Progress, Stored, Weights
from registry.worker.sandbox import program

BLOCK = 2**20
"""Elements that are signed and summed at once; a multiple of the sketch's size."""
SCALE_BLOCK = 128
_SEED = b"adapter-registry sketch 1"
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
}  # fmt: skip
_PLAIN = frozenset({"F64", "F32", "F16", "BF16"})

Values = Callable[[Tensor, int], Tensor]
"""(raw elements, index of the first) → their values in float32."""


def identify(files: Weights, progress: Progress = weights.quiet) -> Identity:
    """The identity of these weights. `Invalid` (BASE_INVALID) if a file ends too early."""
    marked = identity.marked(stored.name for stored in files.by_file_name.values() if not stored.is_side)
    leaves, marks = [], {}
    for stored in files.in_order():
        mark = _mark(files, stored, progress, sketched=stored.name in marked and not stored.is_side)
        leaves.append(weights.leaf(stored, mark.digest))
        if stored.name in marked and not stored.is_side:
            marks[stored.name] = mark
    return Identity(
        exact=identity.root(leaves), tensors=len(leaves), quantization=files.quantization[:64],
        marks=dict(sorted(marks.items())),
    )  # fmt: skip


def _mark(files: Weights, stored: Stored, progress: Progress, *, sketched: bool) -> TensorMark:
    hasher, dtype = Hasher(), DTYPES.get(stored.info.dtype)
    shape, values = unpacking(files, stored) if sketched and dtype is not None else (stored.shape, None)
    sketch = Sketch()
    for chunk in weights.chunks(stored, BLOCK * (dtype.itemsize if dtype is not None else 1)):
        hasher.update(chunk)
        progress(len(chunk))
        if values is not None and dtype is not None:
            sketch.add(values(torch.frombuffer(chunk, dtype=dtype), sketch.elements))
    return TensorMark(
        dtype=stored.info.dtype, shape=shape, digest=hasher.digest(), constant=sketch.is_constant,
        packed=stored.info.dtype not in _PLAIN, sketch="" if sketch.is_constant else identity.sketch(sketch.sums()),
        norm=sketch.norm,
    )  # fmt: skip


class Sketch:
    """64 sums of a tensor's values, each value under a fixed sign, in the order in which the values lie.

    And how large they are: the least, the most, and the Frobenius norm.
    """

    _signs: Tensor | None = None

    def __init__(self) -> None:
        self.elements = 0
        self._sums = torch.zeros(SKETCH_SIZE, dtype=torch.float64)
        self._least, self._most = math.inf, -math.inf
        self._squares = 0.0

    def add(self, values: Tensor) -> None:
        """The next values: float32, up to two blocks; only the last call may end inside a block."""
        for block in values.split(BLOCK):
            self._least = min(self._least, float(block.min()))
            self._most = max(self._most, float(block.max()))
            self._squares += float(torch.linalg.vector_norm(block, dtype=torch.float64)) ** 2
            signed = block.nan_to_num(0.0, 0.0, 0.0) * self._all_signs()[: len(block)]
            whole = torch.nn.functional.pad(signed, (0, -len(signed) % SKETCH_SIZE)).view(-1, SKETCH_SIZE)
            turn = _drawn(_SEED + b" block %d" % (self.elements // BLOCK), SKETCH_SIZE)
            self._sums += whole.sum(0, dtype=torch.float64) * turn
            self.elements += len(block)

    @property
    def is_constant(self) -> bool:
        return self.elements > 0 and self._least == self._most

    @property
    def norm(self) -> float | None:
        """The Frobenius norm to five digits, which is what it is compared with; None without values or with NaN."""
        finite = self.elements > 0 and math.isfinite(self._squares)
        return float(f"{math.sqrt(self._squares):.5g}") if finite else None

    def sums(self) -> list[float]:
        return [float(value) for value in self._sums.tolist()]

    @classmethod
    def _all_signs(cls) -> Tensor:
        if Sketch._signs is None:
            Sketch._signs = _drawn(_SEED, BLOCK)
        return Sketch._signs


def _drawn(seed: bytes, count: int) -> Tensor:
    """`count` signs (+1 or -1, float32) drawn from the seed, the lowest bit of a byte first."""
    raw = torch.frombuffer(bytearray(hashlib.shake_256(seed).digest(count // 8)), dtype=torch.uint8)
    bits = (raw.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.view(-1).to(torch.float32) * 2 - 1


# ------------------------------------------------------------------ unpacking
def unpacking(files: Weights, stored: Stored) -> tuple[tuple[int, ...], Values | None]:
    """The logical shape, and how raw elements become values; None for a packing that is not known here."""

    def side(ending: str) -> Tensor | None:
        there = files.by_file_name.get(f"{stored.info.name}.{ending}")
        return _whole(there) if there is not None else None

    if stored.info.dtype == "U8":
        states = [side(f"quant_state.bitsandbytes__{kind}") for kind in ("nf4", "fp4")]
        state = next((files for files in states if files is not None), None)
        absmax, levels = side("absmax"), side("quant_map")
        if state is None or absmax is None or levels is None:
            return stored.shape, None
        about = json.loads(bytes(state.tolist()))
        absmax = _nested(absmax, side, about)
        return tuple(int(size) for size in about["shape"]), _four_bit(levels.float(), absmax, int(about["blocksize"]))
    scale = _scale(files, stored)
    if scale is not None and len(stored.shape) == 2:
        return stored.shape, _scaled(scale, stored.shape, by_blocks=_sibling(files, stored, "_scale_inv") is not None)
    if stored.info.dtype in _PLAIN or (stored.info.dtype.startswith("F8") and not files.quantization):
        return stored.shape, lambda raw, _first: raw.float()
    return stored.shape, None


def _four_bit(levels: Tensor, absmax: Tensor, size: int) -> Values:
    """bitsandbytes: two values a byte, the high half first; `absmax` is the scale of each `size` values."""

    def values(raw: Tensor, first: int) -> Tensor:
        halves = torch.stack((raw >> 4, raw & 15), dim=1).view(-1).long()
        scales = absmax[(first + torch.arange(len(halves))) // size]
        return levels[halves] * scales

    return values


def _nested(absmax: Tensor, side: Callable[[str], Tensor | None], about: dict[str, Any]) -> Tensor:
    """The scales of double quantization are bytes themselves, with levels, scales and an offset of their own."""
    levels, scales = side("nested_quant_map"), side("nested_absmax")
    if absmax.dtype != torch.uint8 or levels is None or scales is None:
        return absmax.float()
    where = torch.arange(len(absmax)) // int(about["nested_blocksize"])
    return levels.float()[absmax.long()] * scales.float()[where] + float(about["nested_offset"])


def _scale(files: Weights, stored: Stored) -> Tensor | None:
    """The scales of an 8-bit tensor as a matrix [row blocks, column blocks]; None if it has none."""
    if stored.info.dtype not in ("I8", "F8_E4M3", "F8_E5M2"):
        return None
    path = stored.info.name.removesuffix(".weight")
    row_limits = files.by_file_name.get(f"{path}.SCB") or files.by_file_name.get(f"{stored.info.name}.SCB")
    if row_limits is not None:
        return _whole(row_limits).float().view(-1, 1) / 127
    there = _sibling(files, stored, "_scale") or _sibling(files, stored, "_scale_inv")
    if there is None or len(there.info.shape) > 2 or there.info.dtype not in DTYPES:
        return None
    scale = _whole(there).float()
    return scale.view(-1, 1) if scale.dim() < 2 else scale


def _sibling(files: Weights, stored: Stored, ending: str) -> Stored | None:
    return files.by_file_name.get(stored.info.name + ending)


def _scaled(scale: Tensor, shape: tuple[int, ...], *, by_blocks: bool) -> Values:
    rows, columns = shape
    high = SCALE_BLOCK if by_blocks and scale.shape[0] > 1 else math.ceil(rows / scale.shape[0])
    wide = SCALE_BLOCK if by_blocks and scale.shape[1] > 1 else math.ceil(columns / scale.shape[1])

    def values(raw: Tensor, first: int) -> Tensor:
        index = first + torch.arange(len(raw))
        return raw.float() * scale[index // columns // high, index % columns // wide]

    return values


def _whole(stored: Stored) -> Tensor:
    """A side tensor, all of it: at most an eighth of what it belongs to."""
    data = bytearray().join(weights.chunks(stored, max(1, stored.info.size_bytes)))
    dtype = DTYPES.get(stored.info.dtype, torch.uint8)
    return torch.frombuffer(data, dtype=dtype).reshape(stored.info.shape if stored.info.shape else (1,))


# ------------------------------------------------------------------ the process
def main(arguments: list[str]) -> int:
    """`FOLDER`: one JSON object a line on standard output, progress first, then the identity or the error."""

    def say(message: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()

    program.finish_start()
    try:
        result = identify(Weights.of(arguments[0]), lambda count: say({"read_bytes": count}))
    except RegistryError as e:
        say({"error": e.detail})
        return 1
    except (OSError, ValueError, KeyError, IndexError, RuntimeError) as e:
        say({"error": f"the weights cannot be read: {type(e).__name__}: {e}"[:500]})
        return 1
    say({"identity": result.model_dump(mode="json")})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
