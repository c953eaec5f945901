"""`read_chunks`: unpack the chunks of a xorb, in the order of its body.

for each chunk: 8 bytes of header, then its packed bytes
0      version, 0                   1–3    packed length
4      0 as it is; 1 an LZ4 frame; 2 an LZ4 frame of the bytes grouped by their position modulo four
5–7    unpacked length              numbers are little-endian
`XETBLOB` and an index end the body; the index says nothing new and is not read
"""

from collections.abc import Iterator

from lz4.frame import LZ4FrameDecompressor

from registry.errors import Invalid, TooLarge
from registry.hub.operations import Body

XORB_LIMIT_BYTES = 64 * 2**20
"""Unpacked bytes of a xorb."""
XORB_BODY_LIMIT_BYTES = XORB_LIMIT_BYTES + 2 * 2**20
CHUNK_LIMIT_BYTES = 128 * 2**10
CHUNKS_LIMIT = 8192
_HEADER_BYTES = 8
_INDEX = b"XETBLOB"


def read_chunks(body: Body) -> Iterator[bytes]:
    """Yield the unpacked chunks. `Invalid` (REQUEST_INVALID) and `TooLarge` (SIZE_INVALID) name the chunk."""
    at, number, total, end = 0, 0, 0, len(body)
    while at < end and not (header := body[at : at + _HEADER_BYTES]).startswith(_INDEX):
        if len(header) < _HEADER_BYTES or header[0] != 0:
            raise _invalid(number, "has no header")
        packed, unpacked = int.from_bytes(header[1:4], "little"), int.from_bytes(header[5:8], "little")
        total += unpacked
        if number >= CHUNKS_LIMIT or max(packed, unpacked) > CHUNK_LIMIT_BYTES or total > XORB_LIMIT_BYTES:
            raise TooLarge(
                "SIZE_INVALID",
                f"xorb: chunk {number} is over the limit of {CHUNKS_LIMIT} chunks, {CHUNK_LIMIT_BYTES} bytes of a "
                f"chunk, or {XORB_LIMIT_BYTES} bytes of all",
            )
        at += _HEADER_BYTES
        data = body[at : at + packed]
        at += packed
        if not unpacked or len(data) != packed:
            raise _invalid(number, "is empty, or ends after the body")
        yield _unpack(data, header[4], unpacked, number)
        number += 1
    if not number:
        raise Invalid("REQUEST_INVALID", "xorb: has no chunk")


def _unpack(data: bytes, scheme: int, size_bytes: int, number: int) -> bytes:
    if scheme in (1, 2):
        data = _decompress(data, size_bytes, number)
    elif scheme:
        raise _invalid(number, f"is packed by scheme {scheme}, which this registry does not know")
    if len(data) != size_bytes:
        raise _invalid(number, f"does not have the {size_bytes} bytes that its header declares")
    return _ungroup(data) if scheme == 2 else data


def _decompress(data: bytes, size_bytes: int, number: int) -> bytes:
    """Return the data of one whole LZ4 frame, or a byte more than `size_bytes` of it."""
    frame = LZ4FrameDecompressor()
    try:
        unpacked = frame.decompress(data, max_length=size_bytes + 1)
    except RuntimeError:
        raise _invalid(number, "is not an LZ4 frame") from None
    if len(unpacked) <= size_bytes and (not frame.eof or frame.unused_data):
        raise _invalid(number, "is not one whole LZ4 frame")
    return bytes(unpacked)


def _ungroup(data: bytes) -> bytes:
    """Return the bytes in their order: those at 0, 4, 8 … come first, then those at 1, 5, 9 … and so on."""
    ordered, start = bytearray(len(data)), 0
    for position in range(4):
        end = start + (len(data) - position + 3) // 4
        ordered[position::4] = data[start:end]
        start = end
    return bytes(ordered)


def _invalid(number: int, problem: str) -> Invalid:
    return Invalid("REQUEST_INVALID", f"xorb: chunk {number} {problem}")
