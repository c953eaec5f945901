"""`ObjectSink`: one blob that comes through this server: a single PUT if it is small, else an upload in parts.

Invariants
- Memory stays at one part, whatever the size; what is wrong or broken off leaves nothing under the key.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from typing import Any

from registry.server.storage.blobs import Bytes, Meter, Stat
from registry.server.storage.s3 import capabilities, uploads
from registry.server.storage.s3.bucket import Bucket

SINK_PART_BYTES = 16 * 2**20


class ObjectSink:
    """A sink of the protocol `registry.server.storage.blobs.Sink`."""

    def __init__(self, bucket: Bucket, key: str, *, sums: bool, limit_bytes: int) -> None:
        self._bucket = bucket
        self._sums = sums
        self._key = key
        self._meter = Meter(key, limit_bytes)
        self._waiting = bytearray()
        self._upload: uploads.Upload | None = None

    def write(self, chunk: Bytes) -> None:
        self._meter.add(chunk)
        self._waiting += chunk
        if len(self._waiting) >= SINK_PART_BYTES:
            self._upload = self._upload or uploads.Upload.begin(self._bucket, self._key)
            self._upload.send(bytes(self._waiting))
            self._waiting = bytearray()

    def finish(self) -> Stat:
        self._meter.check()
        if self._upload is None:
            data = bytes(self._waiting)
            told: dict[str, Any] = {"ContentMD5": base64.b64encode(hashlib.md5(data).digest()).decode()}  # noqa: S324
            if self._sums:
                told = {"ChecksumSHA256": capabilities.sum_of(data)}
            self._bucket.put(self._key, data, **told)
        else:
            if self._waiting:
                self._upload.send(bytes(self._waiting))
            self._upload.complete()
        return Stat(self._key, self._meter.size_bytes, self._meter.digest, datetime.now(UTC))

    def abort(self) -> None:
        upload, self._upload = self._upload, None
        self._waiting = bytearray()
        if upload is not None:
            upload.abort()
