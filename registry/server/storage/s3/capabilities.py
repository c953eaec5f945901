"""`probe`: asks a store for the four things that direct transfers need, under `probe/`, once in the life of a server.

- Every result comes from an observed outcome, never from a header that names a product.
- A store that lacks one of them is used through this server only. One that accepts everything, also wrong checksums or
  expired links, ends up so.
"""

import contextlib
import http.client
import secrets
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from registry.digest import Digest
from registry.errors import Unavailable
from registry.server.storage.blobs import RequestRejected
from registry.server.storage.s3.bucket import CHECKSUM_HEADER, Bucket, checksum_of
from registry.server.storage.s3.uploads import MultipartUpload

TIMEOUT_SECONDS = 20
LINK_SECONDS = 60
ATTEMPTS = 3
"""How often to try what failed: networks and stores have hiccups, and a result lasts for the life of a server."""
RIGHT = checksum_of(Digest.of(b"right"))


def probe(bucket: Bucket) -> dict[str, bool]:
    """What a store can do, by name. `Unavailable` if it is away or rejects our credentials."""
    attempt = _Probe(bucket)
    try:
        bucket.put(attempt.key, b"probe")
        capabilities = {
            "conditional_puts": attempt.works(attempt.conditional_puts),
            "sha256_checksums": attempt.works(attempt.sha256_checksums),
            "presigned_links": attempt.works(attempt.presigned_links),
            "ranges": attempt.works(attempt.ranges),
        }
        bucket.head(attempt.key)  # raises if the store went away meanwhile: then the results mean nothing
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

    def conditional_puts(self) -> bool:
        """A PUT that may only create fails if the key exists."""
        key = self._new_key()
        return self._bucket.put(key, b"first", IfNoneMatch="*") and not self._bucket.put(key, b"other", IfNoneMatch="*")

    def sha256_checksums(self) -> bool:
        """A PUT that contradicts its SHA-256 fails, and HEAD returns what the store has verified."""
        right, wrong = self._new_key(), self._new_key()
        self._bucket.put(right, b"right", ChecksumSHA256=RIGHT)
        returned = (self._bucket.head(right) or {}).get("ChecksumSHA256") == RIGHT
        try:
            self._bucket.put(wrong, b"wrong", ChecksumSHA256=RIGHT)
        except RequestRejected:
            return returned and self._bucket.head(wrong) is None
        return False

    def ranges(self) -> bool:
        """A ranged read returns that range."""
        return self._read(self.key, 1, 3) == b"rob"

    def presigned_links(self) -> bool:
        """A link does what was signed and nothing else: to read, to write a blob, and to write a part."""
        return (
            self._links_read() and self._links_take_no_other_headers() and self._links_write() and self._links_parts()
        )

    def _links_read(self) -> bool:
        link, expired = (self._presign("get_object", self.key, seconds=seconds) for seconds in (LINK_SECONDS, 0))
        altered = link[:-1] + ("0" if link[-1] != "0" else "1")
        return _send("GET", link) == 200 and all(_is_rejected(_send("GET", url)) for url in (altered, expired))

    def _links_take_no_other_headers(self) -> bool:
        """With `x-amz-copy-source` a client would copy any object of the bucket."""
        key = self._new_key()
        link = self._presign("put_object", key)
        source = quote(f"/{self._bucket.name}/{self._bucket.prefix}{self.key}")
        forged = ({"x-amz-meta-upload": "forged"}, {"x-amz-copy-source": source})
        return all(_is_rejected(_send("PUT", link, b"", headers)) for headers in forged) and not self._bucket.head(key)

    def _links_write(self) -> bool:
        """Only bytes with the SHA-256 of the link, only where nothing is, and only with the headers that say so."""
        key = self._new_key()
        link = self._presign("put_object", key, ChecksumSHA256=RIGHT, ContentLength=5, IfNoneMatch="*")
        headers = {CHECKSUM_HEADER: RIGHT, "If-None-Match": "*"}
        wrong = (_send("PUT", link, b"wrong", headers), _send("PUT", link, b"wrong"), _send("PUT", link, b"right"))
        if not all(map(_is_rejected, wrong)) or self._bucket.head(key) is not None:
            return False
        first, second = _send("PUT", link, b"right", headers), _send("PUT", link, b"right", headers)
        return first == 200 and _is_rejected(second) and self._read(key) == b"right"

    def _links_parts(self) -> bool:
        """Parts are listed, nothing is visible before they are complete, and no link writes afterwards."""
        key, copy = self._new_key(), self._new_key()
        upload = MultipartUpload.begin(self._bucket, key)
        link = self._presign("upload_part", key, UploadId=upload.id, PartNumber=1, ContentLength=4)
        sent, open_uploads = _send("PUT", link, b"part"), MultipartUpload.list_open(self._bucket, key)
        invisible, parts = self._bucket.head(key) is None, upload.list_parts()
        upload.etags = [etag for etag, _ in parts.values()]
        upload.complete()
        late = _send("PUT", link, b"late")
        self._bucket.copy(key, copy)
        lists_right = [u.id for u in open_uploads] == [upload.id] and [size for _, size in parts.values()] == [4]
        return sent == 200 and invisible and lists_right and _is_rejected(late) and self._read(copy) == b"part"

    def _presign(self, operation: str, key: str, *, seconds: int = LINK_SECONDS, **parameters: Any) -> str:
        return self._bucket.presign(operation, seconds, internal=True, Key=key, **parameters)

    def _read(self, key: str, start: int = 0, length: int = 100) -> bytes:
        return b"".join(self._bucket.stream(key, start, length))

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
