"""The dialect as HTTP: what each generation of clients is told, byte ranges, encoded paths, errors in headers."""

from __future__ import annotations

from datetime import datetime

import httpx
import pytest

from registry.api.access import TokenCreate
from registry.client.audit import Audit
from registry.digest import Digest
from registry.names import AdapterName, Ref
from tests import samples
from tests.hub import clients
from tests.hub.live import CARD, NAME, NESTED, LiveServer

OLD, NEW = "unknown; hf_hub/0.34.4; python/3.11", "unknown; hf_hub/1.33.0"
RUST = "unknown/None; hf-hub/0.4.3; rust/unknown"
HEAD_REDIRECTS = {OLD: 302, NEW: 200, "unknown; hf_hub/2.4.0": 200, RUST: 200, "node": 200}
GET_REDIRECTS = {OLD: 302, NEW: 302, "unknown; hf_hub/2.4.0": 302, RUST: 200, "node": 302}


@pytest.mark.parametrize("agent", HEAD_REDIRECTS)
def test_a_client_is_redirected_only_if_it_drops_its_token(live: LiveServer, agent: str) -> None:
    path = f"/{NAME}/resolve/canary/{samples.WEIGHTS}"
    data = live.files[0][samples.WEIGHTS]
    with live.http(agent) as client:
        head, full = client.head(path), client.get(path)
        assert (head.status_code, full.status_code) == (HEAD_REDIRECTS[agent], GET_REDIRECTS[agent])
        for response in (head, full):
            assert response.headers["x-linked-etag"] == f'"{Digest.of(data).hex}"'
            assert response.headers["x-linked-size"] == str(len(data))
            assert response.headers["x-repo-commit"] == live.commits[0]
    for response in (head, full):
        if response.status_code == 302:
            assert httpx.get(response.headers["location"]).content == data
            assert response.headers["cache-control"] == "no-store"
    if response.status_code == 200:
        assert response.content == data
    if head.status_code == 200:
        assert (head.headers["etag"], head.headers["content-length"]) == (f'"{Digest.of(data).hex}"', str(len(data)))


@pytest.mark.security
def test_a_link_in_the_response_to_head_is_recorded_as_a_read(live: LiveServer) -> None:
    """Old clients ask with HEAD, and read by the link that they get."""
    token = live.registry.create_token(TokenCreate(name="reads by HEAD", scopes=["pull"])).secret
    with live.http(OLD, Authorization=f"Bearer {token}") as client:
        head = client.head(f"/{NAME}/resolve/{live.commits[0]}/{samples.WEIGHTS}")
    assert httpx.get(head.headers["location"]).content == live.files[0][samples.WEIGHTS]
    reads = [e for e in Audit(live.registry).events(action=["bytes.read"]) if e.actor == "token:reads by HEAD"]
    assert [(event.object, event.detail["count"]) for event in reads] == [(f"{NAME}@1", 1)]


def test_ranges_are_served_here_and_at_the_store(live: LiveServer) -> None:
    with live.http(NEW) as client:
        card = client.get(f"/{NAME}/resolve/v1/README.md", headers={"Range": "bytes=2-3"})
        assert (card.status_code, card.content) == (206, CARD[2:4])
        assert card.headers["content-range"] == f"bytes 2-3/{len(CARD)}"
        beyond = client.get(f"/{NAME}/resolve/v1/README.md", headers={"Range": "bytes=900-"})
        assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(CARD)}")
        data = live.files[0][samples.WEIGHTS]
        path = f"/{NAME}/resolve/v1/{samples.WEIGHTS}"
        look = client.get(path, headers={"Range": "bytes=0-0"})
        assert (look.status_code, look.headers["content-range"]) == (206, f"bytes 0-0/{len(data)}")
        assert look.headers["etag"] == f'"{Digest.of(data).hex}"'
        part = client.get(path, headers={"Range": "bytes=5-"}).headers["location"]
    response = httpx.get(part, headers={"Range": "bytes=5-"})
    assert (response.status_code, response.content) == (206, data[5:])


