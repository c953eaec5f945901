"""Direct uploads: one part, opened at the blob's final key, which becomes the blob without a copy.

    plan     begins a multipart upload at `blobs/sha256/ab/<hex>` and stores its id in a marker (`marker_key_of`)
    client   sends the part through a link that accepts only bytes with the SHA-256 in the key
    commit   sees that the part is there, notes that in the marker, and completes the upload

- Nothing is visible under the final key before this server completes the upload, and only right bytes can be in it.
  This needs a store that rejects a part with another checksum (`Capabilities.checksum_parts`).
- Only this server can write the marker: no link is ever given for its key, because metadata that a client may have
  written proves nothing. It says whether *this push* has sent the bytes; whether the final key exists is never looked
  at for that. So plan, link and commit are the same whether or not another tenant has the blob.
- The marker says that the part is there before the upload is completed: after a crash between the two, a commit goes on
  from the marker.
- Completing over an existing key replaces equal or damaged bytes with equal bytes.
- The store is not asked for what it has just said: a marker is looked up only where one may be, and an upload that the
  store says it has completed is complete.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from registry.digest import Digest
from registry.server.storage.blobs import Link, Stat, digest_of, key_of
from registry.server.storage.s3.bucket import CHECKSUM_HEADER, Bucket, checksum_of

FROM_BYTES = 8 * 2**20
"""A smaller blob passes through this server, which costs less than the calls of a direct upload."""
_UPLOAD, _ARRIVED, _SIZE = "upload", "arrived", "size"


@dataclass(frozen=True, slots=True)
class UploadMarker:
    """The metadata of the empty object under `marker_key_of`: which upload, and whether its part has arrived."""

    upload_id: str
    arrived: bool
    size_bytes: int


def marker_key_of(staging_key: str) -> str:
    """Return the key of the marker for a staging key."""
    folder, _, name = staging_key.rpartition("/")
    return f"{folder}/upload/{name}"


def staging_key_of_marker(key: str) -> str:
    """Return the staging key that a marker's key belongs to; empty for any other key."""
    folder, _, name = key.rpartition("/")
    return f"{folder.removesuffix('/upload')}/{name}" if folder.endswith("/upload") else ""


class DirectUploads:
    """The direct uploads of one bucket. Stateless: the markers say everything."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def begin(
        self, staging_key: str, size_bytes: int, *, seconds: int, cached: UploadMarker | None, conditional: bool
    ) -> tuple[Link, UploadMarker]:
        """Presign the upload of the bytes of this staging key. Planning again continues the same upload.

        `cached` is the marker that this process has seen there; `conditional` whether the store has conditional PUTs.
        """
        digest = digest_of(staging_key)
        marker = cached if cached or conditional else self.read_marker(staging_key)
        if marker is None or marker.arrived or not self._is_open(digest, marker.upload_id):
            marker = self._begin(staging_key, size_bytes, only_new=conditional and marker is None)
        url = self._bucket.presign(
            "upload_part", seconds, Key=key_of(digest), UploadId=marker.upload_id, PartNumber=1,
            ContentLength=size_bytes, ChecksumSHA256=checksum_of(digest),
        )  # fmt: skip
        return Link(url, {CHECKSUM_HEADER: checksum_of(digest)}), marker

    def _begin(self, staging_key: str, size_bytes: int, *, only_new: bool) -> UploadMarker:
        """Begin an upload and write its marker; with `only_new`, prefer an open upload that has a marker already."""
        digest = digest_of(staging_key)
        upload = self._bucket.call("create_multipart_upload", Key=key_of(digest), ChecksumAlgorithm="SHA256")
        marker = UploadMarker(str(upload["UploadId"]), False, size_bytes)
        if self._write_marker(staging_key, marker, **({"IfNoneMatch": "*"} if only_new else {})):
            return marker
        existing = self.read_marker(staging_key)
        if existing == marker:  # the response to our first attempt was lost
            return marker
        if existing is not None and not existing.arrived and self._is_open(digest, existing.upload_id):
            self.abort(staging_key, marker)
            return existing
        self._write_marker(staging_key, marker)
        return marker

    def finish(self, staging_key: str, marker: UploadMarker) -> Stat | None:
        """Complete the upload if that is still to do; return the blob, or None if this push has not sent it."""
        digest = digest_of(staging_key)
        part = self._find_part(digest, marker.upload_id)
        if part is None and not marker.arrived:
            return None
        size_bytes = marker.size_bytes
        if part is not None and not marker.arrived:
            size_bytes = int(part["Size"])
            self._write_marker(staging_key, replace(marker, arrived=True, size_bytes=size_bytes))
        completed = part is not None and self._complete(digest, marker.upload_id, part)
        if not completed and self._bucket.head(key_of(digest)) is None:  # else a racing commit of this push did it
            return None
        return Stat(staging_key, size_bytes, digest, datetime.now(UTC))

    def _complete(self, digest: Digest, upload_id: str, part: dict[str, Any]) -> bool:
        """Complete the upload; False if it is not open any more."""
        parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"], "ChecksumSHA256": checksum_of(digest)}]}
        operation = "complete_multipart_upload"
        response = self._bucket.call_if_exists(operation, Key=key_of(digest), UploadId=upload_id, MultipartUpload=parts)
        return response is not None

    def abort(self, staging_key: str, marker: UploadMarker) -> None:
        """Abort an upload that no one will complete."""
        key = key_of(digest_of(staging_key))
        self._bucket.call_if_exists("abort_multipart_upload", Key=key, UploadId=marker.upload_id)

    def _is_open(self, digest: Digest, upload_id: str) -> bool:
        return self._list_parts(digest, upload_id) is not None

    def _find_part(self, digest: Digest, upload_id: str) -> dict[str, Any] | None:
        return next((part for part in self._list_parts(digest, upload_id) or () if part["PartNumber"] == 1), None)

    def _list_parts(self, digest: Digest, upload_id: str) -> list[dict[str, Any]] | None:
        response = self._bucket.call_if_exists("list_parts", Key=key_of(digest), UploadId=upload_id)
        return None if response is None else response.get("Parts", [])

    def read_marker(self, staging_key: str) -> UploadMarker | None:
        """Read the marker for a staging key; None if there is none."""
        head = self._bucket.head(marker_key_of(staging_key))
        if head is None:
            return None
        metadata = head["Metadata"]
        return UploadMarker(metadata[_UPLOAD], metadata[_ARRIVED] == "yes", int(metadata[_SIZE]))

    def _write_marker(self, staging_key: str, marker: UploadMarker, **condition: str) -> bool:
        arrived = "yes" if marker.arrived else "no"
        metadata = {_UPLOAD: marker.upload_id, _ARRIVED: arrived, _SIZE: str(marker.size_bytes)}
        return self._bucket.put(marker_key_of(staging_key), b"", Metadata=metadata, **condition)
