"""`BucketTarget`: an export in an S3 bucket, for engines that read one: Ray Serve, LoRAX, AIBrix, KServe, Dynamo.

    s3://BUCKET/PREFIX/acme-support-v3/adapter_model.safetensors

The configuration is uploaded after the weights and the note last, so a note implies a complete adapter. An object with
the same size and the same SHA-256 in its metadata (`sha256`) is skipped; another one is never overwritten.

Credentials, region and endpoint are boto3's (AWS_ENDPOINT_URL for other stores).

Example
    >>> BucketTarget("s3://models/prod").title
    's3://models/prod/'
"""

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from registry.digest import Digest
from registry.errors import Invalid, Unavailable
from registry.serving.export.export import INDEX
from registry.versions.files import CONFIG, NOTE

CONNECT_SECONDS = 5
READ_SECONDS = 60
ATTEMPTS_LIMIT = 4
NOTE_LIMIT_BYTES = 256 * 2**20
"""Of a note or an index: as much as a desired state, from which they are made."""
_ABSENT = frozenset({"404", "NoSuchKey", "NotFound"})
_SUM = "sha256"


class BucketTarget:
    """Thread-safe. The bucket is listed once, on first use."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
            raise Invalid("URL_REFUSED", f"{url[:120]!r} is not 's3://BUCKET' or 's3://BUCKET/PREFIX'")
        prefix = parts.path.strip("/")
        self._bucket = parts.netloc
        self._prefix = f"{prefix}/" if prefix else ""
        self.title = f"s3://{self._bucket}/{self._prefix}"
        self._client = _client(self.title)
        self._lock = threading.Lock()
        self._listed: dict[str, dict[str, int]] | None = None

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A new folder for files under way; it is deleted afterwards."""
        with tempfile.TemporaryDirectory(prefix="adapter-export-") as folder:
            yield Path(folder)

    def note(self, name: str) -> bytes | None:
        """The note of an exported version; None without one."""
        return self._read(f"{name}/{NOTE}") if NOTE in self.sizes(name) else None

    def sizes(self, name: str) -> dict[str, int]:
        """Path → bytes of an exported version's files."""
        return dict(self._listing().get(name, {}))

    def put(self, name: str, staged: Path, digests: dict[str, Digest]) -> None:
        """Upload a staged version, its configuration last."""
        order = sorted(digests, key=lambda path: (path == CONFIG, path))
        for path in order:
            self._upload(f"{name}/{path}", staged / path, digests[path])
        note = staged / NOTE
        self._upload(f"{name}/{NOTE}", note, Digest.of(note.read_bytes()))

    def names(self) -> list[str]:
        """Names of the exported versions, sorted."""
        return sorted(self._listing())

    def remove(self, name: str) -> None:
        """The note last: an interrupted removal is repeated."""
        for path in sorted(self.sizes(name), key=lambda path: (path == NOTE, path)):
            with self._errors_of("delete_object"):
                self._client.delete_object(Bucket=self._bucket, Key=f"{self._prefix}{name}/{path}")

    def index(self) -> bytes | None:
        """The bytes of the index; None without one."""
        return self._read(INDEX)

    def write_index(self, data: bytes) -> None:
        """Replace the index."""
        with self._errors_of("put_object"):
            self._client.put_object(
                Bucket=self._bucket, Key=self._prefix + INDEX, Body=data, ContentType="application/json"
            )

    def _listing(self) -> dict[str, dict[str, int]]:
        with self._lock:
            if self._listed is None:
                listing: dict[str, dict[str, int]] = {}
                with self._errors_of("list_objects_v2"):
                    pages = self._client.get_paginator("list_objects_v2")
                    for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix):
                        for entry in page.get("Contents", ()):
                            name, slash, path = entry["Key"][len(self._prefix) :].partition("/")
                            if slash and path:
                                listing.setdefault(name, {})[path] = int(entry["Size"])
                self._listed = listing
            return self._listed

    def _upload(self, key: str, source: Path, digest: Digest) -> None:
        head = self._head(key)
        if head is None:
            with self._errors_of("upload"):
                kwargs = {"Metadata": {_SUM: digest.hex}}
                self._client.upload_file(str(source), self._bucket, self._prefix + key, ExtraArgs=kwargs)
            head = self._head(key)
        size = source.stat().st_size
        there = (int(head["ContentLength"]), head.get("Metadata", {}).get(_SUM)) if head else None
        if there != (size, digest.hex):
            raise Invalid(
                "FOLDER_INVALID",
                f"{self.title}{key} already exists with other bytes, and an export never rewrites an object",
                next_step="export to another prefix, or remove that object when no engine reads it",
            )

    def _head(self, key: str) -> dict[str, Any] | None:
        return self._get("head_object", key)

    def _read(self, key: str) -> bytes | None:
        response = self._get("get_object", key)
        if response is None:
            return None
        with self._errors_of("get_object"):
            data = bytes(response["Body"].read(NOTE_LIMIT_BYTES + 1))
        if len(data) > NOTE_LIMIT_BYTES:
            raise Invalid("FOLDER_INVALID", f"{self.title}{key} is over the limit of {NOTE_LIMIT_BYTES} bytes")
        return data

    def _get(self, operation: str, key: str) -> dict[str, Any] | None:
        with self._errors_of(operation):
            try:
                response: dict[str, Any] = getattr(self._client, operation)(Bucket=self._bucket, Key=self._prefix + key)
                return response
            except ClientError as e:
                if e.response.get("Error", {}).get("Code") in _ABSENT:
                    return None
                raise

    @contextmanager
    def _errors_of(self, operation: str) -> Iterator[None]:
        """Raise boto3's exceptions as ours."""
        try:
            yield
        except (ClientError, BotoCoreError, Boto3Error) as e:
            why = str(e).split("\n", 1)[0][:200]
            raise Unavailable(
                "STORE_UNAVAILABLE",
                f"bucket '{self._bucket}' cannot serve {operation} now: {why}",
                next_step="check the bucket's name, AWS_ENDPOINT_URL and the credentials",
            ) from e


def _client(title: str) -> Any:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    config = Config(
        signature_version="s3v4",
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS_LIMIT},
        request_checksum_calculation="when_required",  # other stores refuse the newer ones
        response_checksum_validation="when_required",
        s3={"addressing_style": "path" if endpoint else "auto"},
    )
    try:
        session = boto3.session.Session()
        region = session.region_name or "us-east-1"
        return session.client("s3", endpoint_url=endpoint, region_name=region, config=config)
    except (BotoCoreError, ValueError) as e:
        raise Invalid("SETTING_INVALID", f"{title} cannot be reached: {e}") from e
