"""`Bucket`: one bucket of an S3 store through boto3, for control calls, presigned URLs and small objects.

- The server calls the internal endpoint; URLs are presigned for the public one.
- Every call has a timeout and a limit of retries. A store that cannot serve raises `Unavailable` (STORE_UNAVAILABLE)
  in plain words, never an exception of botocore; the log names the bucket and the call.
- Signatures are version 4. Checksums are sent only where we ask for them: S3-compatible stores reject botocore's own.
- The prefix of the setting is added to keys here, and nowhere else.
"""

import base64
import copy
import io
import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Self
from urllib.parse import urlsplit

import boto3
import botocore.session
import urllib3
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
from registry.server.storage.s3.signed_puts import SignedPuts
from registry.versions.files import CHUNK_BYTES

_LOG = logging.getLogger("registry.server")
READ_BYTES = 32 * 2**20
"""Bytes of one ranged read. SeaweedFS streams larger ones at a tenth of the speed if its reader cache is small."""
CONNECT_SECONDS = 5
READ_SECONDS = 10
"""Timeout of one attempt. All attempts together, with one of `put_signed`, are shorter than the timeout of a client."""
LONG_READ_SECONDS = 60
"""Timeout of calls in which the store itself moves bytes; these are tried twice at most."""
QUICK_SECONDS = 3
"""Timeout of the reads of pages (`Bucket.quick`), which are tried once."""
LONG_CALLS = frozenset({"copy_object", "upload_part_copy", "complete_multipart_upload"})
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

    def __init__(self, url: str, *, endpoint: str = "", public_endpoint: str = "") -> None:
        """Open `s3://BUCKET/PREFIX`. boto3 finds credentials and region in its usual places."""
        parts = urlsplit(url)
        if parts.scheme != "s3" or not re.fullmatch(r"[^@:]+", parts.netloc) or parts.query or parts.fragment:
            raise invalid_store(url)
        self.name = parts.netloc
        self.prefix = parts.path.strip("/") + "/" if parts.path.strip("/") else ""
        session, self._certificates = _open_session()
        self._session, self._endpoint = session, endpoint
        self._internal = _create_client(session, endpoint)
        self._patient = _create_client(session, endpoint, read_seconds=LONG_READ_SECONDS, attempts=2)
        same = public_endpoint in ("", endpoint)
        self._public = self._internal if same else _create_client(session, public_endpoint)
        self._breaker = CircuitBreaker(self.name)

    @cached_property
    def quick(self) -> Self:
        """Return this bucket with short timeouts and one try. What is too slow for it closes no other reads."""
        quick = copy.copy(self)
        quick._internal = _create_client(self._session, self._endpoint, read_seconds=QUICK_SECONDS, attempts=1)
        quick._breaker = CircuitBreaker(self.name)
        return quick

    def head(self, key: str) -> dict[str, Any] | None:
        """Return the headers of an object, with its checksum if the store has one; None if it does not exist."""
        return self.call_if_exists("head_object", Key=key, ChecksumMode="ENABLED")

    def get(self, key: str, start: int, length: int) -> tuple[Any, int] | None:
        """Return a stream of the range, as far as it exists, and the size of the object; None if it does not exist."""
        limits = {"Range": f"bytes={start}-{start + max(length, 1) - 1}"}
        try:
            response = self.call_if_exists("get_object", Key=key, **limits)
        except RangeNotSatisfiable:
            head = self.head(key)
            return (io.BytesIO(), int(head["ContentLength"])) if head else None
        if response is None:
            return None
        size = str(response.get("ContentRange", "")).rpartition("/")[2] or response["ContentLength"]
        return response["Body"], int(size)

    def stream(self, key: str, start: int, length: int) -> Iterator[bytes] | None:
        """Yield the range in chunks, in as many requests as it takes; None if the object does not exist."""
        first = self.get(key, start, min(READ_BYTES, length))
        return None if first is None else self._stream(key, first[0], start, min(first[1], start + length))

    def _stream(self, key: str, body: Any, start: int, end: int) -> Iterator[bytes]:
        while start < end:
            remaining = min(READ_BYTES, end - start)
            try:
                with self.translate_errors("get_object"):
                    while remaining and (chunk := body.read(min(CHUNK_BYTES, remaining))):
                        start, remaining = start + len(chunk), remaining - len(chunk)
                        yield chunk
            finally:
                body.close()
            if remaining:
                raise Unavailable("STORE_UNAVAILABLE", f"a blob ended {end - start} bytes too early")
            if start < end:
                following = self.get(key, start, min(READ_BYTES, end - start))
                if following is None:
                    raise_unknown(key)
                body = following[0]

    def put(self, key: str, data: bytes | bytearray, **parameters: Any) -> bool:
        """Write an object; False if a condition among the parameters does not hold."""
        return self._call_if_condition_holds("put_object", Key=key, Body=data, **parameters)

    def put_signed(self, key: str, data: bytes | bytearray, digest: Digest, headers: dict[str, str]) -> bool:
        """Write an object by one request of `SignedPuts`; False if that failed, for whatever reason: then `put` it.

        After a timeout `put` tries first: its responses say whether the store is back.
        """
        if self._breaker.is_open:
            return False
        is_written = self._signed_puts.put(key, data, digest, headers, *self.credentials())
        if is_written:
            self._breaker.record_response()
        return is_written

    @cached_property
    def _signed_puts(self) -> SignedPuts:
        url = self.presign("put_object", 1, internal=True, Key="x").partition("?")[0].removesuffix("x")
        timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS)
        return SignedPuts(url, certificates=self._certificates, timeout=timeout, connections=CONNECTIONS)

    def copy(self, source_key: str, key: str, **conditions: Any) -> bool:
        """Copy an object; False if a condition does not hold. `ObjectMissing` if there is no source."""
        return self._call_if_condition_holds("copy_object", Key=key, CopySource=source_key, **conditions)

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

    def _call_if_condition_holds(self, operation: str, **parameters: Any) -> bool:
        try:
            self.call(operation, **parameters)
        except ConditionFailed:
            return False
        return True

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

    def credentials(self) -> tuple[Any, str]:
        """Return the credentials that sign now, and their region."""
        with self.translate_errors("find credentials"):
            if (credentials := self._session.get_credentials()) is None:
                raise NoCredentialsError
            return credentials.get_frozen_credentials(), self._internal.meta.region_name

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

    @property
    def is_open(self) -> bool:
        """Whether no call has had a response since the last timeout."""
        return self._open_until is not None

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


def _open_session() -> tuple[Any, str | None]:
    """A session of boto3, and the file of certificates that it trusts, if one is configured."""
    core = botocore.session.Session()
    try:
        return boto3.session.Session(botocore_session=core), core.get_config_variable("ca_bundle")
    except ProfileNotFound as e:
        raise _missing_credentials(e) from e


def _create_client(session: Any, endpoint: str, *, read_seconds: float = 0, attempts: int = ATTEMPTS_LIMIT) -> Any:
    if "@" in endpoint:  # clients would see it in links
        raise Invalid("SETTING_INVALID", "REGISTRY_S3_ENDPOINT has a user; set the keys by AWS_… variables")
    config = Config(
        signature_version="s3v4",
        connect_timeout=min(CONNECT_SECONDS, read_seconds or CONNECT_SECONDS),
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
