"""What every Hub client that pushes must be told, whatever its generation; and how it is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from registry.hub import commit_id
from registry.names import AdapterName, Ref
from tests import samples
from tests.hub import live as lives
from tests.hub.live import LiveServer

PUSHING = Path(__file__).with_name("_pushing_client.py")
CARD = "README.md"
WHOLE = [CARD, samples.CONFIG, samples.WEIGHTS]


def adapter_folder(folder: Path, seed: int = 900) -> Path:
    """A folder as a trainer leaves it, with a pickle."""
    samples.write({**samples.lora(samples.llama(), seed=seed), CARD: b"# Trained\n"}, folder / "adapter")
    (folder / "adapter" / "training_args.bin").write_bytes(b"a pickle")
    return folder / "adapter"


def check_python(live: LiveServer, python: Path, folder: Path, name: str, **environment: str) -> None:
    """All that a huggingface_hub pushes and is refused, by the Python that has it."""
    client_request = json.dumps({"name": name, "folder": str(adapter_folder(folder))})
    responses = lives.last_line(live.run([python, PUSHING, client_request], folder, **environment))
    _check_push(live, name, responses)
    _check_refusals(responses["refusals"])
    versions = [live.registry.version(Ref(AdapterName.parse(name), number)) for number in (1, 2, 3, 4)]
    assert [parent.name for version in versions for parent in version.parents] == [f"{name}@{n}" for n in (1, 2, 1)]
    assert versions[0].message == "Train\n\nFor long."
    commits = [commit_id(version.digest) for version in versions]
    assert responses["tags"] == {f"v{number}": commit for number, commit in enumerate(commits, 1)}
    assert responses["branches"] == {"main": commits[3], "canary": commits[3]}
    assert responses["commits"] == [[commits[2], "Third"], [commits[1], "Second"], [commits[0], "Train"]]
    live.no_token_left_home()


def _check_push(live: LiveServer, name: str, responses: dict[str, Any]) -> None:
    assert (responses["urls"], responses["empty"]) == ([f"{live.server.url}/{name}"] * 2, [])
    draft, newest, files = responses["draft"]
    assert (draft, files) == (newest, [CARD])
    first, newest, files = responses["first"]
    assert (first, responses["unchanged"], files, responses["pulled"]) == (newest, first, WHOLE, True)
    second, url, files = responses["second"]
    assert url == f"{live.server.url}/{name}/commit/{second}"
    assert files == ["LICENSE", *WHOLE, f"copy/{samples.WEIGHTS}"]
    assert (responses["stale"][0], "another commit" in responses["stale"][1]) == ("HfHubHTTPError", True)
    assert responses["third"][1] == ["LICENSE", *WHOLE]
    assert responses["drafts"]["parts"] == [True, [samples.WEIGHTS], True]
    commit, tags = responses["drafts"]["whole"]
    assert (tags, responses["drafts"]["gone"]) == ([commit], False)
    if responses["warnings"] or not responses["version"].startswith("0."):
        text = "\n".join(responses["warnings"])
        assert f"{name}@1 on {live.base.name}: compat pass; weights pass; smoke test queued" in text
        assert "left out: training_args.bin may be a pickle" in text


SENTENCES = {
    "pull request": ("HfHubHTTPError", "no pull requests"),
    "model": ("HfHubHTTPError", "`adapter base add NAME DIR`"),
    "no repository": ("RepositoryNotFoundError", "acme/absent"),
    "no branch": ("RevisionNotFoundError", "no branch 'absent'"),
    "version": ("BadRequestError", "versions do not change"),
    "tag": ("HfHubHTTPError", "the numbers of its versions"),
    "data set": ("HfHubHTTPError", "no repositories of type 'dataset'"),
    "squash": ("HfHubHTTPError", "are not squashed"),
    "alias": ("HfHubHTTPError", "adapter alias delete"),
    "absent file": ("EntryNotFoundError", "has no file 'absent.txt'"),
    "malformed": ("HfHubHTTPError", "a safetensors file begins with 8 bytes of length"),
}


def _check_refusals(responses: dict[str, Any]) -> None:
    assert responses.keys() == SENTENCES.keys()
    for case, (kind, message) in SENTENCES.items():
        assert responses[case][0].removeprefix("Remote") == kind, responses[case]
        assert message in responses[case][1], responses[case]
