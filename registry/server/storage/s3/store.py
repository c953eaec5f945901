"""`S3Blobs`: blobs in an S3 bucket, with the same interface as a local folder.

    PREFIX/blobs/sha256/ab/<hex>   written by this server only     PREFIX/staging/<push id>/<hex>   written by clients

- Clients get links only of a store that has all that was asked for (`capabilities`). Else everything passes through
  this server, which needs nothing but put, get, head, delete and list.
- A client's link writes once to a key of its own push: whether another tenant has the blob changes nothing. It is bound
  to the SHA-256 of the blob, so `collect` copies within the store what the store has verified. What came in parts
  the store cannot verify as a whole: it is read, hashed and written like what passes through this server.
- A link would write again once its key is deleted. So an empty object takes the place of what is deleted under
  `staging/`, and `delete` removes that when it is called again: `gc` does, when links have expired.
- Blobs below `DIRECT_FROM_BYTES` pass through this server, which costs less than the calls of a link.
- Only calls and small bodies pass through this process otherwise; memory stays constant whatever the size.
"""

import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from registry.server.storage import blobs
from registry.server.storage.s3 import uploads
from registry.server.storage.s3.bucket import CHECKSUM_HEADER, Bucket, checksum_of
from registry.server.storage.s3.capabilities import probe
from registry.server.storage.s3.uploads import UPLOAD_PART_BYTES, MultipartUpload

DIRECT_FROM_BYTES = 8 * 2**20
PARTS_FROM_BYTES = 2**30
"""A broken connection or a killed client sends this much again at most."""
OBJECT_LIMIT_BYTES = 5 * 2**30
"""Bytes of one PUT, and of one copy."""


