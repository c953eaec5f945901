"""Multipart uploads: of clients, by presigned parts, and of this server (`ObjectWriter`).

- The size of a blob alone determines its parts, so planning again cuts it the same way.
- The store knows which parts have arrived. The database knows nothing of them, and a client that was killed sends none
  of them twice.
- Only this server completes an upload, and only if every part is there with its size. After that no link writes.
- `abort_uploads` aborts the uploads that no one completes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from registry.errors import RegistryError
from registry.server.storage.blobs import BlobWriter, Bytes, PartLink
from registry.server.storage.s3.bucket import Bucket, md5_of

UPLOAD_PART_BYTES = 16 * 2**20
"""S3 allows 10,000 parts; that many of these are more than the largest file that a manifest may name."""


def presign_missing_parts(
    bucket: Bucket, key: str, size_bytes: int, part_bytes: int, seconds: int
) -> tuple[PartLink, ...]:
    """Presign each part that has not arrived. Begins an upload if none is open."""
    upload = next(iter(MultipartUpload.list_open(bucket, key)), None) or MultipartUpload.begin(bucket, key)
    arrived = upload.list_parts()
    return tuple(
        PartLink(number, start, length, upload.presign_part(number, length, seconds))
        for number, start, length in _split(size_bytes, part_bytes)
        if arrived.get(number, ("", -1))[1] != length
    )


def complete_upload(bucket: Bucket, key: str, size_bytes: int, part_bytes: int) -> bool:
    """Complete the first upload whose parts are all there, and abort the others to this key; False if none is."""
    lengths = {number: length for number, _, length in _split(size_bytes, part_bytes)}
    open_uploads = MultipartUpload.list_open(bucket, key)
    for upload in open_uploads:
        arrived = upload.list_parts()
        if all(arrived.get(number, ("", -1))[1] == length for number, length in lengths.items()):
            upload.etags = [arrived[number][0] for number in lengths]
            upload.complete()
            for other in open_uploads:
                if other is not upload:
                    other.abort()
            return True
    return False


def abort_uploads(bucket: Bucket, before: datetime) -> int:
    """Abort every upload that began before that time; return how many."""
    count = 0
    for page in bucket.list_pages("list_multipart_uploads", Prefix=""):
        for item in page.get("Uploads", ()):
            if item["Initiated"].astimezone(UTC) < before:
                MultipartUpload(bucket, bucket.strip_prefix(str(item["Key"])), str(item["UploadId"])).abort()
                count += 1
    return count


def _split(size_bytes: int, part_bytes: int) -> Iterator[tuple[int, int, int]]:
    """Yield (number, start, length) of each part. Numbers begin with 1; only the last part is shorter."""
    for number, start in enumerate(range(0, size_bytes, part_bytes), 1):
        yield number, start, min(part_bytes, size_bytes - start)


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

    @classmethod
    def list_open(cls, bucket: Bucket, key: str) -> list[MultipartUpload]:
        """List the open uploads to exactly this key, oldest first. There are several if a response was lost."""
        items = [
            item
            for page in bucket.list_pages("list_multipart_uploads", Prefix=key)
            for item in page.get("Uploads", ())
            if bucket.strip_prefix(item["Key"]) == key
        ]
        items.sort(key=lambda item: (item["Initiated"], item["UploadId"]))
        return [cls(bucket, key, str(item["UploadId"])) for item in items]

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
        number, checksum = len(self.etags) + 1, md5_of(data)
        response = self.bucket.call("upload_part", **self._address, PartNumber=number, Body=data, ContentMD5=checksum)
        self.etags.append(response["ETag"])

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


class ObjectWriter(BlobWriter):
    """Writes a blob that passes through this server: by one PUT if it is small, else in parts.

    It has one part in memory, whatever the size.
    """

    def __init__(self, bucket: Bucket, key: str, limit_bytes: int) -> None:
        super().__init__(key, limit_bytes)
        self._bucket = bucket
        self._buffer = bytearray()
        self._upload: MultipartUpload | None = None

    def _append(self, chunk: Bytes) -> None:
        self._buffer += chunk
        if len(self._buffer) >= UPLOAD_PART_BYTES:
            self._upload = self._upload or MultipartUpload.begin(self._bucket, self._key)
            self._upload.send_part(self._buffer)
            self._buffer = bytearray()

    def _publish(self) -> None:
        if self._upload is None:
            self._bucket.put(self._key, self._buffer)
            return
        if self._buffer:
            self._upload.send_part(self._buffer)
        self._upload.complete()

    def abort(self) -> None:
        """Discard what was written."""
        upload, self._upload = self._upload, None
        self._buffer = bytearray()
        if upload is not None:
            upload.abort()
