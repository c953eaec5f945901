"""`Raster`: a small picture of rectangles and short texts, written as PNG with the standard library alone.

Invariants
- Letters are three by five dots, drawn twice as large, in capitals; what has no letter here is drawn as a dot.
- What lies outside the picture is not drawn.

Example
    >>> canvas = Raster(100, 20)
    >>> canvas.text(2, 2, "rank 8")
    >>> canvas.png()[:4]
    b'\\x89PNG'
"""

from __future__ import annotations

import struct
import zlib

Colour = tuple[int, int, int]
BLACK: Colour = (30, 30, 30)
LETTER_WIDTH, LETTER_HEIGHT = 3, 5
DOT = 2
ADVANCE = (LETTER_WIDTH + 1) * DOT
"""From one letter to the next."""
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_LETTERS = {
    "0": "75557", "1": "26227", "2": "71747", "3": "71317", "4": "55711", "5": "74717", "6": "74757", "7": "71122",
    "8": "75757", "9": "75717", "A": "25755", "B": "65656", "C": "34443", "D": "65556", "E": "74647", "F": "74644",
    "G": "34553", "H": "55755", "I": "72227", "J": "11152", "K": "55655", "L": "44447", "M": "57755", "N": "65555",
    "O": "25552", "P": "65644", "Q": "25563", "R": "65655", "S": "34216", "T": "72222", "U": "55557", "V": "55552",
    "W": "55775", "X": "55255", "Y": "55222", "Z": "71247", " ": "00000", ".": "00002", "-": "00700", "+": "02720",
    "_": "00007", ":": "02020", ";": "02024", ",": "00024", "/": "11244", "@": "75747", "(": "12221", ")": "42224",
    "|": "22222", "=": "07070", "…": "00005", "·": "00200", "→": "02720", "'": "22000",
}  # fmt: skip
"""Five rows from the top, each the sum of its dots: left 4, middle 2, right 1."""
_UNKNOWN = "00200"


class Raster:
    """A white picture of `width` by `height` dots."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._rows = [bytearray(b"\xff" * (3 * width)) for _ in range(height)]

    def fill(self, x: int, y: int, width: int, height: int, colour: Colour) -> None:
        left, right = max(x, 0), min(x + width, self.width)
        if left < right:
            line = bytes(colour) * (right - left)
            for row in self._rows[max(y, 0) : max(min(y + height, self.height), 0)]:
                row[3 * left : 3 * right] = line

    def text(self, x: int, y: int, text: str, colour: Colour = BLACK) -> None:
        """From the left upper corner."""
        for letter in text.upper():
            for down, bits in enumerate(_LETTERS.get(letter, _UNKNOWN)):
                for right in range(LETTER_WIDTH):
                    if int(bits) & 4 >> right:
                        self.fill(x + right * DOT, y + down * DOT, DOT, DOT, colour)
            x += ADVANCE

    def png(self) -> bytes:
        """Three bytes a dot, no interlacing, no filter."""
        header = struct.pack(">IIBBBBB", self.width, self.height, 8, 2, 0, 0, 0)
        data = zlib.compress(b"".join(b"\0" + row for row in self._rows), 9)
        return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
