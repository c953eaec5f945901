"""Names, aliases, refs, base names and file paths: one grammar."""

from __future__ import annotations

import pytest

from registry import names
from registry.digest import Digest
from registry.errors import Invalid
from registry.names import AdapterName, Ref

DIGEST = Digest.of(b"x")


@pytest.mark.parametrize(
    "text",
    [
        "acme/support",
        "acme/support:prod",
        "acme/support@3",
        f"acme/support@{DIGEST}",
        f"acme/support@{DIGEST[:15]}",
        "a-1/b.c_d:canary-2",
    ],
)
def test_what_is_printed_parses_to_the_same_ref(text: str) -> None:
    assert str(Ref.parse(text)) == text
    assert Ref.parse(str(Ref.parse(text))) == Ref.parse(text)


def test_version_numbers_start_at_1() -> None:
    with pytest.raises(Invalid, match="version numbers start at 1"):
        Ref.parse("acme/support@0")


def test_a_ref_without_a_selector_means_the_newest_version() -> None:
    assert Ref.parse("acme/support").selector == names.NEWEST == "main"


@pytest.mark.parametrize(
    ("text", "selector"),
    [
        ("acme/x:prod", "prod"), ("acme/x@12", 12), ("acme/x@v12", 12), ("acme/x@12345678", 12345678),
        (f"acme/x@{DIGEST}", DIGEST), (f"acme/x@{DIGEST.hex}", DIGEST),
        ("acme/x@sha256:12345678", "sha256:12345678"), ("acme/x@1234567a", "sha256:1234567a"),
    ],
)  # fmt: skip
def test_a_selector_is_an_alias_a_number_or_a_digest(text: str, selector: object) -> None:
    assert Ref.parse(text).selector == selector


@pytest.mark.parametrize(
    "text",
    ["", "acme", "acme/", "/x", "a/b/c", "Acme/x", "acme/X", "acme/ü", "acme/a b", "acme/a\n", "acme/a\0", "../x",
     "acme/..", "acme/a..b", "acme/-a", "acme/a-", "acme/.a", "acme/con", "acme/nul.txt", "acme/" + "a" * 65,
     "acmе/x", "acme/\u202ex", "acme/ａ", "acme/a\u200bb", "acme/x:", "acme/x:v3", "acme/x:3", "acme/x:sha256",
     "acme/x:deadbeef", "acme/x@prod", "acme/x@0", "acme/x@-1", "acme/x@03", "acme/x@٣", "acme/x@sha256:00",
     "acme/x@9999999999", "acme/x@v0", "acme/x@v03", "acme/x@abcdef1", "acme/x@sha256:abcdef1", "acme/x@ABCDEF12",
     f"acme/x@{DIGEST}0", "api/x", "admin/x", "resolve/x"],
)  # fmt: skip
def test_a_name_outside_the_grammar_is_refused(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        Ref.parse(text)
    assert caught.value.code in ("NAME_INVALID", "DIGEST_INVALID")
    assert caught.value.detail


@pytest.mark.parametrize(
    ("text", "next_step"),
    [
        ("acme/My-Support", "use 'my-support'"), ("acme/my support", ""), ("acme/cust-05@1", ""),
        ("acme/cust-00:prod", ""), ("acme/-x", ""),
    ],
)  # fmt: skip
def test_a_suggestion_differs_from_a_refused_name_only_in_case(text: str, next_step: str) -> None:
    with pytest.raises(Invalid) as caught:
        AdapterName.parse(text)
    assert caught.value.next_step == next_step


@pytest.mark.parametrize("text", ["SmolLM2-135M-Instruct", "meta-llama/Llama-3.1-8B", "llama-a"])
def test_a_base_may_be_called_as_models_are(text: str) -> None:
    assert names.base_name(text) == text


@pytest.mark.parametrize("text", ["", "a/b/c", "../x", "a b", "/a", "a/", "a..b", "lläma", "a\n", "x" * 129])
def test_a_base_name_outside_the_grammar_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        names.base_name(text)


@pytest.mark.parametrize(
    "text",
    [
        "adapter_config.json",
        "a/b/c.json",
        "README.md",
        "x-y_z.safetensors",
        "Tom's style (v1.0) [xl], a+b & c=d!.safetensors",
    ],
)
def test_a_plain_relative_path_is_a_file_path(text: str) -> None:
    assert names.file_path(text) == text


@pytest.mark.parametrize(
    "text",
    ["", "/etc/passwd", "../x", "a/../b", "a//b", "./a", "a/.", "a\\b", "C:x", "a:b", ".env", ".git/config", "a.",
     "a ", "con", "aux.json", "lpt1.txt", "a\0", "a\nb", "ü", "a/" * 9 + "b", "x" * 256, "a/NUL.x/b"],
)  # fmt: skip
def test_a_path_that_some_system_reads_otherwise_is_refused(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        names.file_path(text)
    assert caught.value.code == "FILE_REFUSED"
    assert caught.value.findings[0].code == "file.path_invalid"
