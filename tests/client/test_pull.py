"""Pull a version: what is verified, what is fetched, what is never replaced. And read a base's folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from registry.api.transfer import PullPlan
from registry.client.local.base_folder import base_spec_from
from registry.client.local.cache import LINK_FROM_BYTES, Cache
from registry.client.local.destination import Destination
from registry.client.transfer import pull, push
from registry.digest import Digest
from registry.errors import Corrupt, Invalid, RegistryError
from registry.names import Ref
from tests import samples
from tests.client.counting import NAME, REF, CountingClient, contents
from tests.harness import Harness


@pytest.fixture
def pushed(counting_client: CountingClient, folder: Path) -> dict[str, bytes]:
    push.push_folder(counting_client.registry, folder, NAME)
    counting_client.requests.clear()
    return contents(folder)


def test_what_is_pulled_is_what_was_pushed(
    counting_client: CountingClient, pushed: dict[str, bytes], tmp_path: Path, cache: Cache
) -> None:
    resolved = pull.pull(counting_client.registry, REF, tmp_path / "deep" / "out", cache=cache)
    assert contents(tmp_path / "deep" / "out") == pushed
    assert resolved.number == 1
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["out"]


def test_a_second_pull_fetches_nothing(
    counting_client: CountingClient, pushed: dict[str, bytes], tmp_path: Path, cache: Cache
) -> None:
    pull.pull(counting_client.registry, REF, tmp_path / "one", cache=cache)
    counting_client.requests.clear()
    pull.pull(counting_client.registry, REF, tmp_path / "two", cache=cache)
    assert [path for _, path in counting_client.requests if "/files/" in path] == []
    assert contents(tmp_path / "two") == pushed


def test_a_damaged_cache_is_detected_and_repaired(
    counting_client: CountingClient, pushed: dict[str, bytes], tmp_path: Path, cache: Cache
) -> None:
    pull.pull(counting_client.registry, REF, tmp_path / "one", cache=cache)
    cached = cache.path_of(Digest.of(pushed[samples.WEIGHTS]))
    cached.chmod(0o644)
    cached.write_bytes(b"\0" * len(pushed[samples.WEIGHTS]))
    pull.pull(counting_client.registry, REF, tmp_path / "two", cache=cache)
    assert contents(tmp_path / "two") == pushed
    assert cached.read_bytes() == pushed[samples.WEIGHTS]


def test_a_cache_that_cannot_be_written_is_passed_over(
    counting_client: CountingClient, pushed: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    pull.pull(counting_client.registry, REF, tmp_path / "out", cache=Cache(tmp_path / "file" / "cache"))
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
    counting_client: CountingClient,
    pushed: dict[str, bytes],
    harness: Harness,
    tmp_path: Path,
    cache: Cache,
    bend: object,
    cached: bool,
) -> None:
    out = tmp_path / "out"
    pull.pull(counting_client.registry, REF, out, cache=None)
    harness.push("acme/support")
    counting_client.bend = bend  # type: ignore[assignment]
    with pytest.raises(Corrupt):
        pull.pull(counting_client.registry, REF, out, cache=cache if cached else None)
    assert contents(out) == pushed
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []
    assert all(Digest.of(p.read_bytes()).hex == p.name for p in cache.root.rglob("*") if p.is_file())


@pytest.mark.usefixtures("pushed")
def test_small_files_come_with_the_plan_and_the_weights_in_one_request(
    counting_client: CountingClient, tmp_path: Path
) -> None:
    pull.pull(counting_client.registry, REF, tmp_path / "out", cache=None)
    assert [path.rsplit("/", 1)[-1] for _, path in counting_client.requests] == ["pulls", samples.WEIGHTS]


@pytest.mark.parametrize(
    ("lie", "gone"),
    [
        ("AAAA", "http://127.0.0.1:9/gone"), ("", "http://[::1"), ("not base64", "http://127.0.0.1:99999/"),
        ("é", f"http://{'ü' * 300}/"), ("é", "file:///etc/passwd"),
    ],
)  # fmt: skip
def test_what_a_plan_brings_along_is_not_believed(
    counting_client: CountingClient, pushed: dict[str, bytes], tmp_path: Path, cache: Cache, lie: str, gone: str
) -> None:
    honest = counting_client.registry.plan_pulls

    def lying(
        refs: Sequence[Ref | str], *, patient: bool = False
    ) -> tuple[list[PullPlan | RegistryError], dict[Digest, str]]:
        (plan,), small = honest(refs, patient=patient)
        assert isinstance(plan, PullPlan)
        direct = {file.path: gone for file in plan.resolved.files}
        return [plan.model_copy(update={"direct": direct, "direct_seconds": 10**400})], dict.fromkeys(small, lie)

    counting_client.registry.plan_pulls = lying  # type: ignore[method-assign]
    counting_client.registry.connection._wait = lambda _seconds: None
    pull.pull(counting_client.registry, REF, tmp_path / "out", cache=cache)
    assert contents(tmp_path / "out") == pushed


@pytest.mark.usefixtures("pushed")
def test_a_new_version_replaces_the_folder_as_a_whole(
    counting_client: CountingClient, harness: Harness, tmp_path: Path, cache: Cache
) -> None:
    out = tmp_path / "out"
    pull.pull(counting_client.registry, REF, out, cache=cache)
    files = {k: v for k, v in harness.files().items() if k != "README.md"}
    harness.push("acme/support", files)
    pull.pull(counting_client.registry, REF, out, cache=cache)
    assert contents(out) == files


@pytest.mark.parametrize("name", ["thesis.tex", "README.md"])
@pytest.mark.usefixtures("pushed")
def test_a_folder_that_no_pull_made_is_never_replaced(
    counting_client: CountingClient, tmp_path: Path, name: str
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("years of work")
    with pytest.raises(Invalid, match="not created by a pull"):
        pull.pull(counting_client.registry, REF, tmp_path / "mine", cache=None)
    assert (tmp_path / "mine" / name).read_text() == "years of work"


@pytest.mark.usefixtures("pushed")
def test_files_that_were_added_to_a_pulled_folder_keep_it(counting_client: CountingClient, tmp_path: Path) -> None:
    pull.pull(counting_client.registry, REF, tmp_path / "out", cache=None)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(Invalid, match=r"notes\.txt"):
        pull.pull(counting_client.registry, REF, tmp_path / "out", cache=None)


@pytest.mark.usefixtures("pushed")
def test_a_pulled_folder_can_be_pushed_again_as_the_same_version(
    counting_client: CountingClient, tmp_path: Path
) -> None:
    pull.pull(counting_client.registry, REF, tmp_path / "out", cache=None)
    assert push.push_folder(counting_client.registry, tmp_path / "out", NAME).created is False


# ------------------------------------------------------------------ hashed again
@pytest.mark.usefixtures("pushed")
def test_a_pulled_folder_that_is_right_is_hashed_again_and_stays(
    counting_client: CountingClient, tmp_path: Path, cache: Cache
) -> None:
    pull.pull(counting_client.registry, REF, tmp_path / "out", cache=cache)
    was = (tmp_path / "out").stat().st_ino
    counting_client.requests.clear()
    resolved, damaged = pull.verify(counting_client.registry, REF, tmp_path / "out", cache=cache)
    assert (resolved.number, damaged, len(counting_client.requests)) == (1, [], 1)
    assert (tmp_path / "out").stat().st_ino == was


def test_one_bit_of_a_pulled_file_is_found_and_only_that_file_is_fetched(
    counting_client: CountingClient, pushed: dict[str, bytes], tmp_path: Path, cache: Cache
) -> None:
    pull.pull(counting_client.registry, REF, tmp_path / "out", cache=cache)
    weights, config = pushed[samples.WEIGHTS], tmp_path / "out" / samples.CONFIG
    cached = cache.path_of(Digest.of(weights))
    for path in (tmp_path / "out" / samples.WEIGHTS, cached):
        path.chmod(0o644)
        path.write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    config.unlink()
    counting_client.requests.clear()
    _, damaged = pull.verify(counting_client.registry, REF, tmp_path / "out", cache=cache)
    assert {(reason.code, reason.location) for reason in damaged} == {
        ("pull.file_damaged", str(tmp_path / "out" / samples.WEIGHTS)),
        ("pull.cache_damaged", str(cached)),
    }
    assert [path.rpartition("/")[2] for _, path in counting_client.requests if "/files/" in path] == [samples.WEIGHTS]
    assert contents(tmp_path / "out") == pushed
    assert cached.read_bytes() == weights
    assert pull.verify(counting_client.registry, REF, tmp_path / "out", cache=cache)[1] == []


@pytest.mark.usefixtures("pushed")
def test_a_folder_that_no_pull_made_is_not_replaced_by_verifying_it(
    counting_client: CountingClient, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / samples.WEIGHTS).write_text("years of work")
    with pytest.raises(Invalid, match="not created by a pull"):
        pull.verify(counting_client.registry, REF, tmp_path / "mine", cache=None)
    assert (tmp_path / "mine" / samples.WEIGHTS).read_text() == "years of work"


# ------------------------------------------------------------------ bases
def test_a_base_is_read_without_its_weights(tmp_path: Path) -> None:
    folder = samples.llama(hidden=256).write(tmp_path / "base")
    spec, bytes_read = base_spec_from(folder, "tiny")
    assert (spec.name, spec.hidden) == ("tiny", 256)
    assert 0 < bytes_read * 100 < spec.weights_bytes, "under one percent of the weights"


def test_a_folder_that_is_no_base_is_said(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="no folder"):
        base_spec_from(tmp_path / "nothing", "tiny")
    with pytest.raises(Invalid, match=r"no config\.json"):
        base_spec_from(tmp_path, "tiny")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(Invalid, match="safetensors"):
        base_spec_from(tmp_path, "tiny")


def test_what_is_put_into_the_destination_is_forced_to_disk_and_a_small_cached_file_is_not_waited_for(
    counting_client: CountingClient,
    pushed: dict[str, bytes],
    tmp_path: Path,
    cache: Cache,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert max(len(data) for data in pushed.values()) < LINK_FROM_BYTES
    forced: list[Path] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        forced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    pull.pull(counting_client.registry, REF, tmp_path / "out", cache=cache)
    assert set(pushed) <= {path.name for path in forced}
    assert [path for path in forced if cache.root in path.parents] == []


KILLED = """
import os, signal, sys
from pathlib import Path
from registry.client.local.destination import Destination
with Destination(Path(sys.argv[1])) as folder:
    (folder / "half.safetensors").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_pull_left_is_removed_by_the_next_one_once_it_is_old(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", KILLED, str(out)], check=False)
    assert done.returncode == -signal.SIGKILL
    (leftover,) = tmp_path.iterdir()
    with Destination(out):
        assert leftover.exists(), "it is young: its writer may be on a machine whose locks are not seen here"
    os.utime(leftover, (0, 0))
    with Destination(out):
        assert not leftover.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_locked_and_foreign_entries_stay(tmp_path: Path) -> None:
    others = [
        tmp_path / name for name in (".out.backup", ".outer.0123456789ab", ".out.0123456789ab.tar", "out.0123456789ab")
    ]
    for other in others:
        other.mkdir()
        os.utime(other, (0, 0))
    with Destination(tmp_path / "out") as slow:
        os.utime(slow, (0, 0))
        with Destination(tmp_path / "out"):
            assert slow.exists()
        (slow / "README.md").write_text("slow")
    assert (tmp_path / "out" / "README.md").read_text() == "slow"
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / "out"])
