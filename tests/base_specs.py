"""What `adapter base add` reads from a base that `tests.samples` made. It needs the domain only, no server."""

from __future__ import annotations

from collections.abc import Callable

from registry import bases
from registry.adapters import safetensors
from registry.bases import BaseSpec
from tests.samples import Base


def reader_of(data: bytes) -> Callable[[int, int], bytes]:
    """What `read_header` reads a file from."""
    return lambda start, length: data[start : start + length]


def spec_of(base: Base) -> BaseSpec:
    """What `adapter base add` reads from a base's folder."""
    headers = [
        safetensors.read_header(reader_of(data), len(data), file=path)
        for path, data in base.files.items()
        if path.endswith(".safetensors")
    ]
    return bases.base_spec(
        base.name,
        base.config,
        headers,
        tokenizer=base.files.get("tokenizer.json"),
        tokenizer_config=base.files.get("tokenizer_config.json"),
        chat_template=(base.files.get("chat_template.jinja") or b"").decode() or None,
    )
