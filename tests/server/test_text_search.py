"""Search for words: where they are found, that they follow every change, and that other tenants find nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete
from sqlmodel import select

from registry.api.bases import BaseAdd
from registry.api.catalog import MetadataChange
from registry.api.maintenance import GcRequest
from registry.client.local import base_folder
from registry.errors import Invalid
from registry.server.catalog.search import text_index
from registry.server.database.models import AdapterTextRow
from tests import non_peft_files, samples
from tests.harness import Harness

REF = "acme/support-fr"
README = "---\nlicense: apache-2.0\n---\n# Rückgabe\nDrafts replies about 退貨 and returns.\n".encode()


@pytest.fixture
def harness(database_url: str) -> Iterator[Harness]:
    with Harness(database_url) as harness:
        harness.add_base()
        yield harness


def push(harness: Harness, ref: str = REF, *, readme: bytes = README, **options: Any) -> str:
    """Push a version, and return it by its number."""
    files = samples.lora(samples.llama(), seed=len(harness.admin.adapters().items)) | {"README.md": readme}
    version = harness.push(ref, files, **options).version
    return f"{version.name}@{version.number}"


def names_with(harness: Harness, text: str) -> list[str]:
    page = harness.admin.adapters(text=text, count=True)
    assert page.total == len(page.items)
    return [item.name for item in page.items]


def test_words_are_found_wherever_they_stand_and_only_while_they_stand_there(harness: Harness) -> None:
    ref = push(harness, annotations={"team": "claims"})
    harness.push("acme/other", harness.files(seed=9))
    harness.admin.describe_adapter(REF, MetadataChange(description="Answers customers", tags={"market": "quebec"}))
    harness.admin.describe(ref, MetadataChange(description="Second try", tags={"ticket": "a-17"}))
    texts = ("support", "ACME/sup", "fr", "customers answers", "market", "Québec", "second", "17", "claims", "ruckgabe",
             "RÜCK", "退", "returns.", "apache", "support quebec returns team")  # fmt: skip
    assert {text: names_with(harness, text) for text in texts} == {text: [REF] for text in texts}
    assert names_with(harness, "acme") == ["acme/other", REF]
    assert names_with(harness, "upport") == names_with(harness, "support nothing") == names_with(harness, "貨物") == []
    harness.admin.describe_adapter(REF, MetadataChange(description="Sorts letters", tags={"market": None}))
    harness.admin.describe(ref, MetadataChange(description="", tags={"ticket": None}))
    assert names_with(harness, "sorts returns") == [REF]
    assert names_with(harness, "customers") == names_with(harness, "quebec") == names_with(harness, "second") == []
    harness.admin.rename(REF, "acme/letters")
    assert names_with(harness, "support") == []
    assert names_with(harness, "letters sorts returns") == ["acme/letters"]
    harness.admin.delete_adapter("acme/letters")
    assert names_with(harness, "letters") == []


def test_trigger_words_of_image_adapters_are_found(harness: Harness, tmp_path: Path) -> None:
    spec, _ = base_folder.base_spec_from(non_peft_files.pipeline(tmp_path / "sd"), "sd-tiny")
    harness.bases["sd-tiny"] = spec
    harness.admin.add_base(BaseAdd(spec=spec))
    weights = non_peft_files.kohya(metadata={"modelspec.trigger_phrase": "pixel fox"})
    harness.push("acme/fox", {"fox.safetensors": weights}, base="sd-tiny")
    assert names_with(harness, "pixel") == ["acme/fox"]


def test_the_card_is_that_of_the_newest_version_that_is_available(harness: Harness) -> None:
    push(harness, readme=b"first edition")
    second = push(harness, readme=b"second edition")
    assert (names_with(harness, "first"), names_with(harness, "second")) == ([], [REF])
    harness.admin.quarantine(second, reason="leaks a name")
    assert names_with(harness, "second") == []
    harness.admin.collect(GcRequest())
    assert (names_with(harness, "first edition"), names_with(harness, "second")) == ([REF], [])
    harness.admin.unquarantine(second, reason="it does not")
    harness.admin.collect(GcRequest())
    assert (names_with(harness, "first"), names_with(harness, "second edition")) == ([], [REF])


def test_no_word_of_a_quarantined_version_is_searched_even_if_it_is_the_only_one(harness: Harness) -> None:
    ref = push(harness, annotations={"team": "claims"})
    harness.admin.describe(ref, MetadataChange(description="Second try", tags={"ticket": "a-17"}))
    words = ("returns", "second", "ticket", "17", "claims")
    harness.admin.quarantine(ref, reason="leaks a name")
    for _ in range(2):  # neither at once nor after the index was written again
        assert {word: names_with(harness, word) for word in words} == {word: [] for word in words}
        assert names_with(harness, "support") == [REF]
        harness.admin.collect(GcRequest())
    harness.admin.unquarantine(ref, reason="it does not")
    harness.admin.collect(GcRequest())
    assert {word: names_with(harness, word) for word in words} == {word: [REF] for word in words}


@pytest.mark.security
def test_a_card_is_not_searched_if_it_is_quarantined_while_it_is_indexed(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = push(harness)
    with harness.session(write=True) as session:
        session.connection().execute(delete(AdapterTextRow))
    read_card = text_index._read_card

    def quarantine_and_read(blobs: Any, digest: str) -> bytes:
        harness.admin.quarantine(ref, reason="leaks a name")
        return read_card(blobs, digest)

    monkeypatch.setattr(text_index, "_read_card", quarantine_and_read)
    harness.admin.collect(GcRequest())
    assert (names_with(harness, "returns"), names_with(harness, "support")) == ([], [REF])


@pytest.mark.security
def test_words_of_other_tenants_are_neither_found_nor_counted(harness: Harness) -> None:
    push(harness, "acme/secret-plan", readme=b"merger")
    other_tenant = harness.actor("pull", namespaces=("globex",), name="outsider_token")
    for text in ("merger", "secret", "plan merger", "acme"):
        page = other_tenant.adapters(text=text, count=True)
        assert (page.items, page.total) == ([], 0)


HOSTILE = (
    "%", "_", "'", '"', "\"' OR 1=1 --", 'a" OR "b', "NOT support", "support NEAR fr", "name_words : support", "^(",
    "{name_words} : x", "!support & zz | (", ":*", "\\", "\U0001f600", "\ufb03", "x" * 300, "\u0301",
)  # fmt: skip


@pytest.mark.security
def test_a_query_is_words_whatever_it_holds(harness: Harness) -> None:
    push(harness)
    assert {text: names_with(harness, text) for text in HOSTILE} == {text: [] for text in HOSTILE}
    harmless = ("support*", "^support", '"fr" !', "'support' <-> 'fr'")
    assert {text: names_with(harness, text) for text in harmless} == {text: [REF] for text in harmless}


def test_a_query_and_a_card_have_limits(harness: Harness) -> None:
    with pytest.raises(Invalid, match="text: has 13 words, the limit is 12"):
        harness.admin.adapters(text=" ".join(f"w{number}" for number in range(13)))
    many = " ".join(f"word{number}" for number in range(5000)).encode() + b" end"
    push(harness, readme=b"q" * 90 + b" " + many)
    with harness.session() as session:
        row = session.exec(select(AdapterTextRow)).one()
    assert len(row.card_words.split()) == text_index.WORDS_LIMIT
    assert max(map(len, row.card_words.split())) == text_index.WORD_CHARACTERS
    assert (names_with(harness, "word7"), names_with(harness, "end"), names_with(harness, "q" * 90)) == (
        [REF],
        [],
        [REF],
    )
