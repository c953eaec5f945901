"""`Bucket`: one bucket of an S3 store through boto3, which makes control calls and signs links but moves no large file.

Invariants
- Two endpoints: this server calls the internal one; links are signed for the public one.
- Every call has a time limit and a bounded number of retries; a store that cannot serve is `Unavailable`
  (STORE_UNAVAILABLE) with a sentence that names the bucket and the call, never a botocore exception.
- Signatures are version 4. Checksums are sent only where we ask for them: look-alikes refuse botocore's own.
- Keys are ours (`blobs/…`, `staging/…`, `probe/…`); the prefix of the setting is put before them here and nowhere else.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ConnectTimeoutError, ReadTimeoutError
from botocore.parsers import ResponseParserError

from registry.errors import Invalid, Unavailable
from registry.server.storage.blobs import CHUNK_BYTES, absent
from registry.server.storage.s3.circuit_breaker import Outage

READ_BYTES = 32 * 2**20
"""One ranged read. SeaweedFS streams a larger one at a tenth of the speed when its reader cache is small."""
CONNECT_SECONDS = 5
READ_SECONDS = 10
"""How long the store may think before it is asked again. All attempts together end before a client's patience does."""
LONG_READ_SECONDS = 60
"""How long where it moves bytes itself, which it is asked for twice at most."""
LONG = frozenset({"copy_object", "upload_part_copy", "complete_multipart_upload"})
ATTEMPTS_LIMIT = 4
CONNECTIONS = 32
RETRY_AFTER_SECONDS = 5
_ABSENT = frozenset({"404", "NoSuchKey", "NotFound", "NoSuchUpload"})
_TAKEN = frozenset({"412", "409", "PreconditionFailed", "ConditionalRequestConflict"})
_SILENT = (ReadTimeoutError, ConnectTimeoutError)
_BEHIND = frozenset({"416", "InvalidRange"})
_REFUSED = frozenset({"AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId", "403"})


