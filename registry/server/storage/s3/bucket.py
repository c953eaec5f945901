"""`Bucket`: one bucket of an S3 store through boto3, for control calls, presigned URLs and small objects.

- The server calls the internal endpoint; URLs are presigned for the public one.
- Every call has a timeout and a limit of retries. A store that cannot serve raises `Unavailable` (STORE_UNAVAILABLE)
  in plain words, never an exception of botocore; the log names the bucket and the call.
- Signatures are version 4. Checksums are sent only where we ask for them: S3-compatible stores reject botocore's own.
- The prefix of the setting is added to keys here, and nowhere else.
"""

import base64
import hashlib
import io
import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ReadTimeoutError,
)
from botocore.exceptions import ConnectionError as NoConnectionError
from botocore.parsers import ResponseParserError

from registry.digest import Digest
from registry.errors import Invalid, Unavailable
from registry.server.settings import hide_secrets
from registry.server.storage.blobs import RequestRejected, invalid_store, raise_unknown
from registry.versions.files import CHUNK_BYTES

_LOG = logging.getLogger("registry.server")
READ_BYTES = 32 * 2**20
"""Bytes of one ranged read. SeaweedFS streams larger ones at a tenth of the speed if its reader cache is small."""
CONNECT_SECONDS = 5
READ_SECONDS = 10
"""Timeout of one attempt. All attempts together are shorter than the timeout of a client."""
LONG_READ_SECONDS = 60
"""Timeout of calls in which the store itself moves bytes; these are tried twice at most."""
QUICK_SECONDS = 3
"""Timeout of the reads of pages (`is_quick`), which are tried once: a page shows its other parts meanwhile."""
LONG_CALLS = frozenset({"copy_object", "complete_multipart_upload"})
ATTEMPTS_LIMIT = 4
CONNECTIONS = 32
RETRY_AFTER_SECONDS = 5
NEXT_STEP = "try again once the store responds"
PAUSE_SECONDS = 5.0
"""How long calls are rejected after one that timed out."""
CHECKSUM_HEADER = "x-amz-checksum-sha256"
_TIMEOUTS = (ReadTimeoutError, ConnectTimeoutError)
_NO_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, ProfileNotFound)
"""botocore looks for credentials once for each client: another try cannot find what is missing."""
_DENIED = frozenset({"AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId", "403"})
_NO_OUTAGE = frozenset({"SlowDown", "NotImplemented", "501"})
"""Of the errors with a status from 500 on, those that are no outage: fewer requests, or others, would be served."""


class ObjectMissing(Unavailable):
    """The object or the upload does not exist."""


class RangeNotSatisfiable(Unavailable):
    """The range begins after the end of the object."""


class ConditionFailed(Unavailable):
    """A condition of the request does not hold."""


_ERRORS: dict[str, type[Unavailable]] = {
    **dict.fromkeys(("404", "NoSuchKey", "NotFound", "NoSuchUpload"), ObjectMissing),
    **dict.fromkeys(("412", "409", "PreconditionFailed", "ConditionalRequestConflict"), ConditionFailed),
    **dict.fromkeys(("416", "InvalidRange"), RangeNotSatisfiable),
}
"""The store's error code → our exception."""


