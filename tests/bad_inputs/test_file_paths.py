"""Paths and names that climb, hide, collide or deceive, through the API: refused, and nothing is stored."""

from __future__ import annotations

import pytest

from registry.digest import Digest
from tests.bad_inputs.raw_push import RawClient, assert_refused
from tests.harness import Harness


@pytest.fixture
def client(harness: Harness) -> RawClient:
    harness.add_base()
    return RawClient(harness)


CLIMBING = [
    "../adapter_model.safetensors",
    "a/../../README.md",
    "/etc/README.md",
    "./README.md",
    "a//README.md",
    "README.md/",
    "..\\README.md",
    "C:\\README.md",
    "C:README.md",
    "\\\\share\\README.md",
    "a\0/README.md",
    "a\n/README.md",
    "%2e%2e/a\x7f/README.md",
    "con/README.md",
    "NUL.txt/README.md",
    "lpt1/README.md",
    "trailing./README.md",
    "space /README.md",
    ".git/README.md",
    ".env/README.md",
    "ünder/README.md",
    "a\u202eb/README.md",
    "a\u200b/README.md",
    "\uff0e\uff0e/README.md",
    "a/" * 9 + "README.md",
    "a" * 250 + "/README.md",
    "",
    "%2e%2e/README.md",
    "a\"; filename*=UTF-8''evil.hta; x=\"/README.md",
    "a;b/README.md",
    "CONIN$/README.md",
    "con .x/README.md",
    "aux .safetensors",
    "COM0.safetensors",
    "-rf/README.md",
    " a/README.md",
    *(f"a{character}b.safetensors" for character in "<>|?*%;`$^~#{}"),
]


@pytest.mark.security
@pytest.mark.parametrize("path", CLIMBING)
def test_a_file_path_that_is_not_plain_is_refused(refusing: RawClient, path: str) -> None:
    response = refusing.plan({**refusing.harness.files(), path: b"x"})
    if "\0" in path:  # no text of a request may hold it, whatever it is for
        assert_refused(refusing.harness, response, 400, ["REQUEST_INVALID"])
    else:
        assert_refused(refusing.harness, response, 415, ["FILE_REFUSED"])


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("adapter_model.bin", "file.pickle_refused"),
        ("weights.pt", "file.pickle_refused"),
        ("weights.PKL", "file.pickle_refused"),
        ("modeling_llama.py", "file.code_refused"),
        ("kernel.so", "file.code_refused"),
        ("all.tar.gz", "file.archive_refused"),
        ("all.zip", "file.archive_refused"),
        ("model.safetensors", "file.whole_model"),
        ("unet/Diffusion_Pytorch_Model.safetensors", "file.whole_model"),
        ("notes.docx", "file.kind_unknown"),
        ("adapter_model.safetensors.index.json", "file.kind_unknown"),
    ],
)
def test_a_kind_of_file_that_a_version_does_not_hold_is_refused(refusing: RawClient, path: str, reason: str) -> None:
    response = refusing.plan({**refusing.harness.files(), path: b"x"})
    assert_refused(refusing.harness, response, 415, ["FILE_REFUSED"], reason)
    assert path in response.json()["detail"]


def test_paths_that_are_equal_where_case_does_not_count_are_refused(refusing: RawClient) -> None:
    response = refusing.plan({**refusing.harness.files(), "A/README.md": b"x", "a/README.md": b"y"})
    assert_refused(refusing.harness, response, 415, ["FILE_REFUSED"], "file.path_conflict")


@pytest.mark.security
@pytest.mark.parametrize(
    ("file", "inner"),
    [("a.gguf", "a.gguf/LICENSE"), ("README.md", "readme.MD/x/LICENSE"), ("a/README.md", "A/README.md/b/LICENSE")],
)
def test_a_path_that_is_a_file_and_a_folder_is_refused(refusing: RawClient, file: str, inner: str) -> None:
    response = refusing.plan({**refusing.harness.files(), file: b"x", inner: b"y"})
    assert_refused(refusing.harness, response, 415, ["FILE_REFUSED"], "file.path_conflict")
    assert file in response.json()["detail"]


def test_a_path_twice_is_refused(refusing: RawClient) -> None:
    manifest = refusing.manifest(refusing.harness.files())
    manifest["files"] = [manifest["files"][0], *manifest["files"]]
    response = refusing.plan_manifest(manifest)
    assert_refused(refusing.harness, response, 422, ["MANIFEST_INVALID"], "manifest.order")


NAMES = [
    "Acme/support",
    "acme/Support",
    "ac\u0441me/support",
    "acme/sup\u200bport",
    "acme/sup\u202eport",
    "\uff41cme/support",
    "acme/-support",
    "acme/support.",
    "acme/a..b",
    "acme/con",
    "acme/" + "a" * 65,
    "api/support",
    "admin/support",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_not_in_the_grammar_is_refused(refusing: RawClient, name: str) -> None:
    response = refusing.plan_manifest(refusing.manifest({}), name)
    body = refusing.plan_manifest(refusing.manifest(refusing.harness.files()), name)
    assert response.status_code in (400, 415, 422)
    assert_refused(refusing.harness, body, 422, ["NAME_INVALID"])


@pytest.mark.parametrize("middle", ["../..", "%2e%2e", "%2e%2e%2f%2e%2e", "%252e%252e", "..%5c..", "%00", "a%2fb"])
@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "HEAD"])
def test_a_url_that_climbs_is_4xx_and_says_no_inner_path(refusing: RawClient, middle: str, method: str) -> None:
    for path in (
        f"/api/v1/adapters/{middle}/support/versions/1/files/README.md",
        f"/api/v1/adapters/acme/support/versions/{middle}/files/README.md",
        f"/api/v1/adapters/acme/support/versions/1/files/{middle}",
        f"/api/v1/links/staging/{middle}/{Digest.of(b'').hex}?size=0&until=1&owner=&signature={'0' * 64}",
        f"/api/v1/links/{middle}",
        f"/api/v1/bases/{middle}",
    ):
        response = refusing.ask(method, path, content=b"" if method in ("PUT", "POST") else None)
        assert 400 <= response.status_code < 500, path
        assert "Traceback" not in response.text


@pytest.mark.parametrize(
    "path", ["../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "a%5cb", "README.md%00", "?path=../"]
)
def test_a_file_that_climbs_is_not_read_from_a_version(client: RawClient, path: str) -> None:
    client.harness.push("acme/support")
    response = client.ask("GET", f"/api/v1/adapters/acme/support/versions/1/files/{path}")
    assert response.status_code in (400, 404, 415, 422)


@pytest.mark.parametrize(
    "selector", ["v0", "V3", "v03", "0", "-1", "03", "9" * 40, "sha256:abc", "sha256:" + "A" * 64, "a b", "é"]
)
def test_a_selector_that_is_not_in_the_grammar_is_refused(client: RawClient, selector: str) -> None:
    client.harness.push("acme/support")
    response = client.ask("GET", f"/api/v1/resolve/acme/support/{selector}")
    assert response.status_code in (400, 422)
    assert response.json()["code"] in ("NAME_INVALID", "DIGEST_INVALID")


@pytest.mark.parametrize("alias", ["v3", "12", "sha256-abc", "0123456789abcdef", "Prod", "a/b", "pr\u043ed"])
def test_an_alias_that_looks_like_a_version_or_deceives_is_refused(client: RawClient, alias: str) -> None:
    client.harness.push("acme/support")
    planned = client.plan(client.harness.files())
    response = client.commit(planned, alias=alias)
    assert (response.status_code, response.json()["code"]) == (422, "NAME_INVALID")
