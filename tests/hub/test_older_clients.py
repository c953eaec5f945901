"""Hub clients of other generations and languages, unchanged, against the same live server. `make test-hub`."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from tests import forge
from tests.hub import clients, venvs
from tests.hub import live as lives
from tests.hub.live import NAME, NESTED, Live

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not venvs.are_wanted(), reason="asks clients of other generations: make test-hub does it"),
]
SCRIPT = Path(__file__).with_name("_javascript_client.mjs")


@pytest.mark.parametrize("version", venvs.HUBS)
def test_each_generation_of_huggingface_hub_reads_everything(live: Live, tmp_path: Path, version: str) -> None:
    clients.check_python(live, _python(version), tmp_path)


def test_the_fast_downloader_of_old_takes_no_token_to_the_store(live: Live, tmp_path: Path) -> None:
    """hf_transfer sends the token wherever a GET is redirected to: it must be sent there at HEAD."""
    before = len(live.relay.asked("GET"))
    clients.check_python(live, _python("0.34.4"), tmp_path, HF_HUB_ENABLE_HF_TRANSFER="1")
    assert len(live.relay.asked("GET")) > before


@pytest.mark.parametrize(
    ("version", "command"),
    [("0.34.4", "huggingface-cli"), ("0.34.4", "hf"), ("1.10.1", "hf"), ("1.33.0", "hf"), ("2.1.1", "hf")],
)
def test_each_commands_download_of_an_alias(live: Live, tmp_path: Path, version: str, command: str) -> None:
    program = _python(version).with_name(command)
    done = live.run([program, "download", NAME, "--revision", "canary", "--local-dir", "here"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path: (tmp_path / "here" / path).read_bytes() for path in live.files[0]} == live.files[0]


def test_the_javascript_client_reads_everything(live: Live, tmp_path: Path) -> None:
    folder = venvs.javascript()
    if folder is None:
        pytest.skip("there is no node and npm here")
    (tmp_path / "node_modules").symlink_to(folder / "node_modules")
    found = lives.last_line(live.run(["node", SCRIPT, clients.order(live)], tmp_path))
    first, second = live.files
    weights = sha256(first[forge.WEIGHTS]).hexdigest()
    assert found["weights"] == weights == found["cached"][0]
    assert found["cached"][1] == live.commits[0] == found["sha"]
    assert found["weights at main"] == sha256(second[forge.WEIGHTS]).hexdigest()
    assert (found["nested"], found["slice"]) == (sha256(first[NESTED]).hexdigest(), first[forge.WEIGHTS][8:24].hex())
    assert found["about"]["size"] == len(first[forge.WEIGHTS])
    assert found["about"]["etag"].strip('"') == weights
    ids = clients.blob_ids(first)
    files = {path: (size, oid, lfs) for path, kind, size, oid, lfs in found["files"] if kind == "file"}
    assert files == {p: (len(d), ids[p], weights if p == forge.WEIGHTS else "") for p, d in first.items()}
    assert (found["below"], sorted(found["paths"])) == ([NESTED], sorted(["README.md", NESTED]))
    assert (found["commits"], found["who"]) == (live.commits[::-1], "user")
    assert NAME in found["of base"]
    assert (found["of other"], found["exists"], found["no repository"][0]) == ([], [True, False], "404")
    assert "adapter push FOLDER NAME" in found["push"][1]
    live.no_token_left_home()


def _python(version: str) -> Path:
    python = venvs.hub_python(version)
    assert python is not None, "make test-hub brings it"
    return python
