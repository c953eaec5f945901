"""Reads a base's facts from its folder: configuration, safetensors headers and tokenizer, never a weight.

Links are followed, because model caches are made of links, but only names beside config.json are opened.
"""

import os
from pathlib import Path
from typing import Any

from registry import bases
from registry.adapters import safetensors
from registry.adapters.safetensors import Header
from registry.bases import BaseSpec, pipelines
from registry.errors import Invalid, TooLarge
from registry.versions import files

TOKENIZER_LIMIT_BYTES = 128 * 2**20
TEXT_LIMIT_BYTES = 4 * 2**20


class _FolderReader:
    """Reads files of one folder and counts the bytes read from weights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bytes_read = 0

    def whole(self, name: str, limit_bytes: int) -> bytes | None:
        path = self.folder / name
        if not path.is_file():
            return None
        if path.stat().st_size > limit_bytes:
            raise TooLarge("SIZE_INVALID", f"{path}: has {path.stat().st_size} bytes; the limit is {limit_bytes}")
        return path.read_bytes()

    def header(self, name: str) -> Header:
        path = self.folder / name
        if not path.is_file():
            raise Invalid("BASE_INVALID", f"{self.folder} has no {name}, which its index names")
        with open(path, "rb", buffering=0) as file:

            def read(start: int, length: int) -> bytes:
                data = b""
                file.seek(start)
                while len(data) < length and (part := file.read(length - len(data))):
                    data += part
                self.bytes_read += len(data)
                return data

            return safetensors.read_header(read, os.fstat(file.fileno()).st_size, file=name)


def base_spec_from(source: str | Path, name: str) -> tuple[BaseSpec, int]:
    """The spec of the base in a folder, and how many bytes of its weight files were read.

    A diffusers pipeline gives an image model's spec. `Invalid` (BASE_INVALID) without configuration or safetensors.
    """
    reader = _FolderReader(_folder(source))
    components = components_of(source)
    if components:
        return _pipeline(reader, name, components)
    config = _config(reader)
    template = reader.whole(files.CHAT_TEMPLATE, TEXT_LIMIT_BYTES)
    spec = bases.base_spec(
        name, config, [reader.header(file) for file in _weights(reader)],
        tokenizer=reader.whole(files.TOKENIZER, TOKENIZER_LIMIT_BYTES),
        tokenizer_config=reader.whole(files.TOKENIZER_CONFIG, TEXT_LIMIT_BYTES),
        chat_template=template.decode("utf-8", "replace") if template is not None else None,
    )  # fmt: skip
    return spec, reader.bytes_read


def _pipeline(reader: _FolderReader, name: str, components: list[str]) -> tuple[BaseSpec, int]:
    index = reader.whole(files.PIPELINE_INDEX, bases.CONFIG_LIMIT_BYTES)
    by_name: dict[str, pipelines.Component] = {}
    for component in components:
        inner = _FolderReader(reader.folder / component)
        by_name[component] = (_config(inner), [inner.header(file) for file in _weights(inner)])
        reader.bytes_read += inner.bytes_read
    spec = pipelines.pipeline_spec(name, bases.read_config(index, file=files.PIPELINE_INDEX) if index else {}, by_name)
    return spec, reader.bytes_read


def components_of(source: str | Path) -> list[str]:
    """The component folders of a pipeline that take adapters; empty for a language model."""
    folder = _folder(source)
    if (folder / files.BASE_CONFIG).is_file():
        return []
    return [c for c in pipelines.COMPONENTS if (folder / c / files.BASE_CONFIG).is_file()]


def weights_of(source: str | Path) -> tuple[dict[str, Any], dict[Path, Header]]:
    """The configuration of the base in a folder, and its weight files with their headers. `Invalid` as above."""
    reader = _FolderReader(_folder(source))
    return _config(reader), {reader.folder / file: reader.header(file) for file in _weights(reader)}


def _folder(source: str | Path) -> Path:
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise Invalid("BASE_INVALID", f"there is no folder {str(source)[:300]!r}", next_step="give the base's folder")
    return folder


def _config(reader: _FolderReader) -> dict[str, Any]:
    config = reader.whole(files.BASE_CONFIG, bases.CONFIG_LIMIT_BYTES)
    if config is None:
        raise Invalid("BASE_INVALID", f"{reader.folder} has no {files.BASE_CONFIG}, so it is not a base's folder")
    return bases.read_config(config)


def _weights(reader: _FolderReader) -> tuple[str, ...]:
    """The weight files: those of the index, else the single file, else every safetensors file."""
    for name in (files.BASE_WEIGHTS_INDEX, files.PIPELINE_WEIGHTS_INDEX):
        index = reader.whole(name, safetensors.HEADER_LIMIT_BYTES)
        if index is not None:
            return bases.shards(index)
    for name in (files.BASE_WEIGHTS, files.PIPELINE_WEIGHTS):
        if (reader.folder / name).is_file():
            return (name,)
    names = tuple(sorted(path.name for path in reader.folder.glob("*.safetensors")))
    if not names:
        raise Invalid("BASE_INVALID", f"{reader.folder} has no *.safetensors, and only those are read")
    return names