class Bucket:
    """A bucket and our prefix in it. Thread-safe, as boto3's clients are; each client has one connection pool."""

    def __init__(self, url: str, *, endpoint: str = "", public_endpoint: str = "", is_quick: bool = False) -> None:
        """Open `s3://BUCKET/PREFIX`. boto3 finds credentials and region in its usual places."""
        parts = urlsplit(url)
        if parts.scheme != "s3" or not re.fullmatch(r"[^@:]+", parts.netloc) or parts.query or parts.fragment:
            raise invalid_store(url)
        self.name = parts.netloc
        self.prefix = parts.path.strip("/") + "/" if parts.path.strip("/") else ""
        session = _open_session()
        seconds, attempts = (QUICK_SECONDS, 1) if is_quick else (READ_SECONDS, ATTEMPTS_LIMIT)
        self._internal = _create_client(session, endpoint, read_seconds=seconds, attempts=attempts)
        self._patient = _create_client(session, endpoint, read_seconds=LONG_READ_SECONDS, attempts=2)
        same = public_endpoint in ("", endpoint)
        self._public = self._internal if same else _create_client(session, public_endpoint)
        self._breaker = CircuitBreaker(self.name)

    def head(self, key: str) -> dict[str, Any] | None:
        """Return the headers of an object, with its checksum if the store has one; None if it does not exist."""
        return self.call_if_exists("head_object", Key=key, ChecksumMode="ENABLED")

    def stream(self, key: str, start: int, length: int, *, in_ranges: bool = True) -> Iterator[bytes]:
        """Yield the range as far as it exists, by requests of `READ_BYTES`; `NotFound` by this call.

        `in_ranges=False`: by one request of the whole object, for a store that cannot read ranges.
        """
        first = self._get_range(key, start, min(READ_BYTES, length)) if in_ranges else self._get_whole(key)
        if first is None:
            raise_unknown(key)
        body, size_bytes = first
        end = min(size_bytes, start + length)
        return self._read_ranges(key, body, start, end) if in_ranges else self._read_whole(body, start, end)

    def _get_range(self, key: str, start: int, length: int) -> tuple[Any, int] | None:
        """The body of a range and the size of the object; None if it does not exist."""
        limits = {"Range": f"bytes={start}-{start + max(length, 1) - 1}"}
        try:
            response = self.call_if_exists("get_object", Key=key, **limits)
        except RangeNotSatisfiable:
            return io.BytesIO(), 0
        if response is None:
            return None
        size = str(response.get("ContentRange", "")).rpartition("/")[2] or response["ContentLength"]
        return response["Body"], int(size)

    def _read_ranges(self, key: str, body: Any, start: int, end: int) -> Iterator[bytes]:
        while start < end:
            length = min(READ_BYTES, end - start)
            yield from self._read_body(body, length)
            start += length
            if start < end:
                following = self._get_range(key, start, min(READ_BYTES, end - start))
                if following is None:
                    raise_unknown(key)
                body = following[0]

    def _get_whole(self, key: str) -> tuple[Any, int] | None:
        response = self.call_if_exists("get_object", Key=key)
        return (response["Body"], int(response["ContentLength"])) if response else None

    def _read_whole(self, body: Any, start: int, end: int) -> Iterator[bytes]:
        position = 0
        for chunk in self._read_body(body, end):
            piece = chunk[max(start - position, 0) :]
            position += len(chunk)
            if piece:
                yield piece

    def _read_body(self, body: Any, length: int) -> Iterator[bytes]:
        try:
            while length > 0:
                with self.translate_errors("get_object"):
                    chunk = body.read(min(CHUNK_BYTES, length))
                if not chunk:
                    raise Unavailable("STORE_UNAVAILABLE", f"a blob ended {length} bytes too early")
                length -= len(chunk)
                yield chunk
        finally:
            body.close()

    def put(self, key: str, data: bytes | bytearray, **parameters: Any) -> bool:
        """Write an object whose bytes the store compares with an MD5, which every store does.

        False if a condition among the parameters does not hold.
        """
        try:
            self.call("put_object", Key=key, Body=data, ContentMD5=md5_of(data), **parameters)
        except ConditionFailed:
            return False
        return True

    def copy(self, source_key: str, key: str, **conditions: Any) -> None:
        """Copy an object. `ObjectMissing` if there is no source."""
        self.call("copy_object", Key=key, CopySource=source_key, MetadataDirective="REPLACE", **conditions)

    def delete(self, key: str) -> None:
        """Delete an object if it exists."""
        self.call("delete_object", Key=key)

    def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """Call an operation of the S3 API. The bucket is added, and the prefix to keys."""
        with self.translate_errors(operation):
            self._check_breaker()
            client = self._patient if operation in LONG_CALLS else self._internal
            response: dict[str, Any] = getattr(client, operation)(**self._qualify(parameters))
            self._breaker.record_response()
            return response

    def call_if_exists(self, operation: str, **parameters: Any) -> dict[str, Any] | None:
        """Like `call`, with None if the object or upload does not exist."""
        try:
            return self.call(operation, **parameters)
        except ObjectMissing:
            return None

    def list_pages(self, operation: str, **parameters: Any) -> Iterator[dict[str, Any]]:
        """Yield the pages of a listing."""
        with self.translate_errors(operation):
            self._check_breaker()
            for page in self._internal.get_paginator(operation).paginate(**self._qualify(parameters)):
                self._breaker.record_response()
                yield page

    def presign(self, operation: str, seconds: int, *, internal: bool = False, **parameters: Any) -> str:
        """Presign a URL at the public endpoint, or at the internal one, without a request."""
        client = self._internal if internal else self._public
        with self.translate_errors("presign"):
            return str(client.generate_presigned_url(operation, Params=self._qualify(parameters), ExpiresIn=seconds))

    def _qualify(self, parameters: dict[str, Any]) -> dict[str, Any]:
        qualified = {"Bucket": self.name, **parameters}
        for name in ("Key", "Prefix"):
            if name in parameters:
                qualified[name] = self.prefix + parameters[name]
        if "CopySource" in parameters:
            qualified["CopySource"] = {"Bucket": self.name, "Key": self.prefix + parameters["CopySource"]}
        return qualified

    def strip_prefix(self, object_name: str) -> str:
        """Return our key of an object in a listing."""
        return object_name[len(self.prefix) :]

    def _check_breaker(self) -> None:
        if self._breaker.rejects_call():
            described = self._describe("it did not respond a moment ago")
            raise Unavailable(*described, next_step=NEXT_STEP, retry_after_seconds=RETRY_AFTER_SECONDS)

    @contextmanager
    def translate_errors(self, operation: str) -> Iterator[None]:
        """Raise botocore's exceptions as ours."""
        try:
            yield
        except ClientError as e:
            code = str(e.response.get("Error", {}).get("Code", ""))
            status = e.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            kind = _ERRORS.get(code) or (RequestRejected if 400 <= status < 500 else Unavailable)
            error = kind(*self._describe(code), retry_after_seconds=RETRY_AFTER_SECONDS)
            is_down = status >= 500 and code not in _NO_OUTAGE
            self._breaker.record_response(self._describe(code, operation)[1] if is_down else "")
            raise error from e
        except _NO_CREDENTIALS as e:
            raise _missing_credentials(e) from e
        except (BotoCoreError, ResponseParserError, ValueError) as e:  # the last two: the response makes no sense
            timed_out = isinstance(e, _TIMEOUTS)
            is_away = isinstance(e, NoConnectionError)
            cause = "it cannot be reached" if is_away else "its response makes no sense"
            described = self._describe("it did not respond in time" if timed_out else cause)
            failure = self._describe(str(e).split("\n", 1)[0][:200], operation)[1]
            self._breaker.record_failure(failure, timed_out=timed_out)
            raise Unavailable(*described, next_step=NEXT_STEP, retry_after_seconds=RETRY_AFTER_SECONDS) from e

    def _describe(self, cause: str, operation: str = "") -> tuple[str, str]:
        """The code and detail of an error, for clients; or for the log, which alone names the bucket and the call."""
        hint = "; are the credentials right?" if cause in _DENIED else ""
        hint = "; create it first" if cause == "NoSuchBucket" else hint
        subject = f"bucket '{self.name}' cannot serve {operation}" if operation else "the blob store cannot serve"
        return "STORE_UNAVAILABLE", f"{subject} now: {cause}{hint}"


