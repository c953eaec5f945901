"""`Capabilities`: what a store really supports. `probe` tries it under `probe/`, once in the life of a server.

- Every result comes from an observed outcome, never from a header that names a product.
- A store without a capability has a safe fallback in `store` (through the server, hash again, copy); only ranges are
  required. A store that accepts everything, also wrong checksums or expired links, ends up with False.
"""

import contextlib
import http.client
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlsplit

from registry.digest import Digest
from registry.errors import Unavailable
from registry.server.storage.blobs import RequestRejected
from registry.server.storage.s3.bucket import CHECKSUM_HEADER, Bucket, checksum_of
from registry.server.storage.s3.signatures import LINK_SECONDS, presign_at

TIMEOUT_SECONDS = 20
ATTEMPTS = 3
"""How often to try what failed: networks and stores have hiccups, and a result lasts for the life of a server."""
MD5_HEADER = "content-md5"
RIGHT = checksum_of(Digest.of(b"right"))


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The capabilities of a store; /health shows them by these names."""

    ranges: bool
    """A ranged read returns that range. The registry needs it."""
    copies: bool
    """CopyObject works."""
    conditional: bool
    """A PUT with `If-None-Match: *` fails if the key exists."""
    conditional_copy: bool
    """So does a CopyObject."""
    checksums: bool
    """A PUT that contradicts its `x-amz-checksum-sha256` is rejected, and HEAD returns the checksum."""
    signed_puts: bool
    """A PUT that this server signs itself works (`Bucket.put_signed`); not through a proxy."""
    links: bool
    """A presigned GET works; an altered or expired one does not."""
    signed_headers: bool
    """A presigned PUT with an `x-amz-` header that was not signed is rejected. Else no client gets a link to write:
    with `x-amz-copy-source` it would copy any object of the bucket, and with `x-amz-meta-` it would set metadata."""
    checksum_links: bool
    """A presigned PUT can be bound to the SHA-256 of its body."""
    conditional_links: bool
    """A presigned PUT can be bound to a key that does not exist yet."""
    parts: bool
    """Multipart uploads with presigned parts work and can be listed."""
    checksum_parts: bool
    """A one-part upload can be bound to the SHA-256 of its part, and replaces a key atomically when it completes."""


def probe(bucket: Bucket) -> Capabilities:
    """Try every capability. `Unavailable` if the store is away, rejects our credentials or cannot read ranges."""
    attempt = _Probe(bucket)
    try:
        bucket.put(attempt.key, b"probe")
        if not attempt.works(attempt.ranges):
            bucket.head(attempt.key)  # raises if the store is away
            raise Unavailable("STORE_UNAVAILABLE", "the blob store cannot read ranges")
        links = attempt.works(attempt.links)
        capabilities = Capabilities(
            ranges=True,
            copies=attempt.works(attempt.copies),
            conditional=attempt.works(attempt.conditional),
            conditional_copy=attempt.works(attempt.conditional_copy),
            checksums=attempt.works(attempt.checksums),
            signed_puts=attempt.works(attempt.signed_puts),
            links=links,
            signed_headers=links and attempt.works(attempt.signed_headers),
            checksum_links=links and attempt.works(attempt.checksum_links),
            conditional_links=links and attempt.works(attempt.conditional_links),
            parts=links and attempt.works(attempt.parts),
            checksum_parts=links and attempt.works(attempt.checksum_parts),
        )
        bucket.head(attempt.key)  # raises if the store was deleted meanwhile: then the results mean nothing
        return capabilities
    finally:
        attempt.clean()


class _Probe:
    """One attempt per capability, and the keys that they leave behind."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._keys: list[str] = []
        self.key = self._new_key()

    def works(self, attempt: Callable[[], bool]) -> bool:
        """Whether one of several attempts succeeds."""
        for _ in range(ATTEMPTS):
            with contextlib.suppress(Unavailable, OSError, http.client.HTTPException):
                if attempt():
                    return True
        return False

    def clean(self) -> None:
        for key in self._keys:
            with contextlib.suppress(Unavailable):
                self._bucket.delete(key)

    def ranges(self) -> bool:
        return self._read(self.key, 1, 3) == b"rob"

    def copies(self) -> bool:
        copy = self._new_key()
        self._bucket.copy(self.key, copy)
        return self._read(copy) == b"probe"

    def conditional(self) -> bool:
        key = self._new_key()
        return self._bucket.put(key, b"first", IfNoneMatch="*") and not self._bucket.put(key, b"other", IfNoneMatch="*")

    def conditional_copy(self) -> bool:
        copy = self._new_key()
        self._bucket.copy(self.key, copy)
        return not self._bucket.copy(self.key, copy, IfNoneMatch="*")

    def checksums(self) -> bool:
        right, wrong = self._new_key(), self._new_key()
        self._bucket.put(right, b"right", ChecksumSHA256=RIGHT)
        returned = (self._bucket.head(right) or {}).get("ChecksumSHA256") == RIGHT
        try:
            self._bucket.put(wrong, b"wrong", ChecksumSHA256=RIGHT)
        except RequestRejected:
            return returned and self._bucket.head(wrong) is None
        return False

    def signed_puts(self) -> bool:
        key = self._new_key()
        return self._bucket.put_signed(key, b"right", Digest.of(b"right"), {}) and self._read(key) == b"right"

    def links(self) -> bool:
        link = self._presign("get_object", self.key)
        altered = link[:-1] + ("0" if link[-1] != "0" else "1")
        credentials, region = self._bucket.credentials()
        now = datetime.now(UTC)
        valid = (link, presign_at(now, link, credentials, region))
        invalid = (altered, presign_at(now - timedelta(hours=2), link, credentials, region))
        return all(_send("GET", url) == 200 for url in valid) and all(
            _is_rejected(_send("GET", url)) for url in invalid
        )

    def signed_headers(self) -> bool:
        key = self._new_key()
        link = self._presign("put_object", key)
        source = quote(f"/{self._bucket.name}/{self._bucket.prefix}{self.key}")
        forged = ({"x-amz-meta-upload": "forged"}, {"x-amz-copy-source": source})
        return all(_is_rejected(_send("PUT", link, b"", headers)) for headers in forged) and not self._bucket.head(key)

    def checksum_links(self) -> bool:
        right, wrong = self._new_key(), self._new_key()
        to_right, to_wrong = (
            self._presign("put_object", key, ChecksumSHA256=RIGHT, ContentLength=5) for key in (right, wrong)
        )
        accepted = _send("PUT", to_right, b"right", {CHECKSUM_HEADER: RIGHT})
        rejected = all(_is_rejected(_send("PUT", to_wrong, b"wrong", h)) for h in ({CHECKSUM_HEADER: RIGHT}, {}))
        return accepted == 200 and rejected and self._bucket.head(wrong) is None

    def conditional_links(self) -> bool:
        key = self._new_key()
        link = self._presign("put_object", key, IfNoneMatch="*")
        headers = {"If-None-Match": "*"}
        first, second = _send("PUT", link, b"first", headers), _send("PUT", link, b"other", headers)
        without_header = _send("PUT", link, b"other")
        rejected = _is_rejected(second) and _is_rejected(without_header)
        return first == 200 and rejected and self._read(key) == b"first"

    def parts(self) -> bool:
        key = self._new_key()
        upload = self._bucket.call("create_multipart_upload", Key=key)["UploadId"]
        link = self._presign("upload_part", key, UploadId=upload, PartNumber=1, ContentLength=4)
        sent = _send("PUT", link, b"part")
        open_uploads = self._bucket.call("list_multipart_uploads", Prefix=key).get("Uploads", [])
        parts = self._complete(key, upload)
        late = _send("PUT", link, b"late")
        lists_right = [u["UploadId"] for u in open_uploads] == [upload] and [p["Size"] for p in parts] == [4]
        return sent == 200 and lists_right and _is_rejected(late) and self._read(key) == b"part"

    def checksum_parts(self) -> bool:
        key, headers = self._new_key(), {CHECKSUM_HEADER: RIGHT}
        self._bucket.put(key, b"older")
        upload = self._bucket.call("create_multipart_upload", Key=key, ChecksumAlgorithm="SHA256")["UploadId"]
        link = self._presign("upload_part", key, UploadId=upload, PartNumber=1, ContentLength=5, ChecksumSHA256=RIGHT)
        rejected = all(_is_rejected(_send("PUT", link, b"wrong", h)) for h in (headers, {}))
        none_listed = not self._bucket.call("list_parts", Key=key, UploadId=upload).get("Parts")
        sent = _send("PUT", link, b"right", headers)
        invisible = self._read(key) == b"older"
        parts = self._complete(key, upload, ChecksumSHA256=RIGHT)
        late = _is_rejected(_send("PUT", link, b"right", headers))
        lists_right = none_listed and [p["Size"] for p in parts] == [5]
        return rejected and sent == 200 and invisible and lists_right and late and self._read(key) == b"right"

    def _complete(self, key: str, upload: str, **checksum: str) -> list[dict[str, Any]]:
        """Complete an upload with the parts that the store lists; return those."""
        parts: list[dict[str, Any]] = self._bucket.call("list_parts", Key=key, UploadId=upload).get("Parts", [])
        body = {"Parts": [{"PartNumber": p["PartNumber"], "ETag": p["ETag"], **checksum} for p in parts]}
        self._bucket.call("complete_multipart_upload", Key=key, UploadId=upload, MultipartUpload=body)
        return parts

    def _presign(self, operation: str, key: str, **parameters: Any) -> str:
        return self._bucket.presign(operation, LINK_SECONDS, internal=True, Key=key, **parameters)

    def _read(self, key: str, start: int = 0, length: int = 100) -> bytes | None:
        with self._bucket.translate_errors("get_object"):
            response = self._bucket.get(key, start, length)
            return bytes(response[0].read()) if response else None

    def _new_key(self) -> str:
        self._keys.append(f"probe/{secrets.token_hex(8)}")
        return self._keys[-1]


def _is_rejected(status: int) -> bool:
    """Whether the store rejected a request. A failure of the store itself proves nothing."""
    return 400 <= status < 500


def _send(method: str, url: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> int:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=TIMEOUT_SECONDS)
    try:
        connection.request(method, f"{parts.path}?{parts.query}", body or None, dict(headers or {}))
        return connection.getresponse().status
    finally:
        connection.close()
