"""Hub clients of other generations and languages, unchanged, against the same live server. `make test-hub`."""

from __future__ import annotations

import functools
import re
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from tests import samples
from tests.hub import clients, venvs
from tests.hub import live as lives
from tests.hub.live import NAME, NESTED, LiveServer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not venvs.are_wanted(), reason="asks clients of other generations: make test-hub does it"),
]
LARGE = "acme/large"
SCRIPT = Path(__file__).with_name("_javascript_client.mjs")


@pytest.mark.parametrize("version", venvs.HUBS)
def test_each_generation_of_huggingface_hub_reads_everything(live: LiveServer, tmp_path: Path, version: str) -> None:
    clients.check_python(live, _python(version), tmp_path)


def test_hf_transfer_sends_no_token_to_the_store(live: LiveServer, tmp_path: Path) -> None:
    """hf_transfer sends the token wherever a GET is redirected to: it must be sent there at HEAD."""
    before = len(live.proxy.targets("GET"))
    clients.check_python(live, _python("0.34.4"), tmp_path, HF_HUB_ENABLE_HF_TRANSFER="1")
    assert len(live.proxy.targets("GET")) > before


@pytest.mark.parametrize(
    ("version", "command"),
    [("0.34.4", "huggingface-cli"), ("0.34.4", "hf"), ("1.10.1", "hf"), ("1.33.0", "hf"), ("2.1.1", "hf")],
)
def test_each_commands_download_of_an_alias(live: LiveServer, tmp_path: Path, version: str, command: str) -> None:
    program = _python(version).with_name(command)
    done = live.run([program, "download", NAME, "--revision", "canary", "--local-dir", "here"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path: (tmp_path / "here" / path).read_bytes() for path in live.files[0]} == live.files[0]


def test_the_javascript_client_reads_everything(live: LiveServer, tmp_path: Path) -> None:
    folder = venvs.javascript()
    if folder is None:
        pytest.skip("there is no node and npm here")
    (tmp_path / "node_modules").symlink_to(folder / "node_modules")
    results = lives.last_line(live.run(["node", SCRIPT, clients.client_request(live)], tmp_path))
    first, second = live.files
    weights = sha256(first[samples.WEIGHTS]).hexdigest()
    assert results["weights"] == weights == results["cached"][0]
    assert results["cached"][1] == live.commits[0] == results["sha"]
    assert results["sha of HEAD"] == live.commits[1]
    assert results["weights at main"] == sha256(second[samples.WEIGHTS]).hexdigest()
    assert (results["nested"], results["slice"]) == (
        sha256(first[NESTED]).hexdigest(),
        first[samples.WEIGHTS][8:24].hex(),
    )
    assert results["about"]["size"] == len(first[samples.WEIGHTS])
    assert results["about"]["etag"].strip('"') == weights
    ids = clients.blob_ids(first)
    files = {path: (size, oid, lfs) for path, kind, size, oid, lfs in results["files"] if kind == "file"}
    assert files == {p: (len(d), ids[p], weights if p == samples.WEIGHTS else "") for p, d in first.items()}
    assert (results["below"], sorted(results["paths"])) == ([NESTED], sorted(["README.md", NESTED]))
    assert (results["commits"], results["who"]) == (live.commits[::-1], "user")
    assert NAME in results["of base"]
    assert (results["of other"], results["exists"], results["no repository"][0]) == ([], [True, False], "404")
    live.no_token_left_home()


RESUME = f"""
import hashlib, json, pathlib
from huggingface_hub import hf_hub_download
tries = 0
while True:  # those of old go on where they stopped when they are asked again, others by themselves
    tries += 1
    try:
        at = hf_hub_download({LARGE!r}, {samples.WEIGHTS!r})
        break
    except Exception:
        if tries == 3:
            raise
print(json.dumps(hashlib.sha256(pathlib.Path(at).read_bytes()).hexdigest()))
"""


@pytest.mark.parametrize("version", [*venvs.HUBS, ""])
def test_an_interrupted_download_resumes(live: LiveServer, tmp_path: Path, version: str) -> None:
    files = _large()
    if LARGE not in live.digest_of:
        live.digest_of[LARGE] = live.push(LARGE, files)
    before = len(live.proxy.heads)
    live.proxy.cut(after=14 * 2**20)
    python = _python(version) if version else sys.executable
    checksum = lives.last_line(live.run([python, "-c", RESUME], tmp_path))
    assert live.proxy.cut_after is None
    assert checksum == sha256(files[samples.WEIGHTS]).hexdigest()
    ranges = re.findall(r"(?i)\nrange: bytes=([1-9][0-9]*)-", "".join(live.proxy.heads[before:]))
    assert ranges, "the second request asked for everything again"
    live.no_token_left_home()


@functools.cache
def _large() -> samples.Files:
    """28 MiB of weights: enough for clients to keep what they have of them."""

    def full(tensors: dict[str, samples.Tensor]) -> dict[str, samples.Tensor]:
        return {name: (kind, shape, samples.constant(kind, shape, 0.01)) for name, (kind, shape, _) in tensors.items()}

    return samples.lora(samples.llama(), rank=4096, targets=samples.ATTENTION, change=full)


def _python(version: str) -> Path:
    python = venvs.hub_python(version)
    assert python is not None, "make test-hub brings it"
    return python
