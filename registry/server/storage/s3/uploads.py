"""Multipart uploads: of clients, by presigned parts, and of this server (`ObjectWriter`, large copies).

- The size of a blob alone determines its parts, so planning again cuts it the same way.
- The store knows which parts have arrived. The database knows nothing of them, and a client that was killed sends none
  of them twice.
- Only this server completes an upload, and only if every part is there with its size. After that no link writes.
- `abort_uploads` aborts the uploads that no one completes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from registry.digest import Digest
from registry.errors import RegistryError
from registry.server.storage.blobs import Bytes, DigestVerifier, PartLink, Stat
from registry.server.storage.s3.bucket import CHECKSUM_HEADER, Bucket, checksum_of
from registry.server.storage.s3.capabilities import MD5_HEADER, Capabilities

PARTS_FROM_BYTES = 64 * 2**20
PARTS_FROM_BYTES_WITH_CHECKSUM_PARTS = 2**30
"""A direct upload has one part: the store verifies it, and nothing is read or copied afterwards, a third of the work.
In exchange a broken connection or a killed client sends this much again at most."""
AUTO = 0
"""Choose one of these two by the store's capabilities."""
PART_BYTES = 32 * 2**20
"""S3 allows 10,000 parts; that many of these are more than the largest file that a manifest may name."""
WRITER_PART_BYTES = 16 * 2**20
_HEADERS = {"ChecksumSHA256": CHECKSUM_HEADER, "ContentMD5": MD5_HEADER}
"""boto3's name of a parameter → the header that it becomes."""


def presign_missing_parts(
    bucket: Bucket, key: str, size_bytes: int, part_bytes: int, seconds: int, *, every: bool = False
) -> tuple[PartLink, ...]:
    """Presign each part that has not arrived, or `every` part. Begins an upload if none is open."""
    upload = next(iter(_list_uploads(bucket, key)), None) or MultipartUpload.begin(bucket, key)
    arrived = {} if every else upload.list_parts()
    return tuple(
        PartLink(number, start, length, upload.presign_part(number, length, seconds))
        for number, start, length in _split(size_bytes, part_bytes)
        if every or arrived.get(number, ("", -1))[1] != length
    )


def complete_upload(bucket: Bucket, key: str, size_bytes: int, part_bytes: int) -> None:
    """Complete the first upload whose parts are all there, and abort the others to this key.

    Call it while the key does not exist. Without a complete upload, all stay as they are.
    """
    lengths = {number: length for number, _, length in _split(size_bytes, part_bytes)}
    open_uploads = _list_uploads(bucket, key)
    for upload in open_uploads:
        arrived = upload.list_parts()
        if all(arrived.get(number, ("", -1))[1] == length for number, length in lengths.items()):
            upload.etags = [arrived[number][0] for number in lengths]
            upload.complete()
            for other in open_uploads:
                if other is not upload:
                    other.abort()
            return


def copy_in_ranges(bucket: Bucket, source_key: str, key: str, size_bytes: int, range_bytes: int) -> None:
    """Copy an object that is too large for one CopyObject."""
    upload = MultipartUpload.begin(bucket, key)
    try:
        for start in range(0, size_bytes, range_bytes):
            upload.copy_part(source_key, start, min(start + range_bytes, size_bytes))
        upload.complete()
    except BaseException:
        upload.abort()
        raise


def abort_uploads(bucket: Bucket, before: datetime, prefix: str = "") -> int:
    """Abort every upload under this prefix that began before that time; return how many."""
    count = 0
    for page in bucket.list_pages("list_multipart_uploads", Prefix=prefix):
        for item in page.get("Uploads", ()):
            if item["Initiated"].astimezone(UTC) < before:
                MultipartUpload(bucket, bucket.strip_prefix(str(item["Key"])), str(item["UploadId"])).abort()
                count += 1
    return count


def _split(size_bytes: int, part_bytes: int) -> Iterator[tuple[int, int, int]]:
    """Yield (number, start, length) of each part. Numbers begin with 1; only the last part is shorter."""
    for number, start in enumerate(range(0, size_bytes, part_bytes), 1):
        yield number, start, min(part_bytes, size_bytes - start)


def _list_uploads(bucket: Bucket, key: str) -> list[MultipartUpload]:
    """List the open uploads to exactly this key, oldest first. There are several if a response was lost."""
    items = [
        item
        for page in bucket.list_pages("list_multipart_uploads", Prefix=key)
        for item in page.get("Uploads", ())
        if bucket.strip_prefix(item["Key"]) == key
    ]
    items.sort(key=lambda item: (item["Initiated"], item["UploadId"]))
    return [MultipartUpload(bucket, key, str(item["UploadId"])) for item in items]


