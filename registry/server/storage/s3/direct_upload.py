"""Uploads bound to their digest: one part, open at the blob's final key, which becomes the blob without being copied.

    plan     an upload in one part is begun at `blobs/sha256/ab/<hex>`; its number is noted under the staging key
    client   sends the part by a link that the store takes only with bytes of the SHA-256 in the key
    commit   the part is there: that is noted, and the upload is completed; the bytes stand under their final key

Invariants
- Nothing is visible under the final key before this server completes the upload, and only true bytes can be in it:
  this needs a store that was seen to refuse a part with another sum (`Abilities.bound_parts`).
- The note is written by this server alone and says whether *this push* has sent the bytes; that others have them under
  the final key is never asked for that. So a plan, a link and a commit are the same whether or not somebody has them.
- That the part is there is noted before the upload is completed: whoever dies between the two goes on from the note.
- Completing over a key that exists puts equal bytes in the place of equal or damaged ones.
- What a store has just said is not asked again: a note is looked for only where it may be, and an upload that the store
  says it has completed is complete.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from registry.digest import Digest
from registry.server.storage.blobs import Link, Stat, digest_of, key_of
from registry.server.storage.s3.bucket import Bucket

FROM_BYTES = 8 * 2**20
"""Less than this is copied sooner than the calls for a bound upload are made."""
LIMIT_BYTES = 5 * 2**30
_UPLOAD, _ARRIVED = "upload", "arrived"


@dataclass(frozen=True, slots=True)
class Note:
    """What stands under a staging key: which upload, and whether its part has arrived."""

    upload_id: str
    arrived: bool
    size_bytes: int

    @classmethod
    def at(cls, key: str, found: dict[str, Any]) -> Note | None:
        """None for a key that holds bytes."""
        told = found.get("Metadata", {})
        if _UPLOAD not in told or not key.startswith("staging/"):
            return None
        return cls(str(told[_UPLOAD]), told.get(_ARRIVED) == "yes", int(told.get("size", 0)))


@dataclass(frozen=True, slots=True)
class Begun:
    """An upload that is open: where its part goes, and what is noted of it."""

    link: Link
    note: Note


class BoundUploads:
    """The uploads of one bucket. Stateless: the notes say everything."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def begin(self, staging_key: str, size_bytes: int, *, seconds: int, known: Note | None, only_new: bool) -> Begun:
        """A link for the bytes of this staging key. The same upload when the plan is made again.

        `known` is the note that this process has seen there, `only_new` whether the store writes on condition.
        """
        digest = digest_of(staging_key)
        note = known if known or only_new else self._read(staging_key)
        if note is None or note.arrived or not self._is_open(digest, note.upload_id):
            note = self._begun(staging_key, size_bytes, only_new=only_new and note is None)
        told = _sum(digest)
        given = {"UploadId": note.upload_id, "PartNumber": 1, "ContentLength": size_bytes, "ChecksumSHA256": told}
        url = self._bucket.link("upload_part", seconds, {**self._where(digest), **given})
        return Begun(Link(url, {"x-amz-checksum-sha256": told}), note)

    def _begun(self, staging_key: str, size_bytes: int, *, only_new: bool) -> Note:
        """A new upload and its note; with `only_new` the one that is noted already and open, if there is one."""
        digest = digest_of(staging_key)
        upload = self._bucket.call("create_multipart_upload", **self._where(digest), ChecksumAlgorithm="SHA256")
        note = Note(str(upload["UploadId"]), False, size_bytes)
        if self._write(staging_key, note, **({"IfNoneMatch": "*"} if only_new else {})):
            return note
        there = self._read(staging_key)
        if there == note:  # the answer to our first try was lost
            return note
        if there is not None and not there.arrived and self._is_open(digest, there.upload_id):
            self.abort(staging_key, note)
            return there
        self._write(staging_key, note)
        return note

    def land(self, staging_key: str, note: Note) -> Stat | None:
        """The blob under its final key, if this push has sent it; completes the upload if that is still to be done."""
        digest = digest_of(staging_key)
        part = self._part(digest, note.upload_id)
        if part is None and not note.arrived:
            return None
        size_bytes = note.size_bytes
        if part is not None and not note.arrived:
            size_bytes = int(part["Size"])
            self._write(staging_key, Note(note.upload_id, True, size_bytes))
        done = part is not None and self._complete(digest, note.upload_id, part)
        if not done and self._bucket.head(key_of(digest)) is None:  # else another commit of this push was quicker
            return None
        return Stat(staging_key, size_bytes, digest, datetime.now(UTC))

    def _complete(self, digest: Digest, upload_id: str, part: dict[str, Any]) -> bool:
        """Whether the store says that it did; False for an upload that is not open any more."""
        parts = [{"PartNumber": 1, "ETag": part["ETag"], "ChecksumSHA256": _sum(digest)}]
        given = {**self._where(digest), "UploadId": upload_id, "MultipartUpload": {"Parts": parts}}
        return self._bucket.find("complete_multipart_upload", **given) is not None

    def abort(self, staging_key: str, note: Note) -> None:
        """End an upload that nobody will complete."""
        digest = digest_of(staging_key)
        self._bucket.find("abort_multipart_upload", **self._where(digest), UploadId=note.upload_id)

    def _where(self, digest: Digest) -> dict[str, Any]:
        return {"Key": self._bucket.prefix + key_of(digest)}

    def _is_open(self, digest: Digest, upload_id: str) -> bool:
        return self._bucket.find("list_parts", **self._where(digest), UploadId=upload_id) is not None

    def _part(self, digest: Digest, upload_id: str) -> dict[str, Any] | None:
        found = self._bucket.find("list_parts", **self._where(digest), UploadId=upload_id)
        return next((part for part in (found or {}).get("Parts", ()) if part["PartNumber"] == 1), None)

    def _read(self, staging_key: str) -> Note | None:
        found = self._bucket.head(staging_key)
        return Note.at(staging_key, found) if found else None

    def _write(self, staging_key: str, note: Note, **condition: str) -> bool:
        arrived = "yes" if note.arrived else "no"
        told = {_UPLOAD: note.upload_id, _ARRIVED: arrived, "size": str(note.size_bytes)}
        return self._bucket.put(staging_key, b"", Metadata=told, **condition)


def _sum(digest: Digest) -> str:
    return base64.b64encode(bytes.fromhex(digest.hex)).decode()