class S3Blobs(blobs.BlobStore):
    """Blobs in one bucket. The store is probed once, at the first use that needs to know its capabilities."""

    kind = "s3"
    is_remote = True

    def __init__(
        self, bucket: Bucket, *, parts_from_bytes: int = 0, part_bytes: int = UPLOAD_PART_BYTES,
        direct_from_bytes: int = DIRECT_FROM_BYTES,
    ) -> None:  # fmt: skip
        self.bucket = bucket
        self._direct_from_bytes, self._part_bytes = direct_from_bytes, part_bytes
        self._parts_from_bytes = min(parts_from_bytes or PARTS_FROM_BYTES, OBJECT_LIMIT_BYTES)
        self._probing = threading.Lock()
        self._capabilities: Mapping[str, bool] = {}

    @classmethod
    def from_url(
        cls, url: str, *, endpoint: str = "", public_endpoint: str = "", parts_from_bytes: int = 0,
        is_quick: bool = False,
    ) -> Self:  # fmt: skip
        """Return the store of `s3://BUCKET/PREFIX`. `is_quick`: calls fail soon."""
        bucket = Bucket(url, endpoint=endpoint, public_endpoint=public_endpoint, is_quick=is_quick)
        return cls(bucket, parts_from_bytes=parts_from_bytes)

    @property
    def capabilities(self) -> Mapping[str, bool]:  # type: ignore[override]
        """What the store can do. `Unavailable` while it cannot be probed."""
        with self._probing:
            if not self._capabilities:
                self._capabilities = probe(self.bucket)
        return self._capabilities

    @property
    def _is_direct(self) -> bool:
        return all(self.capabilities.values())

    # ---------------------------------------------------------------- read
    def stat(self, key: str) -> blobs.Stat | None:
        """Look an object up."""
        blobs.digest_of(key)
        head = self.bucket.head(key)
        if head is None or _is_replaced(key, int(head["ContentLength"])):
            return None
        return blobs.Stat(key, int(head["ContentLength"]), head["LastModified"].astimezone(UTC))

    def open(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield a range in chunks."""
        blobs.digest_of(key)
        length = blobs.WHOLE_BYTES if length is None else length
        return self.bucket.stream(key, start, length, in_ranges=self.capabilities["ranges"])

    def list(self, prefix: str) -> Iterator[blobs.Stat]:
        """Yield the keys under a prefix, without the objects of other programs."""
        for page in self.bucket.list_pages("list_objects_v2", Prefix=prefix):
            for item in page.get("Contents", ()):
                key = self.bucket.strip_prefix(str(item["Key"]))
                try:
                    blobs.digest_of(key)
                except ValueError:  # an object of another program under our prefix
                    continue
                yield blobs.Stat(key, int(item["Size"]), item["LastModified"].astimezone(UTC))

    # ---------------------------------------------------------------- through this server
    def open_writer(self, key: str, *, limit_bytes: int) -> blobs.BlobWriter:
        """Begin to write an object that passes through this server."""
        return uploads.ObjectWriter(self.bucket, key, limit_bytes)

    def delete(self, key: str) -> None:
        """Delete an object; under `staging/` an empty one stays until this is called again, and parts are discarded."""
        blobs.digest_of(key)
        if not key.startswith("staging/"):
            self.bucket.delete(key)
            return
        for upload in MultipartUpload.list_open(self.bucket, key):
            upload.abort()
        head = self.bucket.head(key)
        if head is not None and _is_replaced(key, int(head["ContentLength"])):
            self.bucket.delete(key)
        else:
            self.bucket.put(key, b"")

    def delete_unfinished(self, older_than: timedelta) -> int:
        """Abort the multipart uploads that no one completes."""
        return uploads.abort_uploads(self.bucket, datetime.now(UTC) - older_than)

    # ---------------------------------------------------------------- presigned links
    def presign_read(
        self, key: str, size_bytes: int, *, seconds: int, owner: str = "", file_name: str = "", method: str = "GET"
    ) -> str | None:
        """Presign a read; a browser saves it under the file's name."""
        blobs.digest_of(key)
        if not self._is_direct:
            return None
        if method == "HEAD":
            return self.bucket.presign("head_object", seconds, Key=key)
        return self.bucket.presign(
            "get_object", seconds, Key=key, ResponseContentDisposition=blobs.attachment(file_name)
        )

    def presign_upload(
        self, key: str, size_bytes: int, *, seconds: int
    ) -> blobs.Link | tuple[blobs.PartLink, ...] | None:
        """Presign the upload of exactly these bytes, where nothing is; or of the missing parts of a large blob."""
        checksum = checksum_of(blobs.digest_of(key))
        if size_bytes < min(self._direct_from_bytes, self._parts_from_bytes) or not self._is_direct:
            return None
        if size_bytes >= self._parts_from_bytes:
            return uploads.presign_missing_parts(self.bucket, key, size_bytes, self._part_bytes, seconds)
        bound: dict[str, Any] = {"ChecksumSHA256": checksum, "IfNoneMatch": "*", "ContentLength": size_bytes}
        url = self.bucket.presign("put_object", seconds, Key=key, **bound)
        return blobs.Link(url, {CHECKSUM_HEADER: checksum, "If-None-Match": "*"})

    def collect(self, key: str, size_bytes: int) -> blobs.Stat | None:
        """Copy what the store has verified to its final key; hash what it has not."""
        digest = blobs.digest_of(key)
        if self.stat(key) is None and not uploads.complete_upload(self.bucket, key, size_bytes, self._part_bytes):
            return None
        final, head = blobs.key_of(digest), self.bucket.head(key)
        if head is None:
            return None
        if head.get("ChecksumSHA256") != checksum_of(digest):
            return blobs.write_blob(self, final, self.open(key), limit_bytes=size_bytes)
        self.bucket.copy(key, final, CopySourceIfMatch=head["ETag"])
        return blobs.Stat(final, int(head["ContentLength"]), datetime.now(UTC))


def _is_replaced(key: str, size_bytes: int) -> bool:
    """Whether this is the empty object that keeps a link from writing again: clients write no empty blobs."""
    return not size_bytes and key.startswith("staging/")
