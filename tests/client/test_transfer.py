"""Push a folder and pull a version with our own client: what is sent, what is verified, what is left alone."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import httpx
import pytest

from registry.client import transfer
from registry.client.api import Registry
from registry.client.base_folder import base_spec_from
from registry.client.cache import Cache
from registry.client.folder import read_folder
from registry.digest import Digest
from registry.errors import Corrupt, Invalid, NotFound, Reason, RegistryError, TooLarge
from registry.names import AdapterName, Ref
from tests import forge
from tests.world import URL, World

NAME = AdapterName("acme", "support")
REF = Ref.parse("acme/support")


class Counted:
    """A transport that counts requests and may bend the bodies of answers."""

    def __init__(self, world: World) -> None:
        self.requests: list[tuple[str, str]] = []
        self.sent_bytes = 0
        self.bend = lambda body: body
        self._inner = world.transport
        outer = self

        class Transport(httpx.BaseTransport):
            def handle_request(self, request: httpx.Request) -> httpx.Response:
                outer.requests.append((request.method, request.url.path))
                answer = outer._inner.handle_request(request)
                if "/files/" not in request.url.path:
                    return answer
                answer.read()
                headers = [(k, v) for k, v in answer.headers.raw if k.lower() != b"content-length"]
                return httpx.Response(answer.status_code, headers=headers, content=outer.bend(answer.content))

        self.registry = Registry(URL, world.secret, Transport())

    def methods(self, method: str) -> int:
        return sum(m == method for m, _ in self.requests)


@pytest.fixture
def counted(world: World) -> Counted:
    world.add_base()
    return Counted(world)


@pytest.fixture
def folder(world: World, tmp_path: Path) -> Path:
    return forge.write(world.files(), tmp_path / "adapter")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".adapter.json"}


# ------------------------------------------------------------------ push
def test_a_folder_is_pushed_and_the_second_time_no_byte_is_sent(counted: Counted, folder: Path) -> None:
    first = transfer.push_folder(counted.registry, folder, NAME)
    assert (first.created, first.version.number) == (True, 1)
    counted.requests.clear()
    second = transfer.push_folder(counted.registry, folder, NAME, base="tiny-llama")
    assert (second.created, second.version.number) == (False, 1)
    assert counted.methods("PUT") == 0
    assert len(counted.requests) == 3


def test_what_is_left_out_is_said(counted: Counted, folder: Path) -> None:
    (folder / "checkpoint-10").mkdir()
    (folder / "optimizer.pt").write_bytes(b"x")
    (folder / "notes.docx").write_bytes(b"x")
    (folder / ".env").write_text("SECRET=1")
    told: list[Reason] = []
    pushed = transfer.push_folder(counted.registry, folder, NAME, left_out=told.append)
    assert {r.place for r in told} == {"checkpoint-10", "optimizer.pt", "notes.docx", ".env"}
    assert {f.path for f in pushed.version.files} == {forge.CONFIG, forge.WEIGHTS, "README.md"}


def test_a_golden_file_from_elsewhere_is_kept_as_golden_jsonl(counted: Counted, folder: Path, tmp_path: Path) -> None:
    golden = tmp_path / "cases.txt"
    golden.write_text('{"prompt": "hi", "answer": "ahoy"}\n')
    pushed = transfer.push_folder(counted.registry, folder, NAME, golden=golden)
    assert Digest.of(golden.read_bytes()) in {f.digest for f in pushed.version.files if f.path == "golden.jsonl"}


def test_parents_become_edges(counted: Counted, world: World, folder: Path) -> None:
    parent = world.push("acme/parent").version
    pushed = transfer.push_folder(counted.registry, folder, NAME, parents=[Ref.parse("acme/parent@1")])
    assert [(e.digest, e.name, e.relation) for e in pushed.version.parents] == [
        (parent.digest, "acme/parent@1", "continued")
    ]


def test_progress_ends_at_what_was_to_be_sent(counted: Counted, folder: Path) -> None:
    seen = [0, 0]

    class Watch:
        def start(self, total_bytes: int) -> None:
            seen[0] = total_bytes

        def advance(self, count: int) -> None:
            seen[1] += count

    transfer.push_folder(counted.registry, folder, NAME, progress=Watch())
    assert seen[0] == seen[1] == sum(len(data) for data in contents(folder).values())


def test_a_base_that_nobody_registered_is_named_with_the_next_step(counted: Counted, tmp_path: Path) -> None:
    strange = forge.lora(forge.llama(), config={"base_model_name_or_path": "nobody/knows"})
    folder = forge.write(strange, tmp_path / "strange")
    with pytest.raises(NotFound) as refusal:
        transfer.push_folder(counted.registry, folder, NAME)
    assert "nobody/knows" in refusal.value.detail
    assert "--base" in refusal.value.next_step
    assert transfer.push_folder(counted.registry, folder, NAME, base="tiny-llama").created


# ------------------------------------------------------------------ folders that are refused before a byte is sent
def link(folder: Path) -> None:
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to("/etc/passwd")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "LICENSE")


def unix_socket(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "merges.txt"))


def pickled(folder: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")


def code(folder: Path) -> None:
    (folder / "modeling.py").write_text("print()")


def no_weights(folder: Path) -> None:
    (folder / forge.WEIGHTS).unlink()


def no_config(folder: Path) -> None:
    (folder / forge.CONFIG).unlink()


def large_card(folder: Path) -> None:
    (folder / "README.md").write_bytes(b"x" * (2**20 + 1))


def cut_weights(folder: Path) -> None:
    (folder / forge.WEIGHTS).write_bytes((folder / forge.WEIGHTS).read_bytes()[:-1])


@pytest.mark.parametrize(
    ("spoil", "kind", "reason"),
    [
        (link, Invalid, "file.special_refused"),
        (pipe, Invalid, "file.special_refused"),
        (unix_socket, Invalid, "file.special_refused"),
        (pickled, Invalid, "file.pickle_refused"),
        (code, Invalid, "file.code_refused"),
        (no_weights, Invalid, "adapter.weights_missing"),
        (no_config, Invalid, "adapter.config_missing"),
        (large_card, TooLarge, "file.too_large"),
        (cut_weights, Invalid, "weights.offsets_invalid"),
    ],
)
def test_a_folder_that_breaks_a_rule_is_refused_before_a_byte_is_sent(
    counted: Counted, folder: Path, spoil: object, kind: type[RegistryError], reason: str
) -> None:
    spoil(folder)  # type: ignore[operator]
    with pytest.raises(kind) as refusal:
        transfer.push_folder(counted.registry, folder, NAME)
    assert reason in {r.code for r in refusal.value.reasons}
    assert counted.requests == []


def test_a_folder_that_is_not_there_or_is_a_file_is_said(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", Path(__file__)):
        with pytest.raises(Invalid) as refusal:
            read_folder(path)
        assert refusal.value.code == "FOLDER_INVALID"


# ------------------------------------------------------------------ pull
@pytest.fixture
def pushed(counted: Counted, folder: Path) -> dict[str, bytes]:
    transfer.push_folder(counted.registry, folder, NAME)
    counted.requests.clear()
    return contents(folder)


def test_what_is_pulled_is_what_was_pushed(
    counted: Counted, pushed: dict[str, bytes], tmp_path: Path, cache: Cache
) -> None:
    resolved = transfer.pull(counted.registry, REF, tmp_path / "deep" / "out", cache=cache)
    assert contents(tmp_path / "deep" / "out") == pushed
    assert resolved.number == 1
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["out"]


def test_a_second_pull_fetches_nothing(
    counted: Counted, pushed: dict[str, bytes], tmp_path: Path, cache: Cache
) -> None:
    transfer.pull(counted.registry, REF, tmp_path / "one", cache=cache)
    counted.requests.clear()
    transfer.pull(counted.registry, REF, tmp_path / "two", cache=cache)
    assert [path for _, path in counted.requests if "/files/" in path] == []
    assert contents(tmp_path / "two") == pushed


def test_a_damaged_cache_is_noticed_and_mended(
    counted: Counted, pushed: dict[str, bytes], tmp_path: Path, cache: Cache
) -> None:
    transfer.pull(counted.registry, REF, tmp_path / "one", cache=cache)
    kept = cache.path_of(Digest.of(pushed[forge.WEIGHTS]))
    kept.chmod(0o644)
    kept.write_bytes(b"\0" * len(pushed[forge.WEIGHTS]))
    transfer.pull(counted.registry, REF, tmp_path / "two", cache=cache)
    assert contents(tmp_path / "two") == pushed
    assert kept.read_bytes() == pushed[forge.WEIGHTS]


def test_a_cache_that_cannot_be_written_is_passed_over(
    counted: Counted, pushed: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    transfer.pull(counted.registry, REF, tmp_path / "out", cache=Cache(tmp_path / "file" / "cache"))
    assert contents(tmp_path / "out") == pushed


@pytest.mark.parametrize(
    "bend",
    [
        lambda body: body[:-1],
        lambda body: body + b"x",
        lambda body: bytes([body[0] ^ 1]) + body[1:],
        lambda body: body[:-1] + bytes([body[-1] ^ 128]),
        lambda _body: b"",
    ],
)
@pytest.mark.parametrize("cached", [True, False])
def test_bent_bytes_are_refused_and_the_old_folder_stays(
    counted: Counted, pushed: dict[str, bytes], world: World, tmp_path: Path, cache: Cache, bend: object, cached: bool
) -> None:
    out = tmp_path / "out"
    transfer.pull(counted.registry, REF, out, cache=None)
    world.push("acme/support")
    counted.bend = bend  # type: ignore[assignment]
    with pytest.raises(Corrupt):
        transfer.pull(counted.registry, REF, out, cache=cache if cached else None)
    assert contents(out) == pushed
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []
    assert [p for p in cache.root.rglob("*") if p.is_file()] == []


def test_a_new_version_replaces_the_folder_as_a_whole(
    counted: Counted, pushed: dict[str, bytes], world: World, tmp_path: Path, cache: Cache
) -> None:
    out = tmp_path / "out"
    transfer.pull(counted.registry, REF, out, cache=cache)
    files = {k: v for k, v in world.files().items() if k != "README.md"}
    world.push("acme/support", files)
    transfer.pull(counted.registry, REF, out, cache=cache)
    assert contents(out) == files


@pytest.mark.parametrize("name", ["thesis.tex", "README.md"])
def test_a_folder_that_no_pull_made_is_never_replaced(
    counted: Counted, pushed: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("years of work")
    with pytest.raises(Invalid, match="not put there by a pull"):
        transfer.pull(counted.registry, REF, tmp_path / "mine", cache=None)
    assert (tmp_path / "mine" / name).read_text() == "years of work"


def test_files_that_were_added_to_a_pulled_folder_keep_it(
    counted: Counted, pushed: dict[str, bytes], tmp_path: Path
) -> None:
    transfer.pull(counted.registry, REF, tmp_path / "out", cache=None)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(Invalid, match=r"notes\.txt"):
        transfer.pull(counted.registry, REF, tmp_path / "out", cache=None)


def test_a_pulled_folder_can_be_pushed_again_as_the_same_version(
    counted: Counted, pushed: dict[str, bytes], tmp_path: Path
) -> None:
    transfer.pull(counted.registry, REF, tmp_path / "out", cache=None)
    assert transfer.push_folder(counted.registry, tmp_path / "out", NAME).created is False


# ------------------------------------------------------------------ bases
def test_a_base_is_read_without_its_weights(tmp_path: Path) -> None:
    folder = forge.llama(hidden=256).write(tmp_path / "base")
    spec, bytes_read = base_spec_from(folder, "tiny")
    assert (spec.name, spec.hidden) == ("tiny", 256)
    small = sum(p.stat().st_size for p in folder.iterdir() if p.suffix != ".safetensors")
    assert bytes_read <= small + 2**16
    assert spec.weights_bytes > 10 * bytes_read


def test_a_folder_that_is_no_base_is_said(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="no folder"):
        base_spec_from(tmp_path / "nothing", "tiny")
    with pytest.raises(Invalid, match=r"no config\.json"):
        base_spec_from(tmp_path, "tiny")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(Invalid, match="safetensors"):
        base_spec_from(tmp_path, "tiny")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short relative paths for sockets, and nobody's cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
