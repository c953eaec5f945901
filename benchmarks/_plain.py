"""The plain S3 clients that benchmarks/transfer.py compares with: files to a bucket and back, nothing checked.

python -m benchmarks._plain obstore|obstore-hashing|boto3|boto3-tuned ENDPOINT BUCKET put FOLDER…
python -m benchmarks._plain obstore|obstore-hashing|boto3|boto3-tuned ENDPOINT BUCKET get DEST NAME…

`obstore-hashing` does what a registry must do besides: it sends the SHA-256 of what it puts, which the store checks,
and what it gets is hashed as it arrives and forced to disk.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

AT_ONCE = 4
FILES = ("adapter_config.json", "adapter_model.safetensors")
Copy = Callable[[Path, str], object]


def obstore_client(endpoint: str, bucket: str, *, hashing: bool) -> tuple[Copy, Copy]:
    import obstore
    from obstore.store import S3Store

    checksum: Any = {"checksum_algorithm": "SHA256"} if hashing else {}
    store: Any = S3Store(
        bucket,
        endpoint=endpoint,
        access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
        secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        region=os.environ["AWS_REGION"],
        client_options={"allow_http": True},
        virtual_hosted_style_request=False,
        **checksum,
    )

    def put(path: Path, key: str) -> None:
        with open(path, "rb") as file:
            obstore.put(store, key, file)

    def get(path: Path, key: str) -> None:
        hasher = hashlib.sha256()
        with open(path, "wb") as file:
            for chunk in obstore.get(store, key).stream(min_chunk_size=2**20):
                if hashing:
                    hasher.update(chunk)
                file.write(chunk)
            if hashing:
                file.flush()
                os.fsync(file.fileno())

    return put, get


def boto3_client(endpoint: str, bucket: str, *, tuned: bool) -> tuple[Copy, Copy]:
    import boto3
    from boto3.s3.transfer import TransferConfig
    from botocore.config import Config

    quiet = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
    config = Config(s3={"addressing_style": "path"}, max_pool_connections=40, **(quiet if tuned else {}))
    client = boto3.session.Session().client("s3", endpoint_url=endpoint, config=config)
    how = TransferConfig(preferred_transfer_client="classic")
    if tuned:  # two threads with large parts are what costs boto3 the least
        how = TransferConfig(max_concurrency=2, multipart_chunksize=32 * 2**20, preferred_transfer_client="classic")

    def put(path: Path, key: str) -> None:
        client.upload_file(str(path), bucket, key, Config=how)

    def get(path: Path, key: str) -> None:
        client.download_file(bucket, key, str(path), Config=how)

    return put, get


def main(kind: str, endpoint: str, bucket: str, verb: str, *arguments: str) -> None:
    if kind.startswith("obstore"):
        put, get = obstore_client(endpoint, bucket, hashing=kind == "obstore-hashing")
    else:
        put, get = boto3_client(endpoint, bucket, tuned=kind == "boto3-tuned")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        if verb == "put":
            folders = [Path(text) for text in arguments]
            work = [(put, folder / name, f"{kind}/{folder.name}/{name}") for folder in folders for name in FILES]
        else:
            dest = Path(arguments[0])
            for name in arguments[1:]:
                (dest / name).mkdir(parents=True)
            work = [(get, dest / name / file, f"{kind}/{name}/{file}") for name in arguments[1:] for file in FILES]
        list(pool.map(lambda item: item[0](item[1], item[2]), work))


if __name__ == "__main__":
    main(*sys.argv[1:])