class CircuitBreaker:
    """Rejects calls after a timeout until any response, even an error; logs begin and end of an outage. Thread-safe.

    Meanwhile one call in `PAUSE_SECONDS` may try again on behalf of all.
    """

    def __init__(self, bucket: str) -> None:
        self._bucket = bucket
        self._lock = threading.Lock()
        self._open_until: float | None = None
        self._is_outage = False

    def rejects_call(self) -> bool:
        """Whether a call should fail now. The first one after the pause may try, and begins the next pause."""
        with self._lock:
            now, open_until = time.monotonic(), self._open_until
            if open_until is not None and now >= open_until:
                self._open_until = now + PAUSE_SECONDS
            return open_until is not None and now < open_until

    def record_response(self, failure: str = "") -> None:
        """Record that the store responded; `failure` is its own, as of a proxy without a store behind it."""
        with self._lock:
            self._open_until = None
            self._log_outage(failure)

    def record_failure(self, failure: str, *, timed_out: bool) -> None:
        """Record that the store did not respond. Only after a timeout are calls rejected: others fail at once."""
        with self._lock:
            self._open_until = time.monotonic() + PAUSE_SECONDS if timed_out else self._open_until
            self._log_outage(failure)

    def _log_outage(self, failure: str) -> None:
        if failure and not self._is_outage:
            _LOG.warning("the blob store is unavailable: %s", failure)
        elif self._is_outage and not failure:
            _LOG.warning("the blob store is available again: bucket '%s'", self._bucket)
        self._is_outage = bool(failure)


def checksum_of(digest: Digest) -> str:
    """Return a SHA-256 as S3 writes it: in base64."""
    return base64.b64encode(bytes.fromhex(digest.hex)).decode()


def md5_of(data: bytes | bytearray) -> str:
    """Return an MD5 as S3 writes it. It only protects the bytes on their way: what they are, their SHA-256 says."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def _open_session() -> Any:
    try:
        return boto3.session.Session()
    except ProfileNotFound as e:
        raise _missing_credentials(e) from e


def _create_client(
    session: Any, endpoint: str, *, read_seconds: float = READ_SECONDS, attempts: int = ATTEMPTS_LIMIT
) -> Any:
    if "@" in endpoint:  # clients would see it in links
        raise Invalid("SETTING_INVALID", "REGISTRY_S3_ENDPOINT has a user; set the keys by AWS_… variables")
    config = Config(
        signature_version="s3v4",
        connect_timeout=min(CONNECT_SECONDS, read_seconds),
        read_timeout=read_seconds,
        retries={"mode": "standard", "total_max_attempts": attempts},
        max_pool_connections=CONNECTIONS,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path" if endpoint else "auto"},
    )
    try:
        region = session.region_name or "us-east-1"
        return session.client("s3", endpoint_url=endpoint or None, region_name=region, config=config)
    except _NO_CREDENTIALS as e:
        raise _missing_credentials(e) from e
    except (BotoCoreError, ValueError) as e:
        raise Invalid(
            "SETTING_INVALID", f"REGISTRY_S3_ENDPOINT: {hide_secrets(endpoint)[:120]!r} cannot be used: {e}"
        ) from e


def _missing_credentials(error: BotoCoreError) -> Invalid:
    """The error for a process without the credentials that an S3 store needs."""
    settings = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    return Invalid("SETTING_INVALID", f"REGISTRY_BLOBS: {error}: {settings}")
