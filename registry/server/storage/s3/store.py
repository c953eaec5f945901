"""`S3Blobs`: blobs in an S3 bucket, with the same interface as a local folder.

    PREFIX/blobs/sha256/ab/<hex>   written by this server only     PREFIX/staging/<push id>/<hex>   written by clients

- What passes through this server is hashed here and written once, under its final key (`upload_key_of`). Blobs below
  `direct_upload.FROM_BYTES` always do: that costs less than the calls of a staged blob.
- Nothing that a client can write is read as this server's own note: metadata under `staging/<push id>/<hex>` counts
  for nothing. Bytes there that the store has not hashed are copied to a key that no client can write, where they are
  hashed and promoted (`snapshot`). An ETag does not identify them: in most stores it is an MD5.
- No client has a link that makes anything visible under `blobs/`, or that changes what is already staged: a PUT is
  bound to the SHA-256 of its body, to a key that does not exist yet, or to both; else the bytes pass through this
  server.
- Clients of the Hub send no headers, so their links bind the size only. Those bytes arrive under a key of their own
  (`any_key_of`) and are always copied and hashed, whatever the store says of them.
- A link to a whole blob would write again once its key is deleted. So when a push ends, an empty object stays under
  each of its keys until its links have expired, where links can be bound to a key that does not exist.
- The store's checksum counts if the probe saw it reject a wrong one; else the bytes are hashed here.
- Only calls and small bodies pass through this process; memory stays constant whatever the size.
- A promotion makes the same calls whether or not the final key exists; if it does, the copy goes to a dummy key. Else a
  push of a blob that another tenant has would end sooner.
"""

import base64
import copy
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, NoReturn, Self

from registry.digest import Digest
from registry.errors import Unavailable
from registry.server.storage import blobs
from registry.server.storage.s3 import direct_upload, uploads
from registry.server.storage.s3.bucket import CHECKSUM_HEADER, Bucket, ObjectMissing, checksum_of
from registry.server.storage.s3.capabilities import Capabilities, probe
from registry.server.storage.s3.direct_upload import DirectUploads, UploadMarker, marker_key_of, staging_key_of_marker

PROBE_PAUSE_SECONDS = 5.0
COPY_LIMIT_BYTES = 2**30
"""Bytes of one CopyObject (S3's limit is 5 GiB). Larger blobs are copied in ranges of this size."""
UPLOAD_LIMIT_BYTES = 5 * 2**30
"""Bytes of one PUT or part."""
CACHE_LIMIT = 10_000
"""Keys at which `StagingCache` forgets everything, which costs calls and nothing else."""


@dataclass(frozen=True, slots=True)
class StagingEntry:
    """What is known about one staging key."""

    marker: UploadMarker | None = None
    """The direct upload that this process began for the key, or found there."""
    completed: bool = False
    """The bytes of the direct upload are under the final key."""
    has_dummy: bool = False
    """A copy of the bytes is under `dummy_key_of`."""


class StagingCache:
    """Maps staging keys to what this process knows about them, so that it does not ask the store again. Thread-safe.

    An entry is never trusted alone: the call that follows confirms it (a part listed, an object copied). If it turns
    out to be wrong, it is forgotten and the store is asked.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, StagingEntry] = {}

    def get(self, key: str) -> StagingEntry:
        """Return the entry of a key: an empty one if nothing is known."""
        return self._entries.get(key, StagingEntry())

    def update(self, key: str, **changes: Any) -> None:
        """Change some fields of a key's entry."""
        with self._lock:
            if len(self._entries) >= CACHE_LIMIT:
                self._entries.clear()
            self._entries[key] = replace(self.get(key), **changes)

    def forget(self, key: str) -> None:
        """Remove a key's entry."""
        self._entries.pop(key, None)


def dummy_key_of(staging_key: str) -> str:
    """Return the key of a copy that no one reads, under no push. It is deleted with the staging key, or by GC."""
    folder, push_id, *_, name = staging_key.split("/")
    return f"{folder}/{push_id[:58]}-dummy/{name}"


