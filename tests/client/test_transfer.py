"""Push a folder with our own client: what is sent, what is said, what is refused before a byte leaves."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from registry.client.local.folder import read_folder
from registry.client.transfer import pull, push
from registry.digest import Digest
from registry.errors import Invalid, NotFound, RegistryError, TooLarge
from registry.findings import Finding
from registry.names import Ref
from registry.server.database.models.pushes import PushRow
from tests import samples
from tests.client.counting import NAME, CountingClient, contents
from tests.harness import Harness, rows


def test_a_folder_is_pushed_and_the_second_time_no_byte_is_sent(counting_client: CountingClient, folder: Path) -> None:
    first = push.push_folder(counting_client.registry, folder, NAME)
    assert (first.created, first.version.number) == (True, 1)
    counting_client.requests.clear()
    second = push.push_folder(counting_client.registry, folder, NAME, base="tiny-llama")
    assert (second.created, second.version.number) == (False, 1)
    assert counting_client.methods("PUT") == 0
    assert len(counting_client.requests) == 2


def test_what_is_left_out_is_said(counting_client: CountingClient, folder: Path) -> None:
    (folder / "checkpoint-10").mkdir()
    (folder / "optimizer.pt").write_bytes(b"x")
    (folder / "notes.docx").write_bytes(b"x")
    (folder / ".env").write_text("SECRET=1")
    findings: list[Finding] = []
    pushed = push.push_folder(counting_client.registry, folder, NAME, left_out=findings.append)
    assert {r.location for r in findings} == {"checkpoint-10", "optimizer.pt", "notes.docx", ".env"}
    assert {f.path for f in pushed.version.files} == {samples.CONFIG, samples.WEIGHTS, "README.md"}


def test_a_golden_file_from_elsewhere_is_kept_as_golden_jsonl(
    counting_client: CountingClient, folder: Path, tmp_path: Path
) -> None:
    golden = tmp_path / "cases.txt"
    golden.write_text('{"prompt": "hi", "expected": "ahoy"}\n')
    pushed = push.push_folder(counting_client.registry, folder, NAME, golden=golden)
    assert Digest.of(golden.read_bytes()) in {f.digest for f in pushed.version.files if f.path == "golden.jsonl"}


def test_parents_become_edges(counting_client: CountingClient, harness: Harness, folder: Path) -> None:
    parent = harness.push("acme/parent").version
    pushed = push.push_folder(counting_client.registry, folder, NAME, parents=[Ref.parse("acme/parent@1")])
    assert [(e.digest, e.name, e.relation) for e in pushed.version.parents] == [
        (parent.digest, "acme/parent@1", "continued")
    ]


def test_progress_ends_at_what_was_to_be_sent(counting_client: CountingClient, folder: Path) -> None:
    progress = [0, 0]

    class Watch:
        def start(self, total_bytes: int) -> None:
            progress[0] = total_bytes

        def advance(self, count: int) -> None:
            progress[1] += count

    push.push_folder(counting_client.registry, folder, NAME, progress=Watch())
    assert progress[0] == progress[1] == len(contents(folder)[samples.WEIGHTS])  # the plan had the small files


def test_an_unregistered_base_is_named_with_the_next_step(counting_client: CountingClient, tmp_path: Path) -> None:
    strange = samples.lora(samples.llama(), config={"base_model_name_or_path": "nobody/knows"})
    folder = samples.write(strange, tmp_path / "strange")
    with pytest.raises(NotFound) as refusal:
        push.push_folder(counting_client.registry, folder, NAME)
    assert "nobody/knows" in refusal.value.detail
    assert "--base" in refusal.value.next_step
    assert push.push_folder(counting_client.registry, folder, NAME, base="tiny-llama").created


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


def pointer(folder: Path) -> None:
    """What `git clone` leaves without Git LFS: also of files that are no weights."""
    (folder / "README.md").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n")


def code(folder: Path) -> None:
    (folder / "modeling.py").write_text("print()")


def no_weights(folder: Path) -> None:
    (folder / samples.WEIGHTS).unlink()


def no_config(folder: Path) -> None:
    (folder / samples.CONFIG).unlink()


def large_card(folder: Path) -> None:
    (folder / "README.md").write_bytes(b"x" * (2**20 + 1))


def cut_weights(folder: Path) -> None:
    (folder / samples.WEIGHTS).write_bytes((folder / samples.WEIGHTS).read_bytes()[:-1])


@pytest.mark.parametrize(
    ("spoil", "kind", "reason"),
    [
        (link, Invalid, "file.special_refused"),
        (pipe, Invalid, "file.special_refused"),
        (unix_socket, Invalid, "file.special_refused"),
        (pickled, Invalid, "file.pickle_refused"),
        (pointer, Invalid, "file.lfs_pointer"),
        (code, Invalid, "file.code_refused"),
        (no_weights, Invalid, "adapter.weights_missing"),
        (no_config, Invalid, "adapter.config_missing"),
        (large_card, TooLarge, "file.too_large"),
        (cut_weights, Invalid, "safetensors.offsets_invalid"),
    ],
)
def test_a_folder_that_breaks_a_rule_is_refused_before_a_byte_is_sent(
    counting_client: CountingClient,
    harness: Harness,
    folder: Path,
    spoil: object,
    kind: type[RegistryError],
    reason: str,
) -> None:  # fmt: skip
    spoil(folder)  # type: ignore[operator]
    with pytest.raises(kind) as refusal:
        push.push_folder(counting_client.registry, folder, NAME)
    assert reason in {r.code for r in refusal.value.findings}
    assert {path for _, path in counting_client.requests} <= {"/api/v1/pushes"}
    with harness.session() as session:
        assert rows(session, PushRow) == []


def test_what_follows_the_last_tensor_is_said_before_gigabytes_are_hashed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Digest, "of_file", lambda path: pytest.fail(f"{path} is hashed"))
    with (folder / samples.WEIGHTS).open("r+b") as weights:
        weights.truncate(4 * 2**30)
    with pytest.raises(Invalid, match="bytes follow the last tensor"):
        read_folder(folder)


def test_too_many_files_are_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry.client.local.folder.FILES_LIMIT", 1)
    with pytest.raises(TooLarge, match="has 3 files of a version, and the limit is 1"):
        read_folder(folder)


def test_a_folder_that_is_not_there_or_is_a_file_is_said(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", Path(__file__)):
        with pytest.raises(Invalid) as refusal:
            read_folder(path)
        assert refusal.value.code == "FOLDER_INVALID"


def test_a_program_pushes_and_pulls_without_the_command(
    counting_client: CountingClient, folder: Path, tmp_path: Path
) -> None:
    version = push.push_folder(counting_client.registry, folder, NAME).version
    assert pull.pull(counting_client.registry, f"{NAME}@1", tmp_path / "out", cache=None).digest == version.digest
    assert contents(tmp_path / "out") == contents(folder)
