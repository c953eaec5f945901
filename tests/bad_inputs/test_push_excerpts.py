"""A plan carries the first bytes of files: it refuses what is malformed or does not fit, before a byte is sent."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from registry.adapters import companions
from registry.adapters import read as contents
from registry.api import transfer
from registry.api.access import NamespaceSet
from registry.api.bases import BaseAdd
from registry.api.transfer import PushItem, PushPlan
from registry.client.local.folder import Folder, read_files, read_folder
from registry.client.transfer import push
from registry.compat import tokenizers
from registry.digest import Digest
from registry.errors import Invalid, NotFound, Refused, RegistryError, TooLarge
from registry.names import AdapterName
from registry.server.database.models.pushes import PushRow
from registry.server.push import inspect
from registry.server.push.inspect import Excerpts
from registry.strict import json as strict_json
from registry.versions.files import Read
from tests import non_peft_files, samples
from tests.bad_files import CONFIGS, WEIGHTS
from tests.bad_inputs.raw_push import RawClient
from tests.base_specs import spec_of
from tests.bulk import PUSHES, commit_push
from tests.harness import Harness, rows, upload

pytestmark = pytest.mark.security
NAME = AdapterName("acme", "support")


@pytest.fixture
def based(harness: Harness) -> Harness:
    """A registry with a base."""
    harness.add_base()
    return harness


def planned(harness: Harness, folder: Folder, *, base: str = "", **more: Any) -> PushPlan | RegistryError:
    """The outcome of planning a push of this folder, with excerpts as a client sends them."""
    data = folder.read_excerpts() if "data" not in more else more["data"]
    positions = {path: n for n, path in enumerate(data)}
    item = PushItem(name=str(NAME), manifest=folder.draft(), base=base, excerpts=more.get("positions", positions))
    (outcome,) = harness.admin.plan_pushes([item], excerpts=tuple(data.values()), dry_run=more.get("dry_run", False))
    return outcome


def written(harness: Harness, tmp_path: Path, files: samples.Files | None = None) -> Folder:
    return read_folder(samples.write(files or harness.files(), tmp_path / "adapter"))


def assert_nothing_planned(harness: Harness) -> None:
    with harness.session() as session:
        assert rows(session, PushRow) == []


@pytest.mark.parametrize(("cases", "path"), [(WEIGHTS, samples.WEIGHTS), (CONFIGS, samples.CONFIG)])
def test_malformed_files_are_refused_by_the_plan(
    refusing: RawClient, tmp_path: Path, cases: dict[str, tuple[bytes, str, str]], path: str
) -> None:
    harness, sent_whole = refusing.harness, []
    for number, (name, (data, code, reason)) in enumerate(cases.items()):
        folder = samples.write({**harness.files(), path: data}, tmp_path / str(number))
        outcome: PushPlan | RegistryError
        try:
            outcome = planned(harness, read_folder(folder), base="tiny-llama")
        except (TooLarge, Invalid) as error:  # limits and pointers are seen on this machine already
            outcome = error
        if isinstance(outcome, PushPlan):
            sent_whole.append(name)
            continue
        codes = {finding.code for finding in outcome.findings}
        if codes == {"file.lfs_pointer"}:
            code, reason = "FOLDER_INVALID", "file.lfs_pointer"
        assert outcome.code == code, name
        assert (reason in codes) != ("file.too_large" in codes), name
        assert path in outcome.detail
    assert sent_whole == [], "these need the bytes"
    assert_nothing_planned(harness)


def test_a_strict_namespace_refuses_before_a_byte_is_sent(based: Harness, tmp_path: Path) -> None:
    wide = samples.write(samples.lora(samples.llama(hidden=128)), tmp_path / "wide")
    stored = push.push_folder(based.admin, wide, NAME, base="tiny-llama").version
    based.admin.change_namespace("acme", NamespaceSet(strict=True))
    other = samples.write(samples.lora(samples.llama(hidden=128), seed=9), tmp_path / "other")
    with based.session() as session:
        before = len(rows(session, PushRow))
    with pytest.raises(Refused, match=r"does not fit its base 'tiny-llama': .*takes \[8, 64\] there") as refusal:
        push.push_folder(based.admin, other, NAME, base="tiny-llama")
    assert (refusal.value.code, refusal.value.findings[0].code) == ("INCOMPATIBLE", "compat.shape")
    with based.session() as session:
        assert len(rows(session, PushRow)) == before
    again = push.push_folder(based.admin, wide, NAME, base="tiny-llama")
    assert (again.created, again.version.digest) == (False, stored.digest), "a version that exists stays"


def test_excerpts_of_other_bytes_change_nothing(based: Harness, tmp_path: Path) -> None:
    based.push("acme/first")
    based.admin.change_namespace("acme", NamespaceSet(strict=True))
    files = based.files()
    honest = written(based, tmp_path, files).read_excerpts()
    strange = {**files, samples.WEIGHTS: files[samples.WEIGHTS].replace(b"q_proj", b"x_proj")}
    folder = read_folder(samples.write(strange, tmp_path / "strange"))
    assert isinstance(planned(based, folder), Refused)
    plan = planned(based, folder, data=honest)
    assert isinstance(plan, PushPlan), plan
    upload(based.admin, plan, strange)
    with pytest.raises(Refused, match="does not fit its base"):
        commit_push(based.admin, plan.push_id)


@pytest.mark.parametrize("position", [7, -1])
def test_an_excerpt_is_one_of_the_request(based: Harness, tmp_path: Path, position: int) -> None:
    folder = written(based, tmp_path)
    item = {"name": str(NAME), "manifest": folder.draft().model_dump(), "excerpts": {samples.WEIGHTS: position}}
    response = RawClient(based).ask("POST", PUSHES, json={"items": [item], "excerpts": ["AAAA"]})
    assert response.status_code == 400
    assert response.json()["detail"] == "excerpts: an item refers to one that is not there"


def test_what_one_request_has_parsed_is_bounded(
    based: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Excerpts that several pushes share are parsed with each of their configurations."""
    folders = [written(based, tmp_path / str(n), based.files(rank=n + 1)) for n in range(2)]
    data = [folder.read_excerpts() for folder in folders]
    monkeypatch.setattr(transfer, "READ_LIMIT_BYTES", sum(map(len, data[0].values())))
    items = [
        {
            "name": f"acme/a{n}",
            "manifest": folder.draft().model_dump(),
            "excerpts": {path: n * 2 + k for k, path in enumerate(data[n])},
        }
        for n, folder in enumerate(folders)
    ]
    table = [base64.b64encode(piece).decode() for each in data for piece in each.values()]
    first, both = (
        RawClient(based).ask("POST", PUSHES, json={"items": chosen, "excerpts": table}) for chosen in (items[:1], items)
    )
    assert first.json()["items"][0]["result"]
    assert both.status_code == 400
    assert "plan fewer at once" in both.json()["detail"]