class S3Blobs(blobs.BlobStore):
    """Blobs in one bucket. The store is probed once, at the first use that needs to know its capabilities."""

    kind = "s3"

    def __init__(
        self, bucket: Bucket, *, parts_from_bytes: int = uploads.AUTO, part_bytes: int = uploads.PART_BYTES
    ) -> None:
        self.bucket = bucket
        self._part_bytes = part_bytes
        self._parts_from_bytes = parts_from_bytes
        self._probing = threading.Lock()
        self._capabilities: Capabilities | None = None
        self._failure: Unavailable | None = None
        self._probe_again_at = 0.0
        self._direct = DirectUploads(bucket)
        self._direct_from_bytes = direct_upload.FROM_BYTES
        self._cache = StagingCache()

    @classmethod
    def from_url(
        cls, url: str, *, endpoint: str = "", public_endpoint: str = "", parts_from_bytes: int = uploads.AUTO
    ) -> Self:
        """Return the store of `s3://BUCKET/PREFIX`."""
        bucket = Bucket(url, endpoint=endpoint, public_endpoint=public_endpoint)
        return cls(bucket, parts_from_bytes=parts_from_bytes)

    @property
    def capabilities(self) -> Capabilities:
        """What the store supports. `Unavailable` while it cannot be probed; one thread tries every few seconds."""
        if self._capabilities is None:
            if self._failure is not None and (self._probing.locked() or time.monotonic() < self._probe_again_at):
                raise self._failure  # do not wait for the thread that tries
            with self._probing:
                if self._capabilities is None:
                    self._capabilities = self._probe()
        return self._capabilities

    def describe(self) -> dict[str, bool]:
        """Return the capabilities by name."""
        return asdict(self.capabilities)

    def _probe(self) -> Capabilities:
        try:
            return probe(self.bucket)
        except Unavailable as e:
            self._failure, self._probe_again_at = e, time.monotonic() + PROBE_PAUSE_SECONDS
            raise

    # ---------------------------------------------------------------- read
    @cached_property
    def quick(self) -> Self:
        """Return this store with `Bucket.quick`. It shares what is known of staged blobs."""
        quick = copy.copy(self)
        quick.bucket = self.bucket.quick
        return quick

    def stat(self, key: str) -> blobs.Stat | None:
        """Look an object up; completes a direct upload whose part has arrived."""
        digest = blobs.digest_of(key)
        cached = self._cache.get(key)
        stat = self._finish_direct(key, cached.marker) if cached.marker else None
        if stat is not None:
            return stat
        head = self.bucket.head(key)
        if head is None:
            marker = self._read_marker(key)
            return self._finish_direct(key, marker) if marker and marker != cached.marker else None
        verified = digest if key.startswith("blobs/") else self._verified_digest(key, head)
        return blobs.Stat(key, int(head["ContentLength"]), verified, head["LastModified"].astimezone(UTC))

    def _read_marker(self, key: str) -> UploadMarker | None:
        """Read the marker of a direct upload, where this store can have one."""
        has_marker = _is_staging_key(key) and self.capabilities.checksum_parts
        return self._direct.read_marker(key) if has_marker else None

    def _finish_direct(self, key: str, marker: UploadMarker) -> blobs.Stat | None:
        stat = self._direct.finish(key, marker)
        if stat is not None:
            self._cache.update(key, marker=None, completed=True)
        return stat

    def _find_bytes(self, key: str) -> str:
        """Return the key where the bytes are: those of a direct upload are under the final key from the start."""
        cached = self._cache.get(key)
        if cached.completed:
            return blobs.key_of(blobs.digest_of(key))
        if not _is_staging_key(key) or not self.capabilities.checksum_parts or self.bucket.head(key):
            return key
        marker = self._read_marker(key)
        if marker is None:
            return key
        return blobs.key_of(blobs.digest_of(key)) if self._finish_direct(key, marker) else blobs.raise_unknown(key)

    def _verified_digest(self, key: str, head: dict[str, Any]) -> Digest | None:
        """Return the whole object's SHA-256 if the store verified it. A checksum of checksums (`…-3`) is not one."""
        if blobs.is_any_key(key):  # a link may replace what this checksum is of
            return None
        checksum = str(head.get("ChecksumSHA256", ""))
        if not checksum or "-" in checksum or head.get("ChecksumType", "FULL_OBJECT") != "FULL_OBJECT":
            return None
        return Digest("sha256:" + base64.b64decode(checksum).hex()) if self.capabilities.checksums else None

    def open(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield a range in chunks, by ranged reads."""
        blobs.digest_of(key)
        chunks = self.bucket.stream(self._find_bytes(key), start, blobs.WHOLE_BYTES if length is None else length)
        return self._raise_unknown(key) if chunks is None else chunks

    def _raise_unknown(self, key: str) -> NoReturn:
        self._cache.forget(key)
        blobs.raise_unknown(key)

    def list(self, prefix: str) -> Iterator[blobs.Stat]:
        """Yield the keys under a prefix, without the objects of other programs."""
        for page in self.bucket.list_pages("list_objects_v2", Prefix=prefix):
            for item in page.get("Contents", ()):
                key = self.bucket.strip_prefix(str(item["Key"]))
                try:
                    digest = blobs.digest_of(key)
                except ValueError:  # an object of another program under our prefix
                    continue
                verified = digest if key.startswith("blobs/") else None
                yield blobs.Stat(key, int(item["Size"]), verified, item["LastModified"].astimezone(UTC))

    # ---------------------------------------------------------------- write
    def open_writer(self, key: str, *, limit_bytes: int, is_hashed: bool = False) -> blobs.BlobWriter:
        """Begin to write an object that passes through this server."""
        verifier = blobs.DigestVerifier(key, limit_bytes, is_hashed=is_hashed)
        return uploads.ObjectWriter(self.bucket, key, verifier, self.capabilities)

    def upload_key_of(self, staging_key: str) -> str:
        """Return the final key: a copy costs more than the bytes. Writing replaces equal or damaged bytes."""
        return blobs.key_of(blobs.digest_of(staging_key))

    def is_staged(self, size_bytes: int) -> bool:
        """Whether clients may get links to the store for a blob of this size."""
        return size_bytes >= self._direct_from_bytes or self._has_parts(size_bytes)

    def snapshot(self, stat: blobs.Stat) -> blobs.Stat:
        """Copy a staged object to a key of its own. Without copies, `promote` hashes the bytes on their way."""
        if not (_is_staging_key(stat.key) or blobs.is_any_key(stat.key)) or not self.capabilities.copies:
            return stat
        folder, push_id, *_, name = stat.key.split("/")
        key = f"{folder}/{push_id}/copy-{secrets.token_hex(8)}/{name}"
        if not self._copy(stat.key, key, stat.size_bytes):
            self._raise_unknown(stat.key)
        return replace(stat, key=key)

    def copy(self, key: str, target: str, size_bytes: int) -> None:
        """Copy an object within the store, which makes the same call whether or not the other key exists."""
        blobs.require_digest(target, blobs.digest_of(key))
        if not self._copy(key, target, size_bytes):
            self._raise_unknown(key)

    def promote(self, staging_key: str, digest: Digest, *, replace: bool = False) -> None:
        """Copy the staged object to its final key. A direct upload is there already."""
        blobs.digest_of(staging_key)
        final = blobs.key_of(digest)
        if self._find_bytes(staging_key) == final:
            return
        exists = not replace and self.bucket.head(final) is not None
        head = self.bucket.head(staging_key)
        if head is None:
            if exists:
                return
            self._raise_unknown(staging_key)
        size_bytes = int(head["ContentLength"])
        if exists:
            folder, push_id, *_, name = staging_key.split("/")
            self._cache.update(f"{folder}/{push_id}/{name}", has_dummy=True)
        target = dummy_key_of(staging_key) if exists else final
        copied = self._copy(staging_key, target, size_bytes, only_new=not replace)
        if not copied and not exists and (replace or self.bucket.head(final) is None):
            self._raise_unknown(staging_key)

    def _copy(self, staging_key: str, key: str, size_bytes: int, *, only_new: bool = False) -> bool:
        """Copy a staged blob; False if there is none, or if the key exists."""
        if not self.capabilities.copies:
            self.put(key, self.open(staging_key), limit_bytes=size_bytes)  # which hashes the bytes
            return True
        condition = {"IfNoneMatch": "*"} if self.capabilities.conditional_copy and only_new else {}
        try:
            if size_bytes <= COPY_LIMIT_BYTES or not self.capabilities.parts:
                return self.bucket.copy(staging_key, key, **condition)
            uploads.copy_in_ranges(self.bucket, staging_key, key, size_bytes, COPY_LIMIT_BYTES)
        except ObjectMissing:
            return False
        return True

    def delete(self, key: str) -> None:
        """Delete an object. With a staging key, or its marker, a direct upload that is still open is aborted."""
        self._delete_companions(key)
        self.bucket.delete(key)

    def _delete_companions(self, key: str) -> None:
        blobs.digest_of(key)
        staging_key = staging_key_of_marker(key) or key
        cached = self._cache.get(staging_key)
        if not cached.completed and (marker := self._read_marker(staging_key)):
            if not marker.arrived:
                self._direct.abort(staging_key, marker)
            if key == staging_key:
                self.bucket.delete(marker_key_of(key))
        self._cache.forget(staging_key)
        if cached.has_dummy:
            self.bucket.delete(dummy_key_of(staging_key))

    def end_staging(self, key: str) -> None:
        """Delete what an ended push has staged. If a conditional link could write there again, empty it instead."""
        self._delete_companions(key)
        if self.has_conditional_links and _is_staging_key(key):
            self.bucket.put(key, b"")
        else:
            self.bucket.delete(key)

    @property
    def has_conditional_links(self) -> bool:
        """Whether links to a whole blob are bound to a key that does not exist. With parts none of them is given."""
        able = self.capabilities
        return able.signed_headers and able.conditional_links and not able.checksum_parts

    def delete_unfinished(self, older_than: timedelta, prefix: str = "") -> int:
        """Abort the multipart uploads that no one completes."""
        return uploads.abort_uploads(self.bucket, datetime.now(UTC) - older_than, prefix)

    # ---------------------------------------------------------------- presigned links
    def presign_read(
        self, key: str, size_bytes: int, *, seconds: int, owner: str = "", file_name: str = "", method: str = "GET"
    ) -> str | None:
        """Presign a read; a browser saves it under the file's name."""
        blobs.digest_of(key)
        if not self.capabilities.links:
            return None
        if method == "HEAD":
            return self.bucket.presign("head_object", seconds, Key=key)
        return self.bucket.presign(
            "get_object", seconds, Key=key, ResponseContentDisposition=blobs.attachment(file_name)
        )

    def presign_upload(self, key: str, size_bytes: int, *, seconds: int) -> blobs.Link | None:
        """Presign an upload of exactly these bytes, or one that cannot replace anything; None if it can be neither.

        None for a small blob, too.
        """
        digest = blobs.digest_of(key)
        is_possible = self.capabilities.signed_headers and _is_staging_key(key)
        if not is_possible or not self._direct_from_bytes <= size_bytes <= UPLOAD_LIMIT_BYTES:
            return None
        if self.capabilities.checksum_parts:
            return self._presign_direct(key, size_bytes, seconds)
        parameters: dict[str, Any] = {}
        headers: dict[str, str] = {}
        if self.capabilities.checksum_links:
            parameters["ChecksumSHA256"] = headers[CHECKSUM_HEADER] = checksum_of(digest)
        if self.has_conditional_links:
            parameters["IfNoneMatch"] = headers["If-None-Match"] = "*"
        if not headers:
            return None
        url = self.bucket.presign("put_object", seconds, Key=key, ContentLength=size_bytes, **parameters)
        return blobs.Link(url, headers)

    def _presign_direct(self, key: str, size_bytes: int, seconds: int) -> blobs.Link:
        cached, conditional = self._cache.get(key).marker, self.capabilities.conditional
        link, marker = self._direct.begin(key, size_bytes, seconds=seconds, cached=cached, conditional=conditional)
        self._cache.update(key, marker=marker)
        return link

    def presign_any(
        self, push_id: str, digest: Digest, size_bytes: int, *, seconds: int, owner: str
    ) -> blobs.AnyUpload:
        """Presign an upload, whole or in parts, that binds nothing but the size. Needs copies to hash them in peace."""
        able, key = self.capabilities, blobs.any_key_of(push_id, digest)
        if not able.signed_headers or not able.copies:
            return super().presign_any(push_id, digest, size_bytes, seconds=seconds, owner=owner)
        if self._has_parts(size_bytes, key):
            links = uploads.presign_missing_parts(self.bucket, key, size_bytes, self._part_bytes, seconds, every=True)
            return blobs.AnyUpload(key, tuple(link.url for link in links), self._part_bytes)
        if size_bytes > UPLOAD_LIMIT_BYTES:
            return super().presign_any(push_id, digest, size_bytes, seconds=seconds, owner=owner)
        return blobs.AnyUpload(key, (self.bucket.presign("put_object", seconds, Key=key, ContentLength=size_bytes),))

    def presign_parts(self, key: str, size_bytes: int, *, seconds: int) -> tuple[blobs.PartLink, ...] | None:
        """Presign the missing parts of a large blob."""
        blobs.digest_of(key)
        if not self._has_parts(size_bytes, key) or not _is_staging_key(key):
            return None
        return uploads.presign_missing_parts(self.bucket, key, size_bytes, self._part_bytes, seconds)

    def complete_parts(self, key: str, size_bytes: int) -> None:
        """Complete a multipart upload whose parts are all there."""
        blobs.digest_of(key)
        if self._has_parts(size_bytes, key):
            uploads.complete_upload(self.bucket, key, size_bytes, self._part_bytes)

    def _has_parts(self, size_bytes: int, key: str = "") -> bool:
        with_checksums = self.capabilities.checksum_parts and not blobs.is_any_key(key)
        auto = uploads.PARTS_FROM_BYTES_WITH_CHECKSUM_PARTS if with_checksums else uploads.PARTS_FROM_BYTES
        is_large = size_bytes >= (self._parts_from_bytes or auto)
        return is_large and self.capabilities.parts and self.capabilities.signed_headers


def _is_staging_key(key: str) -> bool:
    """Whether a client may get links to write under this key."""
    return key.startswith("staging/") and key.count("/") == 2
