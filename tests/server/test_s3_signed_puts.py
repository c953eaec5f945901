"""Small objects are put by requests that the server signs itself, and by boto3 whenever that fails."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from urllib3 import Timeout

from registry.digest import Digest
from registry.errors import Unavailable
from registry.server.storage.blobs import key_of
from registry.server.storage.s3 import bucket
from registry.server.storage.s3.bucket import Bucket, checksum_of
from registry.server.storage.s3.signatures import sign_put
from registry.server.storage.s3.signed_puts import SignedPuts
from registry.server.storage.s3.store import S3Blobs
from tests.faults.proxy import FaultProxy

DATA = b"weights" * 1000
DIGEST = Digest.of(DATA)
KEY = key_of(DIGEST)


@pytest.mark.parametrize("token", [None, "a session's token"])
@pytest.mark.parametrize("host", ["127.0.0.1:8333", "bucket.s3.eu-central-1.amazonaws.com"])
def test_a_signature_is_that_of_botocore(host: str, token: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = datetime.datetime(2026, 11, 28, 12, 0, tzinfo=datetime.UTC)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: moment)
    url = f"https://{host}/our%20prefix/{KEY}"
    credentials = Credentials("an id", "a secret", token).get_frozen_credentials()
    headers = {"x-amz-checksum-sha256": checksum_of(DIGEST), "content-md5": "1B2M2Y8AsgTpgAmY7PhCfg=="}
    request = AWSRequest("PUT", url, headers, DATA)
    botocore.auth.S3SigV4Auth(credentials, "s3", "eu-central-1").add_auth(request)
    signed = sign_put(moment, url, headers, hashlib.sha256(DATA).hexdigest(), credentials, "eu-central-1")
    assert signed["authorization"] == request.headers["Authorization"]
    assert {name: signed[name.lower()] for name in request.headers} == dict(request.headers.items())


@pytest.fixture
def proxy(object_store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    monkeypatch.setattr(bucket, "READ_SECONDS", 1)
    with FaultProxy(object_store) as proxy:
        yield proxy


@pytest.fixture
def blobs(s3_url: str, proxy: FaultProxy) -> S3Blobs:
    store = S3Blobs.from_url(s3_url, endpoint=proxy.endpoint)
    assert store.capabilities.signed_puts
    return store


@pytest.fixture
def puts_by_boto3(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the objects that boto3 has put."""
    keys: list[str] = []
    put = Bucket.put

    def recording(self: Bucket, key: str, *args: Any, **parameters: Any) -> bool:
        keys.append(key)
        return put(self, key, *args, **parameters)

    monkeypatch.setattr(Bucket, "put", recording)
    return keys


@pytest.mark.parametrize("checksums", [True, False])
def test_an_object_is_put_by_one_request_and_its_checksum_kept(
    blobs: S3Blobs, proxy: FaultProxy, puts_by_boto3: list[str], checksums: bool
) -> None:
    able = blobs.capabilities
    blobs._capabilities = dataclasses.replace(able, checksums=able.checksums and checksums)
    before = proxy.counts["put"]
    blobs.put(KEY, [DATA], limit_bytes=len(DATA))
    assert (proxy.counts["put"] - before, puts_by_boto3) == (1, [])
    assert b"".join(blobs.open(KEY)) == DATA
    head = blobs.bucket.head(KEY)
    assert head is not None
    assert head.get("ChecksumSHA256") == (checksum_of(DIGEST) if blobs.capabilities.checksums else None)


@pytest.mark.parametrize("act", ["500", "503", "hang", "reset_before", "reset_after", "cut", "flip"])
def test_boto3_repeats_what_failed(blobs: S3Blobs, proxy: FaultProxy, puts_by_boto3: list[str], act: str) -> None:
    proxy.fail("put", act, times=1)
    blobs.put(KEY, [DATA], limit_bytes=len(DATA))
    assert (proxy.happened("put"), puts_by_boto3) == (1, [KEY])
    assert b"".join(blobs.open(KEY)) == DATA


def test_a_store_that_responds_again_is_noticed_by_a_put_that_fails_at_first(
    blobs: S3Blobs, proxy: FaultProxy, puts_by_boto3: list[str]
) -> None:
    breaker = blobs.bucket._breaker
    breaker.record_failure("no response", timed_out=True)
    breaker._open_until = 0.0  # its pause is over
    proxy.fail("put", "503", times=1)
    blobs.put(KEY, [DATA], limit_bytes=len(DATA))
    assert (proxy.happened("put"), puts_by_boto3, breaker.is_open) == (1, [KEY], False)


@pytest.mark.security
@pytest.mark.parametrize("checksums", [True, False])
def test_flipped_bits_are_never_stored(blobs: S3Blobs, proxy: FaultProxy, checksums: bool) -> None:
    blobs._capabilities = dataclasses.replace(blobs.capabilities, checksums=checksums)
    proxy.fail("put", "flip")
    with pytest.raises(Unavailable):
        blobs.put(KEY, [DATA], limit_bytes=len(DATA))
    proxy.heal()
    assert blobs.stat(KEY) is None


def test_a_store_that_rejects_them_gets_requests_of_boto3_only(
    s3_url: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(SignedPuts, "put", lambda *_: False)
        store = S3Blobs.from_url(s3_url, endpoint=proxy.endpoint)
        assert not store.capabilities.signed_puts
    before = proxy.counts["put"]
    store.put(KEY, [DATA], limit_bytes=len(DATA))
    assert proxy.counts["put"] - before == 1
    assert b"".join(store.open(KEY)) == DATA


@pytest.mark.security
def test_a_wrong_secret_writes_nothing(blobs: S3Blobs) -> None:
    puts = blobs.bucket._signed_puts
    credentials, region = blobs.bucket.credentials()
    assert not puts.put(KEY, DATA, DIGEST, {}, credentials._replace(secret_key="another"), region)
    assert blobs.stat(KEY) is None
    assert puts.put(KEY, DATA, DIGEST, {}, credentials, region)


class _Redirecting(BaseHTTPRequestHandler):
    requests: ClassVar[list[str]] = []

    def do_PUT(self) -> None:
        self.requests.append(self.path)
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(307)
        self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.mark.security
def test_redirects_are_not_followed_and_proxies_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    credentials = Credentials("an id", "a secret").get_frozen_credentials()

    def put() -> bool:
        puts = SignedPuts(
            f"http://127.0.0.1:{server.server_port}/", certificates=None, timeout=Timeout(5), connections=1
        )
        return puts.put(KEY, DATA, DIGEST, {}, credentials, "us-east-1")

    with ThreadingHTTPServer(("127.0.0.1", 0), _Redirecting) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            assert not put()
            assert _Redirecting.requests == [f"/{KEY}"]
            monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
            monkeypatch.setenv("no_proxy", "elsewhere")
            assert not put()
            assert _Redirecting.requests == [f"/{KEY}"]
        finally:
            server.shutdown()
            thread.join()