@dataclass
class MultipartUpload:
    """An open multipart upload."""

    bucket: Bucket
    key: str
    id: str
    etags: list[str] = field(default_factory=list)
    """Of the parts that this object has sent or found, in order."""

    @classmethod
    def begin(cls, bucket: Bucket, key: str) -> MultipartUpload:
        """Begin an upload to a key."""
        return cls(bucket, key, bucket.call("create_multipart_upload", Key=key)["UploadId"])

    @property
    def _address(self) -> dict[str, Any]:
        return {"Key": self.key, "UploadId": self.id}

    def list_parts(self) -> dict[int, tuple[str, int]]:
        """Return number → (ETag, size) of each part that has arrived."""
        return {
            int(part["PartNumber"]): (str(part["ETag"]), int(part["Size"]))
            for page in self.bucket.list_pages("list_parts", **self._address)
            for part in page.get("Parts", ())
        }

    def presign_part(self, number: int, length: int, seconds: int) -> str:
        """Presign the PUT of a part of that length."""
        return self.bucket.presign("upload_part", seconds, **self._address, PartNumber=number, ContentLength=length)

    def send_part(self, data: bytes | bytearray) -> None:
        """Send the next part."""
        response = self.bucket.call(
            "upload_part", **self._address, PartNumber=len(self.etags) + 1, Body=data, ContentMD5=_md5(data)
        )
        self.etags.append(response["ETag"])

    def copy_part(self, source_key: str, start: int, end: int) -> None:
        """Copy the next part from a range of another object."""
        source = {"CopySource": source_key, "CopySourceRange": f"bytes={start}-{end - 1}"}
        response = self.bucket.call("upload_part_copy", **self._address, **source, PartNumber=len(self.etags) + 1)
        self.etags.append(response["CopyPartResult"]["ETag"])

    def complete(self) -> None:
        """Make one object of the parts."""
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(self.etags, 1)]
        try:
            self.bucket.call("complete_multipart_upload", **self._address, MultipartUpload={"Parts": parts})
        except RegistryError:
            # A racing commit may have completed it, or the response to our first try was lost: then the key exists.
            if self.bucket.head(self.key) is None:
                raise

    def abort(self) -> None:
        """End the upload and discard its parts."""
        self.bucket.call_if_exists("abort_multipart_upload", **self._address)


class ObjectWriter:
    """Writes a blob that passes through this server: one PUT if it is small, else a multipart upload.

    It has one part in memory, whatever the size. A wrong or interrupted blob leaves nothing under the key.
    """

    def __init__(self, bucket: Bucket, key: str, verifier: DigestVerifier, capabilities: Capabilities) -> None:
        self._bucket = bucket
        self._capabilities = capabilities
        self._key = key
        self._verifier = verifier
        self._buffer = bytearray()
        self._upload: MultipartUpload | None = None

    def write(self, chunk: Bytes) -> None:
        """Write a chunk; sends a part whenever one is full."""
        self._verifier.update(chunk)
        self._buffer += chunk
        if len(self._buffer) >= WRITER_PART_BYTES:
            self._upload = self._upload or MultipartUpload.begin(self._bucket, self._key)
            self._upload.send_part(self._buffer)
            self._buffer = bytearray()

    def finish(self) -> Stat:
        """Verify the digest and make the object visible."""
        self._verifier.verify()
        data = self._buffer
        if self._upload is None:
            self._put(data, self._verifier.digest)
        else:
            if data:
                self._upload.send_part(data)
            self._upload.complete()
        return Stat(self._key, self._verifier.size_bytes, self._verifier.digest, datetime.now(UTC))

    def _put(self, data: bytearray, digest: Digest) -> None:
        able = self._capabilities
        parameter, checksum = ("ChecksumSHA256", checksum_of(digest)) if able.checksums else ("ContentMD5", _md5(data))
        header = {_HEADERS[parameter]: checksum}
        if not (able.signed_puts and self._bucket.put_signed(self._key, data, digest, header)):
            self._bucket.put(self._key, data, **{parameter: checksum})

    def abort(self) -> None:
        """Discard what was written."""
        upload, self._upload = self._upload, None
        self._buffer = bytearray()
        if upload is not None:
            upload.abort()


def _md5(data: bytes | bytearray) -> str:
    """The checksum that every S3 store verifies."""
    return base64.b64encode(hashlib.md5(data).digest()).decode()  # noqa: S324
