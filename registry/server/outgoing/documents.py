"""Small JSON documents of others, such as the keys of an identity provider: read within limits of time and bytes."""

import json
import ssl
from collections.abc import Mapping
from typing import Any

import httpx

from registry.server.outgoing import deadlines

DOCUMENT_LIMIT_BYTES = 2**20


def request_document(
    method: str, url: str, *, seconds: float, headers: Mapping[str, str] | None = None,
    form: Mapping[str, str] | None = None,
) -> tuple[int, Any]:  # fmt: skip
    """The status and the JSON document of a response. `ValueError` if there is none in time, or a large one.

    For the URLs of the operator's file. Redirects are not followed, and nothing is decompressed.
    """
    headers = {"Accept": "application/json", **(headers or {}), "Accept-Encoding": "identity"}
    data = bytearray()
    try:
        with (
            deadlines.shut_down_after(seconds) as watch,
            httpx.Client(timeout=seconds, verify=ssl.create_default_context()) as client,
            client.stream(method, url, data=form, headers=headers, extensions=deadlines.trace(watch)) as response,
        ):
            for chunk in response.iter_raw(65536):
                data += chunk
                if len(data) > DOCUMENT_LIMIT_BYTES:
                    raise ValueError(f"the response of {url} is over {DOCUMENT_LIMIT_BYTES} bytes")
            return response.status_code, json.loads(data)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, RecursionError) as e:
        raise ValueError(f"{url} does not respond with a document: {type(e).__name__}") from e
