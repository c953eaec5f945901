"""`S3Blobs`: blobs in an S3 bucket, behind the same protocol as a local folder.

    PREFIX/blobs/sha256/ab/<hex>   written by this server only     PREFIX/staging/<push id>/<hex>   written by clients

Invariants
- A client never holds a link that makes anything visible under `blobs/`, nor one that can change what is staged
  already: a PUT link is bound to the body's SHA-256 (`bound`, or staged), or to a key that does not exist yet, or it
  is not given and the bytes come through this server.
- The store's word for a digest is taken where the probe saw it refuse a wrong one; else the bytes are hashed here.
- Only calls and small reads go through boto3; memory stays constant whatever the size.
- A promotion makes the same calls whether or not the final key exists: the copy goes to a twin then (`twin_of`).
- What bytes a key has does not change: under `blobs/` they hash to the key's digest.
- What this process has seen of a staging key is not asked again (`staged`); the next call confirms it.
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

from registry.digest import Digest
from registry.errors import Unavailable
from registry.server.storage.blobs import Link, PartLink, Sink, Stat, absent, check_expectation, digest_of, fill, key_of
from registry.server.storage.s3 import capabilities as probe
from registry.server.storage.s3 import direct_upload, links, uploads
from registry.server.storage.s3.bucket import Bucket
from registry.server.storage.s3.capabilities import Abilities
from registry.server.storage.s3.direct_upload import BoundUploads, Note
from registry.server.storage.s3.sink import ObjectSink
from registry.server.storage.s3.staging_cache import Staged, twin_of

PROBE_PAUSE_SECONDS = 5.0
WHOLE_BYTES = 2**40
"""More than any blob has."""
COPY_LIMIT_BYTES = 2**30
"""One CopyObject; S3 itself stops at 5 GiB. Larger ones are copied in ranges of this size."""


class S3Blobs:
    """Blobs in one bucket. Nothing is asked of the store before the first use; then it is probed once."""

    kind = "s3"

    def __init__(
        self, bucket: Bucket, *, parts_from_bytes: int = uploads.AS_FITS, part_bytes: int = uploads.PART_BYTES
    ) -> None:
        self.bucket = bucket
        self._part_bytes = part_bytes
        self._parts_from_bytes = parts_from_bytes
        self._probing = threading.Lock()
        self._abilities: Abilities | None = None
        self._failure: Unavailable | None = None
        self._ask_again_at = 0.0
        self._bound = BoundUploads(bucket)
        self._bound_from_bytes = direct_upload.FROM_BYTES
        self._staged = Staged()

    @classmethod
    def at(
        cls, url: str, *, endpoint: str = "", public_endpoint: str = "", parts_from_bytes: int = uploads.AS_FITS
    ) -> S3Blobs:
        bucket = Bucket.at(url, endpoint=endpoint, public_endpoint=public_endpoint)
        return cls(bucket, parts_from_bytes=parts_from_bytes)

    @property
    def abilities(self) -> Abilities:
        """What the store can do. `Unavailable` while it cannot be asked; one asks again every few seconds."""
        if self._abilities is None:
            if self._failure is not None and (self._probing.locked() or time.monotonic() < self._ask_again_at):
                raise self._failure  # nobody waits with the one who asks again
            with self._probing:
                if self._abilities is None:
                    self._abilities = self._probe()
        return self._abilities

    def _probe(self) -> Abilities:
        try:
            return probe.of(self.bucket)
        except Unavailable as e:
            self._failure, self._ask_again_at = e, time.monotonic() + PROBE_PAUSE_SECONDS
            raise

    @property
    def capabilities(self) -> dict[str, Any]:
        """The abilities by name, for /health and `adapter doctor`."""
        return asdict(self.abilities)

    # ---------------------------------------------------------------- look and read
    def stat(self, key: str) -> Stat | None:
        digest = digest_of(key)
        seen = self._staged.written(key) or self._landing(key)
        if seen is not None:
            return seen
        found = self.bucket.head(key)
        if found is None:
            return None
        note = Note.at(key, found)
        if note is not None:
            return None if note == self._staged.note(key) else self._land(key, note)
        vouched = digest if key.startswith("blobs/") else self._vouched(found)
        return Stat(key, int(found["ContentLength"]), vouched, found["LastModified"].astimezone(UTC))

    def _landing(self, key: str) -> Stat | None:
        """The blob of an upload that was begun here, if its part has come. None proves nothing: see the note itself."""
        note = self._staged.note(key)
        return self._land(key, note) if note else None

    def _land(self, key: str, note: Note) -> Stat | None:
        stat = self._bound.land(key, note)
        if stat is not None:
            self._staged.land(key)
        return stat

    def _place(self, key: str) -> str:
        """Where the bytes of a key are: of a bound upload they are under the final key from the start."""
        if self._staged.landed(key):
            return key_of(digest_of(key))
        if not key.startswith("staging/") or self._staged.written(key) or not self.abilities.bound_parts:
            return key
        found = self.bucket.head(key)
        note = Note.at(key, found) if found else None
        if note is None:
            return key
        return key_of(digest_of(key)) if self._land(key, note) else absent(key)

    def _vouched(self, found: dict[str, Any]) -> Digest | None:
        """The whole object's SHA-256 where the store checked it. A sum of sums (`…-3`) is not one."""
        told = str(found.get("ChecksumSHA256", ""))
        if not told or "-" in told or found.get("ChecksumType", "FULL_OBJECT") != "FULL_OBJECT":
            return None
        return Digest("sha256:" + base64.b64decode(told).hex()) if self.abilities.sums else None

    def read(self, key: str, start: int, length: int) -> bytes:
        return b"".join(self.open(key, start, length))

    def open(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes in chunks; that the key is there is seen before the first one is asked for."""
        digest_of(key)
        found = self.bucket.stream(self._place(key), start, WHOLE_BYTES if length is None else length)
        return self._absent(key) if found is None else found

    def _absent(self, key: str) -> NoReturn:
        self._staged.forget(key)
        absent(key)

    def list(self, prefix: str) -> Iterator[Stat]:
        ours = len(self.bucket.prefix)
        for page in self.bucket.pages("list_objects_v2", Prefix=self.bucket.prefix + prefix):
            for item in page.get("Contents", ()):
                key = str(item["Key"])[ours:]
                try:
                    digest = digest_of(key)
                except ValueError:  # somebody else's object under our prefix
                    continue
                vouched = digest if key.startswith("blobs/") else None
                yield Stat(key, int(item["Size"]), vouched, item["LastModified"].astimezone(UTC))

    # ---------------------------------------------------------------- write
    def sink(self, key: str, *, limit_bytes: int) -> Sink:
        return ObjectSink(self.bucket, key, sums=self.abilities.sums, limit_bytes=limit_bytes)

    def put(self, key: str, chunks: Iterable[bytes], *, expect: Digest | None = None, limit_bytes: int) -> Stat:
        check_expectation(key, expect)
        stat = fill(self.sink(key, limit_bytes=limit_bytes), chunks)
        if self.abilities.sum_links:  # else a client's link might have put other bytes there, had ours been deleted
            self._staged.wrote(stat)
        return stat

    def promote(self, staging_key: str, digest: Digest, *, replace: bool = False) -> None:
        """Copy what is staged, which no client can change any more, to the final key, or to a twin if that is there.

        The copy to nowhere is work for its own sake: else a push of what another tenant has would end sooner.
        """
        digest_of(staging_key)
        final = key_of(digest)
        if self._place(staging_key) == final:
            return
        there = not replace and self.bucket.head(final) is not None
        size_bytes = self._size_of(staging_key)
        if size_bytes is None:
            if there:
                return
            self._absent(staging_key)
        if there:
            self._staged.twin(staging_key)
        target = twin_of(staging_key) if there else final
        if not self._copy(staging_key, target, size_bytes, replace) and not there:
            self._absent(staging_key)

    def _size_of(self, staging_key: str) -> int | None:
        written = self._staged.written(staging_key)
        found = None if written else self.bucket.head(staging_key)
        return written.size_bytes if written else int(found["ContentLength"]) if found else None

    def _copy(self, staging_key: str, key: str, size_bytes: int, replace: bool) -> bool:
        """False when nothing is staged (any more)."""
        if not self.abilities.copies:
            self.put(key, self.open(staging_key), limit_bytes=size_bytes)
        elif size_bytes > COPY_LIMIT_BYTES and self.abilities.parts:
            uploads.copy(self.bucket, staging_key, key, size_bytes, COPY_LIMIT_BYTES)
        else:
            only_new = {"IfNoneMatch": "*"} if self.abilities.conditional_copy and not replace else {}
            source = {"Bucket": self.bucket.name, "Key": self.bucket.prefix + staging_key}
            return self.bucket.copied(Key=self.bucket.prefix + key, CopySource=source, **only_new)
        return True

    def delete(self, key: str) -> None:
        digest_of(key)
        if key.startswith("staging/") and not (self._staged.landed(key) or self._staged.written(key)):
            self._end_upload(key)
        twin = self._staged.has_twin(key)
        self._staged.forget(key)
        self.bucket.delete(key)
        if twin:
            self.bucket.delete(twin_of(key))

    def _end_upload(self, key: str) -> None:
        """Abort the bound upload that is noted under this key and still open, if there is one."""
        found = self.bucket.head(key) if self.abilities.bound_parts else None
        note = Note.at(key, found) if found else None
        if note is not None and not note.arrived:
            self._bound.abort(key, note)

    def sweep(self, older_than: timedelta, prefix: str = "") -> int:
        """Abort multipart uploads under `prefix` that nobody ended. Returns how many."""
        return uploads.sweep(self.bucket, datetime.now(UTC) - older_than, prefix)

    # ---------------------------------------------------------------- direct transfer
    def link(
        self,
        key: str,
        *,
        seconds: int,
        method: str,
        digest: Digest | None = None,
        size_bytes: int | None = None,
        file_name: str = "",
    ) -> Link | None:
        digest_of(key)
        if not self.abilities.links:
            return None
        if method == "PUT":
            if digest is not None and self._takes_bound(key, size_bytes or 0):
                return self._begin(key, size_bytes or 0, seconds)
            return links.to_put(self.bucket, self.abilities, key, seconds, digest, size_bytes)
        return links.to_read(self.bucket, key, seconds, method, file_name)

    def _begin(self, key: str, size_bytes: int, seconds: int) -> Link:
        begun = self._bound.begin(
            key, size_bytes, seconds=seconds, known=self._staged.note(key), only_new=self.abilities.conditional
        )
        self._staged.begun(key, begun.note)
        return begun.link

    def _takes_bound(self, key: str, size_bytes: int) -> bool:
        fits = self._bound_from_bytes <= size_bytes <= direct_upload.LIMIT_BYTES
        return fits and key.startswith("staging/") and self.abilities.bound_parts

    def parts(self, key: str, size_bytes: int, *, seconds: int) -> tuple[PartLink, ...] | None:
        """Links for the parts that are still to be sent, or None for a blob that is sent whole."""
        digest_of(key)
        if not self._goes_in_parts(size_bytes):
            return None
        return uploads.links(self.bucket, key, size_bytes, self._part_bytes, seconds)

    def assemble(self, key: str, size_bytes: int) -> None:
        """Make one object of the parts sent, if all are there. What they hash to is for the caller to see."""
        digest_of(key)
        if self._goes_in_parts(size_bytes):
            uploads.complete(self.bucket, key, size_bytes, self._part_bytes)

    def _goes_in_parts(self, size_bytes: int) -> bool:
        fits = uploads.FROM_BYTES_WHERE_BOUND if self.abilities.bound_parts else uploads.FROM_BYTES
        return size_bytes >= (self._parts_from_bytes or fits) and self.abilities.parts

    def path_of(self, key: str) -> Path | None:
        digest_of(key)
        return None
