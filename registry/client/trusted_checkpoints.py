"""`TrustedCheckpoints`: the newest checkpoint that this machine has seen of each registry; later ones must extend it.

- The first checkpoint of a registry is trusted, with its keys; from then on only those keys count, and keys that they
  name as their successors. Once a key has signed, the log grows only by it and its successors, not by an older key.
- Any other must be consistent with it, else `Corrupt` (LOG_INCONSISTENT) before the response that brought it is used.
- A file is replaced as a whole, and never by a shorter log.
"""

import base64
import binascii
import hashlib
import json
import threading
from dataclasses import dataclass
from pathlib import Path

from registry.api.audit import LogKeys
from registry.client.core import Versions
from registry.errors import Corrupt, Invalid, NotFound
from registry.filesystem import replace_file
from registry.tlog import notes, verify_consistency
from registry.tlog.notes import Checkpoint, Verifier


@dataclass(frozen=True, slots=True)
class TrustedCheckpoint:
    """The verifier keys of one registry's log, newest first, and the note of its longest checkpoint."""

    keys: tuple[str, ...]
    note: str

    @property
    def verifiers(self) -> tuple[Verifier, ...]:
        """The keys as they verify notes, newest first."""
        return tuple(Verifier.parse(text) for text in self.keys)

    def newest_signer(self, note: str) -> int:
        """The position in `keys` of the newest key that signed a note."""
        return next((i for i, key in enumerate(self.verifiers) if Checkpoint.of_note(note, key)), len(self.keys))


class TrustedCheckpoints:
    """`by_origin`: a file is named by the log's own origin, because the URL does not identify the registry."""

    def __init__(self, folder: Path, *, by_origin: bool = False) -> None:
        self._folder, self._by_origin = folder, by_origin
        self._lock = threading.Lock()
        self._seen: set[str] = set()

    def watch(self, registry: Versions) -> None:
        """Check every checkpoint that a response of this registry carries."""

        def look(encoded: str) -> None:
            if not encoded:
                self._demand(registry)
                return
            try:
                note = base64.b64decode(encoded, validate=True).decode()
            except (binascii.Error, UnicodeDecodeError) as e:
                raise _wrong(registry.url, "it sends a checkpoint that cannot be read") from e
            with self._lock:
                if note not in self._seen:
                    self.check(registry, note)
                    self._seen.add(note)

        registry.connection.on_checkpoint = look

    def _demand(self, registry: Versions) -> None:
        """Request the checkpoint that a response should have carried and did not: the server may hide its log.

        Once per process, and only if something is remembered and nothing was seen yet.
        """
        with self._lock:
            if self._seen or not self.remembers(registry):
                return
            try:
                note = registry.checkpoint()
            except NotFound as e:
                raise _wrong(registry.url, "it shows no checkpoint") from e
            self.check(registry, note)
            self._seen.add(note)

    def remembers(self, registry: Versions) -> bool:
        """Whether the registry at this URL has shown its log to this machine."""
        return not self._by_origin and _read(self._path(registry, "")) is not None

    def check(self, registry: Versions, note: str) -> Checkpoint:
        """The checkpoint of this note, if it is consistent with the remembered one. A longer one is remembered."""
        path = self._path(registry, note)
        trusted = _read(path) or TrustedCheckpoint(tuple(registry.log_keys().keys), note)
        checkpoint = Checkpoint.of_note(note, *trusted.verifiers)
        before = Checkpoint.of_note(trusted.note, *trusted.verifiers)
        keys = registry.log_keys() if checkpoint is None and before is not None else None
        if keys is not None and before is not None:
            successors = notes.follow(trusted.verifiers, keys.successions)
            trusted = TrustedCheckpoint(tuple(key.text for key in successors), trusted.note)
            checkpoint = Checkpoint.of_note(note, *trusted.verifiers)
            if checkpoint is None:
                raise self._explain_unknown_key(registry, note, before, keys)
        if checkpoint is None or before is None:
            raise _wrong(registry.url, "its checkpoint is not signed by the key that this machine remembers")
        if checkpoint.origin != before.origin:
            raise _wrong(registry.url, f"it is the log {checkpoint.origin!r}, and was {before.origin!r}")
        if not _is_consistent(registry, before, checkpoint):
            message = (
                f"a log of {checkpoint.size} entries does not agree with the one of {before.size} that was seen before"
            )
            if checkpoint.size < before.size:
                message += "; it lost entries if the registry was restored from an older backup"
            raise _wrong(registry.url, message)
        if checkpoint.size > before.size and trusted.newest_signer(note) > trusted.newest_signer(trusted.note):
            raise _wrong(registry.url, f"entries after {before.size} are signed by a key that was rotated before")
        if checkpoint.size >= before.size:
            _write(path, TrustedCheckpoint(trusted.keys, note))
        return checkpoint

    def _explain_unknown_key(self, registry: Versions, note: str, before: Checkpoint, keys: LogKeys) -> Corrupt:
        """The error for a key that no remembered one leads to. It says if the key was replaced and the log goes on."""
        for replacement in reversed(keys.replacements):
            try:
                checkpoint = Checkpoint.of_note(note, Verifier.parse(replacement.key))
            except Invalid:
                continue  # no key: nothing that this registry says about it explains the note
            if checkpoint is None or checkpoint.origin != before.origin:
                continue
            if checkpoint.size >= before.size and _is_consistent(registry, before, checkpoint):
                return Corrupt(
                    "LOG_KEY_REPLACED",
                    f"the operator of {registry.url} says that the key of its audit log was lost and replaced on "
                    f"{replacement.at:%Y-%m-%d}: “{replacement.reason}”; the log continues the one that this machine "
                    f"remembers ({before.size} of {checkpoint.size} events)",
                    next_step="compare `adapter audit key` with the key that the operator published, then run "
                    "`adapter audit key --trust`",
                )
        return _wrong(registry.url, "its checkpoint is not signed by the key that this machine remembers")

    def find(self, registry: Versions, note: str) -> TrustedCheckpoint:
        """The remembered checkpoint of this registry; one without keys if there is none."""
        return _read(self._path(registry, note)) or TrustedCheckpoint((), "")

    def trust(
        self, registry: Versions, keys: tuple[str, ...], note: str, former: tuple[str, ...] = ()
    ) -> TrustedCheckpoint:
        """Remember these keys and this checkpoint, and return both: a person's decision after a key change.

        If the log continues the remembered one, keys of before stay as older ones: they signed statements about
        versions. So do `former` ones, which a person names. `Invalid` for what is no key.
        """
        path = self._path(registry, note)
        remembered, trusted = _read(path), TrustedCheckpoint((*keys, *former), note)
        if remembered is not None and self._continues(registry, remembered, trusted):
            trusted = TrustedCheckpoint((*trusted.keys, *remembered.keys), note)
        trusted = TrustedCheckpoint(tuple(dict.fromkeys(trusted.keys)), note)
        _write(path, trusted, shorter_too=True)
        return trusted

    def _continues(self, registry: Versions, old: TrustedCheckpoint, new: TrustedCheckpoint) -> bool:
        before, after = (Checkpoint.of_note(each.note, *each.verifiers) for each in (old, new))
        if before is None or after is None or before.origin != after.origin or before.size > after.size:
            return False
        return _is_consistent(registry, before, after)

    def _path(self, registry: Versions, note: str) -> Path:
        name = note.partition("\n")[0] if self._by_origin else registry.url
        return self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.json"