class Bucket:
    """A bucket and the prefix in it that is ours. Thread-safe: boto3's clients are, and they share one pool each."""

    def __init__(self, name: str, prefix: str, session: Any, internal: Any, patient: Any, public: Any) -> None:
        self.name = name
        self.prefix = prefix
        self._session = session
        self._internal = internal
        self._patient = patient
        self._public = public
        self._outage = Outage()

    @classmethod
    def at(cls, url: str, *, endpoint: str = "", public_endpoint: str = "") -> Bucket:
        """The bucket of `s3://BUCKET/PREFIX`. Credentials and region come from where boto3 looks for them."""
        parts = urlsplit(url)
        if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
            raise Invalid(
                "SETTING_INVALID",
                f"REGISTRY_BLOBS or REGISTRY_SECOND_COPY: {url[:120]!r} is neither 'file:///FOLDER' nor 's3://BUCKET/PREFIX'",
            )
        prefix = parts.path.strip("/")
        session = boto3.session.Session()
        internal = _client(session, endpoint)
        patient = _client(session, endpoint, read_seconds=LONG_READ_SECONDS, attempts=2)
        public = internal if public_endpoint in ("", endpoint) else _client(session, public_endpoint)
        return cls(parts.netloc, f"{prefix}/" if prefix else "", session, internal, patient, public)

    # ---------------------------------------------------------------- one object
    def head(self, key: str) -> dict[str, Any] | None:
        """What the store says of an object, with its checksum if it keeps one; None if there is no such object."""
        return self.find("head_object", Key=self.prefix + key, ChecksumMode="ENABLED")

    def get(self, key: str, start: int, length: int) -> tuple[Any, int] | None:
        """A stream of what there is of this range, and the size of the whole object; None if there is no object."""
        try:
            found = self.find("get_object", Key=self.prefix + key, Range=f"bytes={start}-{start + max(length, 1) - 1}")
        except _Behind:
            head = self.head(key)
            return (io.BytesIO(), int(head["ContentLength"])) if head else None
        if found is None:
            return None
        size = str(found.get("ContentRange", "")).rpartition("/")[2] or found["ContentLength"]
        return found["Body"], int(size)

    def stream(self, key: str, start: int, length: int) -> Iterator[bytes] | None:
        """The bytes of this range in chunks, however many requests they take; None if there is no object."""
        found = self.get(key, start, min(READ_BYTES, length))
        return None if found is None else self._chunks(key, found[0], start, min(found[1], start + length))

    def _chunks(self, key: str, body: Any, start: int, end: int) -> Iterator[bytes]:
        while start < end:
            left = min(READ_BYTES, end - start)
            try:
                with self.reached("get_object"):
                    while left and (chunk := body.read(min(CHUNK_BYTES, left))):
                        start, left = start + len(chunk), left - len(chunk)
                        yield chunk
            finally:
                body.close()
            if left:
                raise Unavailable("STORE_UNAVAILABLE", f"{key} broke off {end - start} bytes before its end")
            if start < end:
                found = self.get(key, start, min(READ_BYTES, end - start))
                if found is None:
                    absent(key)
                body = found[0]

    def put(self, key: str, data: bytes, **parameters: Any) -> bool:
        """Write an object; False when a condition among the parameters does not hold."""
        return self.create("put_object", Key=self.prefix + key, Body=data, **parameters)

    def delete(self, key: str) -> None:
        self.call("delete_object", Key=self.prefix + key)

    # ---------------------------------------------------------------- calls
    def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        with self.reached(operation):
            answer: dict[str, Any] = self._asked(operation, parameters)
            return answer

    def find(self, operation: str, **parameters: Any) -> dict[str, Any] | None:
        """The same, with None for what is not there."""
        try:
            with self.reached(operation):
                answer: dict[str, Any] = self._asked(operation, parameters)
                return answer
        except _Absent:
            return None

    def create(self, operation: str, **parameters: Any) -> bool:
        """The same, with False for a condition that does not hold, or that another writer holds just now."""
        try:
            with self.reached(operation):
                self._asked(operation, parameters)
                return True
        except _Taken:
            return False

    def copied(self, **parameters: Any) -> bool:
        """Copy an object. False when its source is not there; a condition that does not hold is fine."""
        try:
            self.create("copy_object", **parameters)
        except _Absent:
            return False
        return True

    def _asked(self, operation: str, parameters: dict[str, Any]) -> Any:
        self._unless_silent(operation)
        client = self._patient if operation in LONG else self._internal
        answer = getattr(client, operation)(Bucket=self.name, **parameters)
        self._outage.note(answered=True)
        return answer

    def _unless_silent(self, operation: str) -> None:
        if self._outage.refuses():
            told = self._unavailable(operation, "it did not answer a moment ago")
            raise Unavailable(*told, retry_after_seconds=RETRY_AFTER_SECONDS)

    def pages(self, operation: str, **parameters: Any) -> Iterator[dict[str, Any]]:
        self._unless_silent(operation)
        with self.reached(operation):
            yield from self._internal.get_paginator(operation).paginate(Bucket=self.name, **parameters)

    def link(self, operation: str, seconds: int, parameters: dict[str, Any], *, internal: bool = False) -> str:
        """A signed URL at the public endpoint (or the internal one). No request is made."""
        given = {"Bucket": self.name, **parameters}
        client = self._internal if internal else self._public
        with self.reached("sign a link"):
            return str(client.generate_presigned_url(operation, Params=given, ExpiresIn=seconds))

    def identity(self) -> tuple[Any, str]:
        """The credentials that sign now, and the region that they sign for."""
        with self.reached("find credentials"):
            return self._session.get_credentials().get_frozen_credentials(), self._internal.meta.region_name

    @contextmanager
    def reached(self, operation: str) -> Iterator[None]:
        """botocore's exceptions become ours."""
        try:
            yield
        except ClientError as e:
            self._outage.note(answered=True)
            code = str(e.response.get("Error", {}).get("Code", ""))
            if code in _ABSENT:
                raise _Absent(*self._unavailable(operation, code)) from e
            if code in _TAKEN:
                raise _Taken(*self._unavailable(operation, code)) from e
            if code in _BEHIND:
                raise _Behind(*self._unavailable(operation, code)) from e
            status = e.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            kind = Unwilling if 400 <= status < 500 else Unavailable
            raise kind(*self._unavailable(operation, code), retry_after_seconds=RETRY_AFTER_SECONDS) from e
        except (BotoCoreError, ResponseParserError, ValueError) as e:  # the last two: an answer that makes no sense
            if isinstance(e, _SILENT):
                self._outage.note(answered=False)
            text = str(e).split("\n", 1)[0][:200]
            raise Unavailable(*self._unavailable(operation, text), retry_after_seconds=RETRY_AFTER_SECONDS) from e

    def _unavailable(self, operation: str, why: str) -> tuple[str, str]:
        hint = "; are the credentials right?" if why in _REFUSED else ""
        hint = "; create it first" if why == "NoSuchBucket" else hint
        return "STORE_UNAVAILABLE", f"bucket '{self.name}' cannot serve {operation} now: {why}{hint}"


class Unwilling(Unavailable):
    """The store is there and refuses this call: a 4xx that has no other meaning here."""


class _Absent(Unavailable):
    """The object or the upload is not there."""


class _Behind(Unavailable):
    """The range begins behind the end."""


class _Taken(Unavailable):
    """A condition of the request does not hold."""


def _client(session: Any, endpoint: str, *, read_seconds: float = 0, attempts: int = ATTEMPTS_LIMIT) -> Any:
    config = Config(
        signature_version="s3v4",
        connect_timeout=CONNECT_SECONDS,
        read_timeout=read_seconds or READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": attempts},
        max_pool_connections=CONNECTIONS,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path" if endpoint else "auto"},
    )
    try:
        region = session.region_name or "us-east-1"
        return session.client("s3", endpoint_url=endpoint or None, region_name=region, config=config)
    except (BotoCoreError, ValueError) as e:
        raise Invalid("SETTING_INVALID", f"REGISTRY_S3_ENDPOINT: {endpoint[:120]!r} cannot be used: {e}") from e