@pytest.mark.parametrize("text", ['{"a": [1, 2, 3]}', '{"a": [1, 2, 3'])
def test_an_excerpt_under_many_paths_and_names_is_parsed_once_or_counts_for_each(
    based: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    parsed, path = list[bytes](), "{}/tokenizer_config.json"
    parse = strict_json.parse_object

    def parse_and_note(data: bytes, *args: Any, **how: Any) -> Any:
        parsed.append(data)
        return parse(data, *args, **how)

    monkeypatch.setattr(strict_json, "parse_object", parse_and_note)
    piece = tmp_path / "piece"
    piece.write_text(text)
    written(based, tmp_path)
    sources = {entry.name: entry for entry in (tmp_path / "adapter").iterdir()}
    folder = read_files(tmp_path, sources | {path.format(n): piece for n in range(3)})
    manifest, excerpts = folder.draft().model_dump(), {path.format(n): 0 for n in range(3)}
    items = [{"name": f"acme/a{n}", "manifest": manifest, "excerpts": excerpts} for n in range(20)]
    body = {"items": items, "excerpts": [base64.b64encode(text.encode()).decode()]}
    responses = RawClient(based).ask("POST", PUSHES, json=body).json()["items"]
    assert len({response["problem"]["detail"] for response in responses}) == 1
    assert 0 < parsed.count(text.encode()) <= 6, "once for companions and once for templates"
    monkeypatch.setattr(transfer, "READ_LIMIT_BYTES", len(excerpts) * len(text) - 1)
    assert "plan fewer at once" in RawClient(based).ask("POST", PUSHES, json=body).json()["detail"]


def test_the_plan_chooses_the_base(based: Harness, tmp_path: Path) -> None:
    based.admin.set_base_aliases("tiny-llama", ["org/alias"])
    folder = written(based, tmp_path)
    of_config = planned(based, folder)
    by_alias = planned(based, folder, base="org/alias", data={})
    assert isinstance(of_config, PushPlan)
    assert isinstance(by_alias, PushPlan)
    assert of_config.base == by_alias.base
    assert of_config.digest == by_alias.digest == folder.manifest(of_config.base).digest
    assert of_config.push_id == by_alias.push_id, "both are one push"
    unnamed = planned(based, folder, data={})
    assert isinstance(unnamed, Invalid)
    assert (unnamed.code, unnamed.next_step) == ("BASE_INVALID", "pass --base NAME")
    assert isinstance(planned(based, folder, base="nobody/knows"), NotFound)


def test_a_dry_run_evaluates_and_keeps_nothing(based: Harness, tmp_path: Path) -> None:
    folder = written(based, tmp_path)
    plan = planned(based, folder, dry_run=True)
    assert isinstance(plan, PushPlan)
    assert (plan.push_id, plan.uploads) == ("", [])
    assert plan.digest == folder.manifest(plan.base).digest
    (result,) = push.try_all(based.admin, [(folder.path, str(NAME))])
    assert isinstance(result.value, PushPlan)
    assert result.value.digest == plan.digest
    assert_nothing_planned(based)


def test_equal_configurations_and_headers_are_parsed_once_for_plan_and_commit(
    based: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def read_any_and_count(*args: Any, **how: Any) -> Any:
        read.append(1)
        return contents.read_any(*args, **how)

    monkeypatch.setattr(inspect, "read_any", read_any_and_count)
    config = {"inference_mode": True, "lora_dropout": 0.125}
    fleet = [(samples.write(based.files(config=config), tmp_path / f"a{n}"), f"acme/a{n}") for n in range(5)]
    results = push.push_all(based.admin, fleet)
    assert all(result.value and result.value.created for result in results)
    assert len(read) == 1


def test_a_tokenizer_that_many_versions_have_is_searched_once(based: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[str] = []

    def search(sizes: Mapping[str, int], read: Read) -> None:
        searched.extend(sizes)
        companions.check_token_files(sizes, read)

    monkeypatch.setattr(inspect, "check_token_files", search)
    monkeypatch.setattr(inspect, "_SEARCHED", {})
    tokenizer = {"tokenizer.json": b'{"model": {"vocab": {"only here": 1}}}'}
    for number in range(3):
        based.push(f"acme/a{number}", based.files() | tokenizer)
    assert searched == ["tokenizer.json"]
    with pytest.raises(Invalid, match="auto_map makes a loader import code"):
        based.push("acme/b", based.files() | {"tokenizer.json": b'{"auto_map": {}}'})


def test_a_large_tokenizer_is_parsed_once_for_many_versions(based: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are sent once, and the versions that have them cost nothing to push."""
    parsed: list[str] = []

    def count(module: Any, name: str) -> None:
        function = getattr(module, name)

        def parse(*args: Any) -> Any:
            parsed.append(name)
            return function(*args)

        monkeypatch.setattr(module, name, parse)

    spec = spec_of(samples.llama())
    prints = spec.fingerprints.model_copy(update={"tokenizer": Digest.of(b"its tokenizer")})
    based.bases["own"] = spec.model_copy(update={"name": "own", "fingerprints": prints})
    based.admin.add_base(BaseAdd(spec=based.bases["own"]))
    for name in ("tokenizer_fingerprint", "template_text"):
        count(tokenizers, name)
    beside = {
        "tokenizer.json": b'{"model": {"vocab": {"%s": 0}}}' % (b"a" * 5 * 2**20),
        "tokenizer_config.json": b'{"bos_token": "%s"}' % (b"b" * 10**6),
    }
    for number in range(3):
        based.push(f"acme/a{number}", based.files() | beside, base="own")
    assert sorted(parsed) == ["template_text", "tokenizer_fingerprint"]


def test_equal_bytes_at_other_positions_are_other_content(based: Harness) -> None:
    """A file that has the bytes of an alpha where another file of its size has its alpha is read by itself."""
    tensors = samples.tensors_of(non_peft_files.kohya())
    names = sorted(tensors)
    first, first_starts = written_in_order(tensors, names)
    second, second_starts = written_in_order(tensors, names[::-1])
    false = bytearray(first)
    for name in names:
        if name.endswith(".alpha"):
            false[first_starts[name] : first_starts[name] + 4] = struct.pack("<f", 1000.0)
            false[second_starts[name] : second_starts[name] + 4] = struct.pack("<f", 2.0)
    alphas = []
    for number, data in enumerate((first, second, bytes(false))):
        based.push(f"acme/a{number}", {"style.safetensors": data})
        alphas.append(based.admin.version(f"acme/a{number}@1").facts["alpha"])
    assert alphas == [2.0, 2.0, 1000.0]


def written_in_order(tensors: dict[str, samples.Tensor], names: list[str]) -> tuple[bytes, dict[str, int]]:
    """A weights file with its tensors in this order and a header of 2 KiB, and where each tensor begins in it."""
    header: dict[str, Any] = {}
    data = b""
    for name in names:
        dtype, shape, body = tensors[name]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(body or b"")]}
        data += body or b""
    starts = {name: 8 + 2048 + fields["data_offsets"][0] for name, fields in header.items()}
    return samples.raw_safetensors(json.dumps(header).ljust(2048), data), starts


def test_adapters_of_other_tools_are_evaluated_by_their_headers(based: Harness, tmp_path: Path) -> None:
    """Of image adapters the alphas are values, which no excerpt has."""
    for number, files in enumerate(
        (non_peft_files.gguf_adapter(samples.llama()), {"style.safetensors": non_peft_files.kohya()})
    ):
        folder = read_folder(samples.write(files, tmp_path / str(number)))
        assert isinstance(planned(based, folder, base="tiny-llama", dry_run=True), PushPlan)
        excerpt_of = Excerpts(folder.read_excerpts(), {file.path: file.size_bytes for file in folder.files})
        assert inspect.read_excerpts(folder.draft(), excerpt_of) is not None
