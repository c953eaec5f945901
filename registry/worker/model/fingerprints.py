"""The identity of a base, from its weights: digests, sketches and norms in one pass, in a process of its own.

Memory does not grow with the base. Packed values are unpacked for the sketch: NF4, FP4 and int8 of bitsandbytes, and
8-bit floats with scales. Other packings get no sketch; the base is then compared by its plain tensors.
"""

import hashlib
import json
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from registry.bases import identity
from registry.bases.identity import SKETCH_SIZE, Identity, TensorMark
from registry.digest import Hasher
from registry.worker.model import weights
from registry.worker.model.request import IdentifyRequest
from registry.worker.model.weights import Progress, Stored, Weights
from registry.worker.sandbox import program

BLOCK = 2**20
"""Elements summed at once; a multiple of the sketch's size."""
SCALE_BLOCK = 128
_SEED = b"adapter-registry sketch 1"
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
}  # fmt: skip
PLAIN_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})

Values = Callable[[Tensor, int], Tensor]
"""(raw elements, index of the first) → their values in float32."""


def identify(files: Weights, progress: Progress = program.ignore_progress) -> Identity:
    """Compute the identity of these weights. `Invalid` (BASE_INVALID) if a file ends too early."""
    marked = identity.select_marked(stored.name for stored in files.by_file_name.values() if not stored.is_side)
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
        packed=stored.info.dtype not in PLAIN_DTYPES, norm=sketch.norm,
        sketch="" if sketch.is_constant else identity.sketch(sketch.sums()),
    )  # fmt: skip


class Sketch:
    """64 sums of a tensor's values, each with a fixed sign, in storage order; and their range and Frobenius norm.

    The signs come from SHAKE-256 of a fixed text, so they are the same everywhere.
    """

    def __init__(self) -> None:
        self.elements = 0
        self._sums = torch.zeros(SKETCH_SIZE, dtype=torch.float64)
        self._least, self._most = math.inf, -math.inf
        self._squares = 0.0

    def add(self, values: Tensor) -> None:
        """Add the next values: float32, up to two blocks; only the last call may end inside a block."""
        for block in values.split(BLOCK):
            self._least = min(self._least, float(block.min()))
            self._most = max(self._most, float(block.max()))
            self._squares += float(torch.linalg.vector_norm(block, dtype=torch.float64)) ** 2
            signed = block.nan_to_num(0.0, 0.0, 0.0) * _fixed_signs()[: len(block)]
            whole = torch.nn.functional.pad(signed, (0, -len(signed) % SKETCH_SIZE)).view(-1, SKETCH_SIZE)
            block_signs = _signs(_SEED + b" block %d" % (self.elements // BLOCK), SKETCH_SIZE)
            self._sums += whole.sum(0, dtype=torch.float64) * block_signs
            self.elements += len(block)

    @property
    def is_constant(self) -> bool:
        """Whether all elements are equal."""
        return self.elements > 0 and self._least == self._most

    @property
    def norm(self) -> float | None:
        """The Frobenius norm to five digits; None without values or with NaN."""
        finite = self.elements > 0 and math.isfinite(self._squares)
        return float(f"{math.sqrt(self._squares):.5g}") if finite else None

    def sums(self) -> list[float]:
        """The sums that `identity.sketch` encodes."""
        return [float(value) for value in self._sums.tolist()]


@cache
def _fixed_signs() -> Tensor:
    return _signs(_SEED, BLOCK)


def _signs(seed: bytes, count: int) -> Tensor:
    """`count` signs (+1 or -1, float32) drawn from the seed, the lowest bit of a byte first."""
    raw = torch.frombuffer(bytearray(hashlib.shake_256(seed).digest(count // 8)), dtype=torch.uint8)
    bits = (raw.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.view(-1).to(torch.float32) * 2 - 1


def unpacking(files: Weights, stored: Stored) -> tuple[tuple[int, ...], Values | None]:
    """The logical shape, and the function from raw elements to values; None for an unknown packing."""

    def side(ending: str) -> Tensor | None:
        tensor = files.by_file_name.get(f"{stored.info.name}.{ending}")
        return read_whole(tensor) if tensor is not None else None

    if stored.info.dtype == "U8":
        state, fp4_state = (side(f"quant_state.bitsandbytes__{kind}") for kind in ("nf4", "fp4"))
        state = state if state is not None else fp4_state
        absmax, levels = side("absmax"), side("quant_map")
        if state is None or absmax is None or levels is None:
            return stored.shape, None
        config = json.loads(bytes(state.tolist()))
        absmax = _nested(absmax, side, config)
        return tuple(int(size) for size in config["shape"]), _four_bit(levels.float(), absmax, int(config["blocksize"]))
    scale = _scale(files, stored)
    if scale is not None and len(stored.shape) == 2:
        return stored.shape, _scaled(scale, stored.shape, by_blocks=_sibling(files, stored, "_scale_inv") is not None)
    if stored.info.dtype in PLAIN_DTYPES or (stored.info.dtype.startswith("F8") and not files.quantization):
        return stored.shape, lambda raw, _first: raw.float()
    return stored.shape, None


def _four_bit(levels: Tensor, absmax: Tensor, size: int) -> Values:
    """bitsandbytes: two values a byte, the high half first; `absmax` is the scale of each `size` values."""

    def values(raw: Tensor, first: int) -> Tensor:
        halves = torch.stack((raw >> 4, raw & 15), dim=1).view(-1).long()
        scales = absmax[(first + torch.arange(len(halves))) // size]
        return levels[halves] * scales

    return values


def _nested(absmax: Tensor, side: Callable[[str], Tensor | None], config: dict[str, Any]) -> Tensor:
    """Unpack the scales of double quantization: bytes with levels, scales and an offset of their own."""
    levels, scales = side("nested_quant_map"), side("nested_absmax")
    if absmax.dtype != torch.uint8 or levels is None or scales is None:
        return absmax.float()
    blocks = torch.arange(len(absmax)) // int(config["nested_blocksize"])
    return levels.float()[absmax.long()] * scales.float()[blocks] + float(config["nested_offset"])


def _scale(files: Weights, stored: Stored) -> Tensor | None:
    """The scales of an 8-bit tensor as a matrix [row blocks, column blocks]; None if it has none."""
    if stored.info.dtype not in ("I8", "F8_E4M3", "F8_E5M2"):
        return None
    path = stored.info.name.removesuffix(".weight")
    row_limits = files.by_file_name.get(f"{path}.SCB") or files.by_file_name.get(f"{stored.info.name}.SCB")
    if row_limits is not None:
        return read_whole(row_limits).float().view(-1, 1) / 127
    scales = _sibling(files, stored, "_scale") or _sibling(files, stored, "_scale_inv")
    if scales is None or len(scales.info.shape) > 2 or scales.info.dtype not in DTYPES:
        return None
    scale = read_whole(scales).float()
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


def read_whole(stored: Stored) -> Tensor:
    """Read a whole tensor."""
    data = bytearray().join(weights.chunks(stored, max(1, stored.info.size_bytes)))
    dtype = DTYPES.get(stored.info.dtype, torch.uint8)
    return torch.frombuffer(data, dtype=dtype).reshape(stored.info.shape if stored.info.shape else (1,))


if __name__ == "__main__":
    program.serve(
        IdentifyRequest,
        lambda request, progress: identify(Weights.of(request.folder), lambda count: progress(str(count))),
    )