def test_an_etag_is_of_one_revision_exactly_and_a_small_files_is_gits(live: LiveServer) -> None:
    ids = clients.blob_ids(live.files[0])
    with live.http(NEW) as client:
        small = client.head(f"/{NAME}/resolve/canary/README.md")
        assert small.headers["etag"] == f'"{ids["README.md"]}"'
        etags = {
            revision: client.head(f"/{NAME}/resolve/{revision}/{samples.WEIGHTS}").headers["etag"]
            for revision in (
                "main",
                "HEAD",
                "v2",
                "2",
                live.commits[1],
                live.commits[1][:12],
                "canary",
                "v1",
                live.commits[0],
            )
        }
        pointer = client.get(f"/{NAME}/raw/v1/{samples.WEIGHTS}")
        assert pointer.headers["etag"] == f'"{ids[samples.WEIGHTS]}"'
        assert pointer.text.startswith("version https://git-lfs.github.com/spec/v1\noid sha256:")
        assert client.get(f"/{NAME}/raw/v1/README.md").content == CARD
    newest, oldest = (f'"{Digest.of(files[samples.WEIGHTS]).hex}"' for files in reversed(live.files))
    assert list(etags.values()) == [newest] * 6 + [oldest] * 3


@pytest.mark.parametrize("revision", ["refs%2Fheads%2Fcanary", "refs/heads/canary", "refs%2ftags%2fv1", "refs/tags/v1"])
@pytest.mark.parametrize("path", [NESTED, NESTED.replace("/", "%2F"), "part%2fone/README%2Emd"])
def test_a_revision_and_a_path_may_be_encoded_as_one_segment(live: LiveServer, revision: str, path: str) -> None:
    with live.http(NEW) as client:
        assert client.get(f"/{NAME}/resolve/{revision}/{path}").content == CARD * 2
        below = client.get(f"/api/models/{NAME}/tree/{revision}/part%2Fone").json()
        assert [entry["path"] for entry in below] == [NESTED]
        assert client.get(f"/api/models/{NAME}/revision/{revision}").json()["sha"] == live.commits[0]


def test_errors_are_in_headers_and_a_missing_file_names_the_commit(live: LiveServer) -> None:
    with live.http(NEW) as client:

        def code(path: str) -> tuple[int, str]:
            response = client.get(path)
            assert response.headers["x-error-message"] == response.json()["error"]
            assert response.headers["x-request-id"]
            return response.status_code, response.headers["x-error-code"]

        assert code(f"/{NAME}/resolve/main/nothing.json") == (404, "EntryNotFound")
        assert code(f"/{NAME}/resolve/nowhere/README.md") == (404, "RevisionNotFound")
        assert code(f"/{NAME}/resolve/refs%2Fpr%2F1/README.md") == (404, "RevisionNotFound")
        assert code(f"/{NAME}/resolve/0000000/README.md") == (404, "RevisionNotFound")
        assert code("/acme/nothing/resolve/main/README.md") == (404, "RepoNotFound")
        assert code("/gpt2/resolve/main/config.json") == code("/api/models/gpt2") == (404, "RepoNotFound")
        for traversal in ("..%2F..%2Fetc%2Fpasswd", "%2e%2e/%2e%2e/etc", "part%2F..%2FREADME.md"):
            assert code(f"/{NAME}/resolve/main/{traversal}") == (404, "EntryNotFound")
        absent = client.head(f"/{NAME}/resolve/main/nothing.json")
        assert absent.headers["x-repo-commit"] == live.commits[1]
        assert "only adapters" in client.get("/api/models/gpt2").headers["x-error-message"]
    nobody = httpx.get(f"{live.server.url}/api/models/{NAME}")
    assert (nobody.status_code, nobody.headers["x-error-code"]) == (401, "RepoNotFound")
    wrong = httpx.get(f"{live.server.url}/api/whoami-v2", headers={"Authorization": "Bearer hf_wrong"})
    assert (wrong.status_code, "x-error-code" in wrong.headers) == (401, False)
    assert wrong.headers["x-error-message"] == "Invalid credentials in Authorization header"
    assert "token" in wrong.json()["errors"][0]["message"]


def test_a_list_is_filtered_by_every_tag_that_its_entries_show(live: LiveServer) -> None:
    live.push("acme/sums", samples.lora(samples.llama(), config={"peft_type": "ADALORA"}))
    with live.http(NEW) as client:

        def listed(*tags: str) -> set[str]:
            models = client.get("/api/models", params={"filter": list(tags)}).json()
            return {model["id"] for model in models}

        whole = client.get(f"/api/models/{NAME}").json()
        [entry] = client.get("/api/models", params={"search": NAME}).json()
        assert {key: whole[key] for key in entry} == entry
        assert all(NAME in listed(tag) for tag in whole["tags"])
        assert NAME in listed(*whole["tags"])
        assert listed("lora", "adalora") == listed("peft", "kohya") == listed("nothing") == set()
        assert listed("adalora") == {"acme/sums"}


