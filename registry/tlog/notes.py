"""Signed notes and checkpoints (C2SP signed-note, tlog-checkpoint): text that a key has signed with Ed25519.

    registry.example.org/3f9c          the origin, which is also the name of the key
    1042                               the size
    CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2…  the root, base64

    — registry.example.org/3f9c Az3grl…   each signature behind four bytes that say which key

A proof that an entry is in a log is one text, verified offline with keys that the verifier brings (C2SP tlog-proof):

    c2sp.org/tlog-proof@v1
    index 73894
    gSKyXoYZUgZ6jduWYrkDOARinOMGJveXjgMkBTcdPlQ=       from the leaf's sibling up; then an empty line
                                                        and the checkpoint, as it was signed

A signature of an unknown key is passed over; a wrong one of a known key spoils the note. A checkpoint must print
exactly as it was written.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cryptography import exceptions
from cryptography.hazmat.primitives.asymmetric import ed25519

from registry.errors import Invalid
from registry.tlog import HASH_BYTES, leaf_hash, verify_inclusion

ED25519 = b"\x01"
NOTE_LIMIT_BYTES = 16 * 2**10
_NAME = re.compile(r"[!-*,-~]{1,200}\Z")  # no space and no plus sign (C2SP signed-note)
PROOF_HEADER = "c2sp.org/tlog-proof@v1"
HASHES_LIMIT = 64
_DASH = "— "


@dataclass(frozen=True, slots=True)
class Verifier:
    """A public key with its name. `text` is what people copy: `name+hash+key`."""

    name: str
    public: bytes

    @classmethod
    def parse(cls, text: str) -> Verifier:
        """`Invalid` (SETTING_INVALID) for text that is not a verifier's."""
        name, _, rest = text.strip().partition("+")
        hint, _, encoded = rest.partition("+")
        key = _decoded(encoded)
        if key is None or key[:1] != ED25519 or len(key) != 33 or not _NAME.match(name):
            raise Invalid("SETTING_INVALID", f"{text[:80]!r} is not a verifier key, name+hash+base64")
        verifier = cls(name, key[1:])
        if hint != verifier.hint.hex():
            raise Invalid("SETTING_INVALID", f"verifier key {name!r} has hash {verifier.hint.hex()}, not {hint[:20]!r}")
        return verifier

    @property
    def hint(self) -> bytes:
        """The four bytes that name the key in a signature."""
        return hashlib.sha256(self.name.encode() + b"\n" + ED25519 + self.public).digest()[:4]

    @property
    def text(self) -> str:
        """The key as C2SP signed-note writes a verifier key."""
        return f"{self.name}+{self.hint.hex()}+{base64.b64encode(ED25519 + self.public).decode()}"

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Whether the signature is valid."""
        try:
            ed25519.Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except (exceptions.InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True, slots=True)
class Signer:
    """A private key with its name: one line of the key file."""

    name: str
    seed: bytes = field(repr=False)

    @classmethod
    def make(cls, name: str) -> Signer:
        """A signer with a new key."""
        return cls(name, ed25519.Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def parse(cls, text: str) -> Signer:
        """`Invalid` (SETTING_INVALID), without the text, for what is no signer's line."""
        parts = text.strip().split("+", 4)
        key = _decoded(parts[4]) if len(parts) == 5 and parts[:2] == ["PRIVATE", "KEY"] else None
        if key is None or key[:1] != ED25519 or len(key) != 33 or not _NAME.match(parts[2]):
            raise Invalid("SETTING_INVALID", "the audit key is not a line PRIVATE+KEY+name+hash+base64")
        signer = cls(parts[2], key[1:])
        if parts[3] != signer.verifier.hint.hex():
            raise Invalid("SETTING_INVALID", "the audit key's hash is not that of its key")
        return signer

    @property
    def text(self) -> str:
        """The private key as C2SP signed-note writes it."""
        key = base64.b64encode(ED25519 + self.seed).decode()
        return f"PRIVATE+KEY+{self.name}+{self.verifier.hint.hex()}+{key}"

    @property
    def verifier(self) -> Verifier:
        """The public half."""
        private = ed25519.Ed25519PrivateKey.from_private_bytes(self.seed)
        return Verifier(self.name, private.public_key().public_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        """Return the Ed25519 signature of a message."""
        return ed25519.Ed25519PrivateKey.from_private_bytes(self.seed).sign(message)


# ------------------------------------------------------------------ notes
def sign_note(text: str, *signers: Signer) -> str:
    """The note: `text`, which ends in a newline, and one line for each signature."""
    lines = [f"{_DASH}{s.name} {base64.b64encode(s.verifier.hint + s.sign(text.encode())).decode()}\n" for s in signers]
    return text + "\n" + "".join(lines)


def open_note(note: str, *verifiers: Verifier) -> str | None:
    """The text of a note that at least one of these keys has signed, and none of them wrongly; else None."""
    text, separator, signatures = note.rpartition("\n\n")
    if not separator or not signatures.endswith("\n") or len(note.encode()) > NOTE_LIMIT_BYTES:
        return None
    text += "\n"
    by_key = {(v.name, v.hint): v for v in verifiers}
    good = 0
    for line in signatures.removesuffix("\n").split("\n"):
        name, _, encoded = line.removeprefix(_DASH).partition(" ")
        signature = _decoded(encoded)
        if not line.startswith(_DASH) or not _NAME.match(name) or signature is None or len(signature) < 5:
            return None
        verifier = by_key.get((name, signature[:4]))
        if verifier is None:
            continue
        if not verifier.verifies(text.encode(), signature[4:]):
            return None
        good += 1
    return text if good else None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The size and the root of a log. An origin names the log."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """The text of C2SP tlog-checkpoint: origin, size, root."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    @classmethod
    def of_text(cls, text: str) -> Checkpoint | None:
        """The checkpoint in a note's text; None for any other text."""
        lines = text.split("\n")
        if len(lines) != 4 or not (lines[1].isascii() and lines[1].isdigit() and len(lines[1]) < 16):
            return None
        root = _decoded(lines[2])
        if root is None or len(root) != HASH_BYTES:
            return None
        checkpoint = cls(lines[0], int(lines[1]), root)
        return checkpoint if checkpoint.text == text else None

    @classmethod
    def of_note(cls, note: str, *verifiers: Verifier) -> Checkpoint | None:
        """The checkpoint of a note that one of these keys has signed for its own log; else None."""
        text = open_note(note, *verifiers)
        checkpoint = cls.of_text(text) if text is not None else None
        return checkpoint if checkpoint is not None and checkpoint.origin in {v.name for v in verifiers} else None


def _decoded(text: str) -> bytes | None:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if base64.b64encode(data).decode() == text else None


# ------------------------------------------------------------------ proofs
def proof_text(index: int, hashes: Sequence[bytes], note: str) -> str:
    """The text of a proof: `index` counts from 0, `note` is the signed checkpoint."""
    lines = [PROOF_HEADER, f"index {index}", *(base64.b64encode(digest).decode() for digest in hashes)]
    return "\n".join(lines) + "\n\n" + note


def proof_index(proof: str) -> int:
    """The index that a proof speaks of; -1 for what is no proof."""
    lines = proof.partition("\n\n")[0].split("\n")
    lines = lines[:1] + [line for line in lines[1:] if not line.startswith("extra ")]
    number = lines[1].removeprefix("index ") if len(lines) > 1 and lines[1].startswith("index ") else ""
    return int(number) if number.isascii() and number.isdigit() and str(int(number[:15])) == number else -1


def verify_proof(proof: str, entry: bytes, *verifiers: Verifier) -> Checkpoint | None:
    """The checkpoint that holds this entry, if the proof shows so and one of these keys signed it; else None."""
    head, _, note = proof.partition("\n\n")
    lines = head.split("\n")
    index = proof_index(proof)
    checkpoint = Checkpoint.of_note(note, *verifiers)
    if lines[0] != PROOF_HEADER or index < 0 or checkpoint is None:
        return None
    encoded = [line for line in lines[1:] if not line.startswith(("extra ", "index "))]
    if len(encoded) > HASHES_LIMIT:
        return None
    hashes = [decoded for line in encoded if (decoded := _decoded(line)) is not None]
    if len(hashes) < len(encoded):
        return None
    good = verify_inclusion(leaf_hash(entry), index, checkpoint.size, hashes, checkpoint.root)
    return checkpoint if good else None


# ------------------------------------------------------------------ succession of keys
# A signed note in which one key of a log names the key that follows it:
#
#   lora-registry log key succession v1
#   registry.example.org/3f9c                             the origin of the log
#   registry.example.org/3f9c+1a2b3c4d+AYEK…              the new key
#
#   — registry.example.org/3f9c Az3grl…                   signed by the old key and by the new one
TITLE = "lora-registry log key succession v1"
NOTES_LIMIT = 100
"""Keys that one log can have had, and notes that a client reads."""


def endorse(old: Signer, new: Signer) -> str:
    """Return the note in which `old` names `new` as its successor. Both sign it, so that both keys were at hand."""
    return sign_note(f"{TITLE}\n{new.name}\n{new.verifier.text}\n", old, new)


def successor(note: str, *trusted: Verifier) -> Verifier | None:
    """The key that a note names, if one of the trusted keys of the same log and the new key have signed it."""
    text = open_note(note, *trusted)
    lines = text.split("\n") if text is not None else []
    if len(lines) != 4 or lines[0] != TITLE or lines[3]:
        return None
    try:
        new = Verifier.parse(lines[2])
    except Invalid:
        return None
    same_log = new.name == lines[1] and new.name in {key.name for key in trusted}
    return new if same_log and open_note(note, new) is not None else None


def follow(trusted: Sequence[Verifier], notes: Iterable[str]) -> tuple[Verifier, ...]:
    """The trusted keys and all that the newest of them leads to; newest first, in the argument as well.

    A key that has a successor names no other: the thief of a retired key cannot continue the log with it. Of a key
    that names two successors none is followed.
    """
    remaining = list(notes)[:NOTES_LIMIT]
    keys = list(trusted)
    while keys:
        next_keys = {key for note in remaining if (key := successor(note, keys[0])) is not None} - set(keys)
        if len(next_keys) != 1:
            break
        keys.insert(0, next_keys.pop())
    return tuple(keys)