def _is_consistent(registry: Versions, old: Checkpoint, new: Checkpoint) -> bool:
    """Whether the server proves that the shorter of the two is a prefix of the other."""
    first, second = sorted((old, new), key=lambda checkpoint: checkpoint.size)
    hashes: list[bytes] = []
    if 0 < first.size < second.size:
        try:
            hashes = [bytes.fromhex(text) for text in registry.consistency(first.size, second.size).hashes]
        except (ValueError, Invalid):
            return False
    return verify_consistency(first.size, first.root, second.size, second.root, hashes)


def _read(path: Path) -> TrustedCheckpoint | None:
    try:
        document = json.loads(path.read_bytes())
        return TrustedCheckpoint(tuple(str(key) for key in document["keys"]), str(document["note"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as e:
        raise Invalid(
            "SETTING_INVALID", f"{path} is not a remembered checkpoint", next_step="find out why, then delete it"
        ) from e


def _write(path: Path, trusted: TrustedCheckpoint, *, shorter_too: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    now = _read(path)
    if now is not None and now.keys == trusted.keys and not shorter_too:
        remembered, new = (Checkpoint.of_note(c.note, *c.verifiers) for c in (now, trusted))
        if remembered is not None and new is not None and remembered.size > new.size:
            return
    text = json.dumps({"keys": list(trusted.keys), "note": trusted.note}, indent=2)
    replace_file(path, text.encode(), mode=0o600)


def _wrong(url: str, message: str) -> Corrupt:
    return Corrupt(
        "LOG_INCONSISTENT",
        f"the audit log of {url} is not the one that this machine remembers: {message}",
        next_step="history was rewritten, truncated or forked: do not trust it until its operator explains it, "
        "then run `adapter audit key --trust`",
    )
