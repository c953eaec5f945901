"""Blobs too big for one request: uploads in parts that a client sends by signed links and this server puts together.

Invariants
- Which parts a blob has follows from its size alone, so whoever plans again cuts it the same way.
- The store itself remembers what has arrived: nothing of it is kept in the database, and a finished part is not
  asked for again, however often the client was killed.
- Only this server completes an upload, and only when every part is there with its size. From then on no link writes.
- An upload that nobody completes is aborted by `sweep`.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from registry.errors import RegistryError
from registry.server.storage.blobs import PartLink
from registry.server.storage.s3.bucket import Bucket

FROM_BYTES = 64 * 2**20
FROM_BYTES_WHERE_BOUND = 2**30
"""A bound upload is one part: the store checks it, and nothing is read or copied after it: a third of the work.
In exchange a line that breaks, or a client that is killed, sends again at most this much."""
AS_FITS = 0
"""One of these two, by what the store can do."""
PART_BYTES = 32 * 2**20
"""S3 takes at most 10,000 parts; so many of these are more than the largest file that a manifest may name."""


def cut(size_bytes: int, part_bytes: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, length) of each part; numbers begin with 1, all parts but the last are equally long."""
    for number, start in enumerate(range(0, size_bytes, part_bytes), 1):
        yield number, start, min(part_bytes, size_bytes - start)


def links(bucket: Bucket, key: str, size_bytes: int, part_bytes: int, seconds: int) -> tuple[PartLink, ...]:
    """A link for each part that has not arrived. Begins the upload if there is none."""
    upload = next(iter(_open_uploads(bucket, key)), None) or Upload.begin(bucket, key)
    there = upload.arrived()
    return tuple(
        PartLink(number, start, length, upload.link(number, length, seconds))
        for number, start, length in cut(size_bytes, part_bytes)
        if there.get(number, ("", -1))[1] != length
    )


def complete(bucket: Bucket, key: str, size_bytes: int, part_bytes: int) -> None:
    """Put the parts together if they are all there; what is incomplete, or done already, stays as it is."""
    wanted = {number: length for number, _, length in cut(size_bytes, part_bytes)}
    for upload in _open_uploads(bucket, key):
        there = upload.arrived()
        if all(there.get(number, ("", -1))[1] == length for number, length in wanted.items()):
            upload.etags = [there[number][0] for number in wanted]
            upload.complete()
            return


def copy(bucket: Bucket, source_key: str, key: str, size_bytes: int, range_bytes: int) -> None:
    """Copy within the bucket, range by range: for what is beyond a single copy."""
    upload = Upload.begin(bucket, key)
    try:
        for start in range(0, size_bytes, range_bytes):
            upload.copy(source_key, start, min(start + range_bytes, size_bytes))
        upload.complete()
    except BaseException:
        upload.abort()
        raise


def sweep(bucket: Bucket, before: datetime, prefix: str = "") -> int:
    """Abort every upload under this prefix that began before that time. Returns how many."""
    gone = 0
    for page in bucket.pages("list_multipart_uploads", Prefix=bucket.prefix + prefix):
        for item in page.get("Uploads", ()):
            if item["Initiated"].astimezone(UTC) < before:
                Upload(bucket, str(item["Key"])[len(bucket.prefix) :], str(item["UploadId"])).abort()
                gone += 1
    return gone


@dataclass
class Upload:
    """One upload in parts, open at the store."""

    bucket: Bucket
    key: str
    id: str
    etags: list[str] = field(default_factory=list)

    @classmethod
    def begin(cls, bucket: Bucket, key: str) -> Upload:
        return cls(bucket, key, bucket.call("create_multipart_upload", Key=bucket.prefix + key)["UploadId"])

    @property
    def _where(self) -> dict[str, Any]:
        return {"Key": self.bucket.prefix + self.key, "UploadId": self.id}

    def arrived(self) -> dict[int, tuple[str, int]]:
        """Number → (ETag, size) of each part that the store has."""
        return {
            int(part["PartNumber"]): (str(part["ETag"]), int(part["Size"]))
            for page in self.bucket.pages("list_parts", **self._where)
            for part in page.get("Parts", ())
        }

    def link(self, number: int, length: int, seconds: int) -> str:
        given = {**self._where, "PartNumber": number, "ContentLength": length}
        return self.bucket.link("upload_part", seconds, given)

    def send(self, data: bytes) -> None:
        md5 = base64.b64encode(hashlib.md5(data).digest()).decode()  # noqa: S324 - what every S3 store checks
        sent = self.bucket.call("upload_part", **self._where, PartNumber=len(self.etags) + 1, Body=data, ContentMD5=md5)
        self.etags.append(sent["ETag"])

    def copy(self, source_key: str, start: int, end: int) -> None:
        source = {"Bucket": self.bucket.name, "Key": self.bucket.prefix + source_key}
        given = {"CopySource": source, "CopySourceRange": f"bytes={start}-{end - 1}", "PartNumber": len(self.etags) + 1}
        sent = self.bucket.call("upload_part_copy", **self._where, **given)
        self.etags.append(sent["CopyPartResult"]["ETag"])

    def complete(self) -> None:
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(self.etags, 1)]
        try:
            self.bucket.call("complete_multipart_upload", **self._where, MultipartUpload={"Parts": parts})
        except RegistryError:
            # A racing commit may have completed it, or the store did and its answer was lost: then the key is there.
            if self.bucket.head(self.key) is None:
                raise

    def abort(self) -> None:
        self.bucket.find("abort_multipart_upload", **self._where)


def _open_uploads(bucket: Bucket, key: str) -> list[Upload]:
    """The open uploads to exactly this key, the oldest first. More than one if the answer to a beginning was lost."""
    whole = bucket.prefix + key
    found = [
        item
        for page in bucket.pages("list_multipart_uploads", Prefix=whole)
        for item in page.get("Uploads", ())
        if item["Key"] == whole
    ]
    found.sort(key=lambda item: (item["Initiated"], item["UploadId"]))
    return [Upload(bucket, key, str(item["UploadId"])) for item in found]
