"""Parsers of untrusted bytes: each takes bytes and returns a value, or raises the error that it documents.

`PARSERS`: name, which is also the folder of its corpus → a function that raises `Refused` for what it refuses.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from registry.adapters import card, companions, safetensors, templates, trainer
from registry.adapters.formats import gguf
from registry.adapters.methods import CODE_FIELDS
from registry.adapters.peft import config, describe
from registry.attestations import certified, models
from registry.attestations.certificates import Trust
from registry.attestations.keys import PrivateKey
from registry.client import signing
from registry.errors import RegistryError
from registry.evaluation import golden
from registry.hub.operations import AddFile, read_commit
from registry.hub.xet import shards, xorbs
from registry.server.storage.signed_links import LinkSigner
from registry.strict import json as strict_json
from registry.tlog import notes, tiles
from registry.versions.manifest import Manifest
from registry.versions.provenance import Provenance, parse_provenance_file

CORPUS = Path(__file__).parent / "corpus"
NOW = datetime(2026, 5, 1, tzinfo=UTC)
MANIFEST = (CORPUS / "manifest" / "good").read_bytes()
VERIFIER = (CORPUS / "verifier.txt").read_text().strip()
LINKS = LinkSigner(lambda: "a secret of the corpus")
DIALECT = strict_json.Dialect("CONFIG_INVALID", "config")


class Refused(Exception):
    """The parser refused its input as it documents."""


def _strict_json(data: bytes) -> None:
    value = strict_json.parse(data, DIALECT, file="x")
    assert json.loads(data) == value


def _manifest(data: bytes) -> None:
    assert Manifest.parse(data).to_bytes() == data


def _safetensors(data: bytes) -> None:
    header = safetensors.read_bytes(data, file="x")
    assert header.data_start + sum(info.size_bytes for info in header) == len(data)


def _gguf(data: bytes) -> None:
    gguf.read_header(lambda offset, length: data[offset : offset + length], len(data), file="x")


def _peft_config(data: bytes) -> None:
    header = safetensors.read_bytes((CORPUS / "safetensors" / "lora").read_bytes(), file="x")
    describe(config.read_config(data), header)


def _any_of(*attempts: Callable[[], object]) -> None:
    """Make all attempts; `Refused` if each refused the input."""
    refused = 0
    for attempt in attempts:
        try:
            attempt()
        except RegistryError:
            refused += 1
    if refused == len(attempts):
        raise Refused


def _companion(data: bytes) -> None:
    def attempt(name: str) -> None:
        companions.check_companions({name: len(data)}, lambda _path, start, length: data[start : start + length])

    _any_of(*(partial(attempt, name) for name in (*sorted(companions.JSON_FILES), "tokenizer.model")))


def _token_file(data: bytes) -> None:
    """Every code reference that a JSON parser finds, the search finds as well."""
    references: list[str] = []

    def note(pairs: list[tuple[str, object]]) -> None:
        numbers = (int, float)
        references.extend(k for k, v in pairs if k in CODE_FIELDS and (isinstance(v, bool) or type(v) not in numbers))

    try:
        json.loads(data.decode(), object_pairs_hook=note)
    except (ValueError, RecursionError):
        references.clear()
    companions.check_token_files(
        {"tokenizer.json": len(data)}, lambda _path, start, length: data[start : start + length]
    )
    assert references == []


def _template(data: bytes) -> None:
    templates.check_templates({"chat_template.jinja": len(data)}, lambda *_: data)


def _claims(data: bytes) -> None:
    """Claims are left out where they cannot be read, never an error."""
    card.read(data)
    card.check_card({"README.md": len(data)}, lambda *_: data)
    trainer.read(data)


def _provenance(data: bytes) -> None:
    _any_of(*(partial(_declared, data, file) for file in ("p.toml", "p.json")))


def _declared(data: bytes, file: str) -> None:
    Provenance.read(parse_provenance_file(data, file=file))


def _golden(data: bytes) -> None:
    assert golden.read_golden(data)


def _note(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    verifier = notes.Verifier.parse(VERIFIER)
    checkpoint = notes.Checkpoint.of_note(text, verifier)
    assert checkpoint is None or (checkpoint.text in text and notes.open_note(text, verifier) == checkpoint.text)


def _proof(data: bytes) -> None:
    notes.verify_proof(data.decode("utf-8", "replace"), b"entry", notes.Verifier.parse(VERIFIER))


def _entry_bundle(data: bytes) -> None:
    try:
        entries = list(tiles.entries_of(data))
    except ValueError as e:  # as it documents
        raise Refused from e
    assert tiles.bundle(entries) == data


def _signature(data: bytes) -> None:
    text, manifest = data.decode("utf-8", "replace"), Manifest.parse(MANIFEST)
    key = PrivateKey.of_seed(bytes(32)).public
    _any_of(
        partial(models.verify_with_key, text, key, manifest),
        partial(certified.verify_with_certificate, text, manifest, Trust(), NOW),
    )


def _attestations(data: bytes) -> None:
    parsed = signing.Bundle.parse(data)
    signing.examine_bundle(parsed, [notes.Verifier.parse(VERIFIER)])


def _hub_commit(data: bytes) -> None:
    for operation in read_commit(data).operations:
        if isinstance(operation, AddFile):
            assert operation.content.size_bytes == sum(map(len, operation.content.chunks()))


def _xet_xorb(data: bytes) -> None:
    assert all(xorbs.read_chunks(data))


def _xet_shard(data: bytes) -> None:
    shards.read_files(data)


def _link_head(data: bytes) -> None:
    method, target, *_ = [*data.decode("latin-1").split(" ", 2), ""]
    if LINKS.find(method, target) is None:
        raise Refused


PARSERS: dict[str, Callable[[bytes], None]] = {
    "strict_json": _strict_json, "manifest": _manifest, "safetensors": _safetensors, "gguf": _gguf,
    "peft_config": _peft_config, "companions": _companion, "token_files": _token_file, "templates": _template,
    "claims": _claims, "golden": _golden, "provenance": _provenance, "notes": _note,
    "proofs": _proof, "entry_bundles": _entry_bundle, "signatures": _signature, "attestations": _attestations,
    "hub_commits": _hub_commit, "xet_xorbs": _xet_xorb, "xet_shards": _xet_shard, "link_heads": _link_head,
}  # fmt: skip


def parse(name: str, data: bytes) -> bool:
    """Whether the parser accepts these bytes. Any other exception than the documented ones is a defect."""
    try:
        PARSERS[name](data)
    except (RegistryError, Refused):
        return False
    return True


def corpus(name: str) -> Iterator[Path]:
    """The kept inputs of a parser: good ones, and all that once made it fail."""
    yield from sorted((CORPUS / name).iterdir())
