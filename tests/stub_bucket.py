"""`StubBucket`: an S3 bucket in a dictionary, in a store that ignores what it does not verify.

Like Ceph's gateway it checks signed headers only, and keeps `x-amz-meta-` headers that nobody signed. It also keeps a
SHA-256 that nobody signed, if it is that of the bytes.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from registry.digest import Digest
from registry.server.storage.s3.bucket import (
    CHECKSUM_HEADER,
    Bucket,
    CircuitBreaker,
    ConditionFailed,
    ObjectMissing,
    checksum_of,
)

META = "x-amz-meta-"


@dataclass
class StoredObject:
    data: bytes
    metadata: dict[str, str] = field(default_factory=dict)
    modified_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    checksum: str = ""

    @property
    def etag(self) -> str:
        return f'"{hashlib.md5(self.data).hexdigest()}"'


class StubBucket(Bucket):
    """The operations that `S3Blobs` needs without multipart uploads."""

    def __init__(self) -> None:
        self.name, self.prefix = "stub", ""
        self.objects: dict[str, StoredObject] = {}
        self._breaker = CircuitBreaker(self.name)
        self.on_call: Callable[[str, str], object] = lambda _operation, _key: None

    def presign(self, operation: str, seconds: int, *, internal: bool = False, **parameters: Any) -> str:  # noqa: ARG002
        return f"http://store.invalid/{quote(parameters['Key'])}?once={int('IfNoneMatch' in parameters)}"

    def send(self, url: str, data: bytes, headers: dict[str, str]) -> int:
        """PUT an object through a presigned link, as a client does; return the status."""
        key, once = urlsplit(url).path[1:], parse_qs(urlsplit(url).query)["once"] == ["1"]
        if once and key in self.objects:
            return 412
        checksum = headers.get(CHECKSUM_HEADER, "")
        if checksum not in ("", checksum_of(Digest.of(data))):
            return 400
        metadata = {name[len(META) :]: value for name, value in headers.items() if name.startswith(META)}
        self.objects[key] = StoredObject(data, metadata, checksum=checksum)
        return 200

    def age(self, by: timedelta) -> None:
        """Make every object older."""
        for stored in self.objects.values():
            stored.modified_at -= by

    def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        self.on_call(operation, parameters.get("Key", ""))
        result: dict[str, Any] = getattr(self, f"_{operation}")(**parameters)
        return result

    def list_pages(self, operation: str, **parameters: Any) -> Iterator[dict[str, Any]]:
        if operation == "list_objects_v2":
            keys = sorted(key for key in self.objects if key.startswith(parameters["Prefix"]))
            yield {
                "Contents": [
                    {"Key": key, "Size": len(self.objects[key].data), "LastModified": self.objects[key].modified_at}
                    for key in keys
                ]
            }

    def _find(self, key: str) -> StoredObject:
        if key not in self.objects:
            raise ObjectMissing("STORE_UNAVAILABLE", f"{key} does not exist")
        return self.objects[key]

    def _head_object(self, Key: str, **_: Any) -> dict[str, Any]:
        stored = self._find(Key)
        return {
            "ContentLength": len(stored.data),
            "ETag": stored.etag,
            "LastModified": stored.modified_at,
            "Metadata": stored.metadata,
            **({"ChecksumSHA256": stored.checksum} if stored.checksum else {}),
        }

    def _get_object(self, Key: str, Range: str, **_: Any) -> dict[str, Any]:
        stored = self._find(Key)
        start, end = map(int, Range.removeprefix("bytes=").split("-"))
        data = stored.data[start : end + 1]
        return {"Body": io.BytesIO(data), "ContentRange": f"bytes {start}-/{len(stored.data)}"}

    def _put_object(self, Key: str, Body: bytes, IfNoneMatch: str = "", **parameters: Any) -> dict[str, Any]:
        _require(not (IfNoneMatch and Key in self.objects))
        self.objects[Key] = StoredObject(Body, parameters.get("Metadata", {}))
        return {}

    def _copy_object(self, Key: str, CopySource: str, **_: Any) -> dict[str, Any]:
        self.objects[Key] = self._find(CopySource)
        return {}

    def _delete_object(self, Key: str, **_: Any) -> dict[str, Any]:
        self.objects.pop(Key, None)
        return {}


def _require(condition: bool) -> None:
    if not condition:
        raise ConditionFailed("STORE_UNAVAILABLE", "PreconditionFailed")
