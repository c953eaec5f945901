"""`Abilities`: what this store really does, found out by trying it under `probe/`, once in a server's life.

    ranges            a ranged read gives that range. Without it there is no registry on this store.
    copies            CopyObject works
    conditional       a PUT with `If-None-Match: *` fails when the key exists
    conditional_copy  so does a CopyObject
    sums              a PUT whose body is not what its `x-amz-checksum-sha256` says is refused, and HEAD tells the sum
    links             a signed GET link works, an altered or expired one does not
    sum_links         a signed PUT link can be bound to the SHA-256 of the body
    once_links        a signed PUT link can be bound to a key that does not exist yet
    parts             multipart uploads by signed links work and can be listed
    bound_parts       so do uploads in one part that are bound to its SHA-256; they replace a key at once, or make it

Invariants
- Every answer comes from an outcome that was looked at, never from a header that names a product.
- What a store lacks has a safe fallback in `store` (through the server, hash again, copy); only ranges have none.
- Look-alikes that say yes to everything (also to a wrong sum or an expired link) end up with `False`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlsplit

from registry.errors import Unavailable
from registry.server.storage.s3.bucket import Bucket, Unwilling

SECONDS = 60
PROBE_TIMEOUT_SECONDS = 20
ATTEMPTS = 3
"""So often is tried what did not work, since networks and stores stumble and an answer lasts for a server's life."""


@dataclass(frozen=True, slots=True)
class Abilities:
    ranges: bool
    copies: bool
    conditional: bool
    conditional_copy: bool
    sums: bool
    links: bool
    sum_links: bool
    once_links: bool
    parts: bool
    bound_parts: bool


def of(bucket: Bucket) -> Abilities:
    """Try everything. `Unavailable` when the store is not there, refuses us, or cannot read a range."""
    key = f"probe/{secrets.token_hex(8)}"
    tried = _Trial(bucket, key)
    try:
        bucket.put(key, b"probe")
        if not tried.works(tried.ranges):
            bucket.head(key)  # tells of a store that is away
            raise Unavailable("STORE_UNAVAILABLE", f"bucket '{bucket.name}' is in a store that cannot read ranges")
        links = tried.works(tried.links)
        found = Abilities(
            ranges=True,
            copies=tried.works(tried.copies),
            conditional=tried.works(tried.conditional),
            conditional_copy=tried.works(tried.conditional_copy),
            sums=tried.works(tried.sums),
            links=links,
            sum_links=links and tried.works(tried.sum_links),
            once_links=links and tried.works(tried.once_links),
            parts=links and tried.works(tried.parts),
            bound_parts=links and tried.works(tried.bound_parts),
        )
        bucket.head(key)  # a store that went away meanwhile has not shown what it cannot do
        return found
    finally:
        tried.clean()