def test_a_card_is_shown_and_a_list_is_never_longer_than_its_filters_say(live: LiveServer) -> None:
    """A filter that was dropped without a word returned every adapter."""
    card = b"---\nlicense: mit\npipeline_tag: text-generation\ntags: [billing, PEFT, base_model:other]\n"
    card += b"language: [en, de]\n---\n"
    live.push("acme/with-card", {**samples.lora(samples.llama(), seed=5), "README.md": card})
    with live.http(NEW) as client:
        info = client.get("/api/models/acme/with-card").json()
        data = info["cardData"]
        assert (data["license"], data["language"], info["pipeline_tag"]) == ("mit", ["en", "de"], "text-generation")
        assert {"license:mit", "billing", "en", "text-generation"} <= set(info["tags"])
        assert "base_model:other" not in info["tags"]
        assert info["baseModels"]["models"] == [{"id": live.base.name}]
        assert info["safetensors"]["total"] == sum(info["safetensors"]["parameters"].values()) > 0

        def listed(query: str) -> set[str]:
            return {model["id"] for model in client.get(f"/api/models?author=acme&{query}").json()}

        assert all("acme/with-card" in listed(f"filter={tag}") for tag in info["tags"])
        found = ("filter=license:mit", "filter=billing,peft", "pipeline_tag=text-generation", "library=peft&filter=en")
        assert [listed(f"{query}&full=True&sort=downloads") for query in found] == [{"acme/with-card"}] * len(found)
        for query in ("filter=license:gpl", "pipeline_tag=image-classification", "library=transformers"):
            assert listed(query) == set(), query
        for query in ("gated=true", "apps=vllm", "num_parameters=min:1B", "sort=lastModified", "other=1"):
            refused = client.get(f"/api/models?{query}")
            assert refused.is_client_error or refused.status_code == 501, query
            assert query.split("=")[1 if "sort" in query else 0] in refused.headers["x-error-message"]


def test_the_last_change_of_a_branch_moves_with_its_alias(live: LiveServer) -> None:
    name = AdapterName("acme", "moved")
    for seed in (1, 2):
        live.push(str(name), samples.lora(samples.llama(), seed=seed))
    created = [live.registry.version(Ref(name, number)).created_at for number in (1, 2)]
    with live.http(NEW) as client:
        for generation, number in enumerate((1, 2)):
            live.registry.promote(name, "moving", str(number), generation=generation)
            shown = client.get(f"/api/models/{name}/revision/moving").json()
            assert datetime.fromisoformat(shown["lastModified"]) == to_milliseconds(created[number - 1])
            assert datetime.fromisoformat(shown["createdAt"]) <= to_milliseconds(created[0])
        repository = client.get(f"/api/models/{name}").json()
        [entry] = client.get("/api/models", params={"search": str(name)}).json()
    assert repository["lastModified"] == entry["lastModified"] == shown["lastModified"]
    assert repository["createdAt"] == entry["createdAt"] == shown["createdAt"] != shown["lastModified"]


def to_milliseconds(at: datetime) -> datetime:
    """As the Hub writes times."""
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


def test_a_token_may_have_the_prefix_that_javascript_requires(live: LiveServer) -> None:
    sent = {"Authorization": f"Bearer hf_{live.server.token}"}
    assert httpx.get(f"{live.server.url}/api/whoami-v2", headers=sent).json()["type"] == "user"


def test_errors_without_a_route_or_a_token_have_a_text_for_clients(live: LiveServer) -> None:
    with live.http(NEW) as client:
        for path, message in {
            f"/api/models/{NAME}/tree/main/%00": "U+0000",
            "/api/models?search=%00": "U+0000",
            f"/api/models/{NAME}/nothing": "there is no route",
        }.items():
            response = client.get(path)
            assert (response.is_success, message in response.headers["x-error-message"]) == (False, True), path
    unsigned = httpx.get(f"{live.server.url}/api/models/{NAME}")
    assert (unsigned.status_code, "set HF_TOKEN" in unsigned.headers["x-error-message"]) == (401, True)