class _Trial:
    """The attempts, and the keys that they leave behind."""

    def __init__(self, bucket: Bucket, key: str) -> None:
        self._bucket = bucket
        self._key = key
        self._keys = [key]

    def works(self, attempt: Callable[[], bool]) -> bool:
        """What the store refuses each time is an ability that it lacks; a single fault is not."""
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
        return self._content(self._key, 1, 3) == b"rob"

    def copies(self) -> bool:
        copy = self._fresh()
        self._copy(copy)
        return self._content(copy) == b"probe"

    def conditional(self) -> bool:
        key = self._fresh()
        return self._bucket.put(key, b"first", IfNoneMatch="*") and not self._bucket.put(key, b"other", IfNoneMatch="*")

    def conditional_copy(self) -> bool:
        copy = self._fresh()
        self._copy(copy)
        source = {"Bucket": self._bucket.name, "Key": self._bucket.prefix + self._key}
        return not self._bucket.create(
            "copy_object", Key=self._bucket.prefix + copy, CopySource=source, IfNoneMatch="*"
        )

    def sums(self) -> bool:
        right, wrong = self._fresh(), self._fresh()
        self._bucket.put(right, b"right", ChecksumSHA256=sum_of(b"right"))
        told = (self._bucket.head(right) or {}).get("ChecksumSHA256") == sum_of(b"right")
        try:
            self._bucket.put(wrong, b"wrong", ChecksumSHA256=sum_of(b"right"))
        except Unwilling:
            return told and self._bucket.head(wrong) is None
        return False

    def links(self) -> bool:
        link = self._link("get_object", self._key)
        altered = link[:-1] + ("0" if link[-1] != "0" else "1")
        identity = self._bucket.identity()
        now = datetime.now(UTC)
        good = (link, signed_at(now, link, *identity))
        bad = (altered, signed_at(now - timedelta(hours=2), link, *identity))
        return all(_send("GET", url) == 200 for url in good) and all(_refused(_send("GET", url)) for url in bad)

    def sum_links(self) -> bool:
        right, wrong = self._fresh(), self._fresh()
        header = {"x-amz-checksum-sha256": sum_of(b"right")}
        to_right, to_wrong = (
            self._link("put_object", key, ChecksumSHA256=sum_of(b"right"), ContentLength=5) for key in (right, wrong)
        )
        taken = _send("PUT", to_right, b"right", header)
        refused = all(_refused(_send("PUT", to_wrong, b"wrong", given)) for given in (header, {}))
        return taken == 200 and refused and self._bucket.head(wrong) is None

    def once_links(self) -> bool:
        key = self._fresh()
        link = self._link("put_object", key, IfNoneMatch="*")
        header = {"If-None-Match": "*"}
        first, second = _send("PUT", link, b"first", header), _send("PUT", link, b"other", header)
        bare = _send("PUT", link, b"other")
        return first == 200 and _refused(second) and _refused(bare) and self._content(key) == b"first"

    def parts(self) -> bool:
        key = self._fresh()
        where = {"Key": self._bucket.prefix + key}
        upload = self._bucket.call("create_multipart_upload", **where)["UploadId"]
        to_part = self._link("upload_part", key, UploadId=upload, PartNumber=1, ContentLength=4)
        sent = _send("PUT", to_part, b"part")
        open_now = self._bucket.call("list_multipart_uploads", Prefix=where["Key"]).get("Uploads", [])
        parts = self._bucket.call("list_parts", **where, UploadId=upload).get("Parts", [])
        done = {"Parts": [{"PartNumber": p["PartNumber"], "ETag": p["ETag"]} for p in parts]}
        self._bucket.call("complete_multipart_upload", **where, UploadId=upload, MultipartUpload=done)
        late = _send("PUT", to_part, b"late")
        listed = [u["UploadId"] for u in open_now] == [upload] and [p["Size"] for p in parts] == [4]
        return sent == 200 and listed and _refused(late) and self._content(key) == b"part"

    def bound_parts(self) -> bool:
        key, told = self._fresh(), sum_of(b"right")
        self._bucket.put(key, b"older")
        where = {"Key": self._bucket.prefix + key}
        upload = self._bucket.call("create_multipart_upload", **where, ChecksumAlgorithm="SHA256")["UploadId"]
        header = {"x-amz-checksum-sha256": told}
        link = self._link("upload_part", key, UploadId=upload, PartNumber=1, ContentLength=5, ChecksumSHA256=told)
        refused = all(_refused(_send("PUT", link, b"wrong", given)) for given in (header, {}))
        none_yet = not self._bucket.call("list_parts", **where, UploadId=upload).get("Parts")
        sent = _send("PUT", link, b"right", header)
        parts = self._bucket.call("list_parts", **where, UploadId=upload).get("Parts", [])
        unseen = self._content(key) == b"older"
        done = {"Parts": [{"PartNumber": 1, "ETag": p["ETag"], "ChecksumSHA256": told} for p in parts]}
        self._bucket.call("complete_multipart_upload", **where, UploadId=upload, MultipartUpload=done)
        late = _refused(_send("PUT", link, b"right", header))
        sizes = [p["Size"] for p in parts] == [5]
        return refused and none_yet and sent == 200 and unseen and sizes and late and self._content(key) == b"right"

    def _link(self, operation: str, key: str, **parameters: Any) -> str:
        return self._bucket.link(operation, SECONDS, {"Key": self._bucket.prefix + key, **parameters}, internal=True)

    def _content(self, key: str, start: int = 0, length: int = 100) -> bytes | None:
        with self._bucket.reached("get_object"):
            found = self._bucket.get(key, start, length)
            return bytes(found[0].read()) if found else None

    def _copy(self, key: str) -> None:
        source = {"Bucket": self._bucket.name, "Key": self._bucket.prefix + self._key}
        self._bucket.call("copy_object", Key=self._bucket.prefix + key, CopySource=source)

    def _fresh(self) -> str:
        self._keys.append(f"probe/{secrets.token_hex(8)}")
        return self._keys[-1]


def sum_of(data: bytes) -> str:
    """SHA-256 as S3 writes it: base64."""
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def _refused(status: int) -> bool:
    """A refusal, which is no fault of the store's own: those prove nothing."""
    return 400 <= status < 500


def _send(method: str, url: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> int:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=PROBE_TIMEOUT_SECONDS)
    try:
        connection.request(method, f"{parts.path}?{parts.query}", body or None, dict(headers or {}))
        return connection.getresponse().status
    finally:
        connection.close()


def signed_at(moment: datetime, link: str, credentials: Any, region: str) -> str:
    """The GET link as it was rightly signed at that moment for one minute (AWS Signature Version 4, query form)."""
    parts = urlsplit(link)
    scope = f"{moment:%Y%m%d}/{region}/s3/aws4_request"
    query = {
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"{credentials.access_key}/{scope}",
        "X-Amz-Date": f"{moment:%Y%m%dT%H%M%SZ}",
        "X-Amz-Expires": "60",
        "X-Amz-SignedHeaders": "host",
    }
    if credentials.token:
        query["X-Amz-Security-Token"] = credentials.token
    encoded = "&".join(f"{quote(k, safe='')}={quote(v, safe='')}" for k, v in sorted(query.items()))
    canonical = f"GET\n{parts.path}\n{encoded}\nhost:{parts.netloc}\n\nhost\nUNSIGNED-PAYLOAD"
    to_sign = f"AWS4-HMAC-SHA256\n{query['X-Amz-Date']}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{credentials.secret_key}".encode()
    for word in (*scope.split("/"), to_sign):
        key = hmac.new(key, word.encode(), hashlib.sha256).digest()
    return f"{parts.scheme}://{parts.netloc}{parts.path}?{encoded}&X-Amz-Signature={key.hex()}"
