"""Engine verdicts on the server: asked, stored at push, renewed; fleets; and never a blob is read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import insert
from sqlmodel import select

from registry.api.bases import BaseAdd
from registry.api.evaluation import CheckRequest, RecheckEnginesRequest
from registry.api.jobs import ClaimRequest, FinishRequest
from registry.engines import rulebook
from registry.errors import Denied, Invalid, NotFound, Refused
from registry.evaluation.gates import Gate
from registry.evaluation.verdicts import Check
from registry.findings import Finding, Severity
from registry.server.database.models import FACT, AdapterRow, VerdictRow, VersionAttributeRow, VersionRow
from registry.server.evaluation import engine_profiles
from registry.server.maintenance import reevaluate
from tests import samples
from tests.base_specs import spec_of
from tests.harness import Harness
from tests.memory_blobs import MemoryBlobs
from tests.worker import image_cases

VLLM, WIDE, SGLANG = "vllm==0.33.0", "vllm==0.33.0,max_lora_rank=64", "sglang==0.5.23"


class NoReads(MemoryBlobs):
    """A store that tells when somebody reads from it."""

    closed = False

    def read(self, key: str, start: int, length: int) -> bytes:
        assert not self.closed, f"{key} was read"
        return super().read(key, start, length)


def close(harness: Harness) -> None:
    """From now on a read fails the test."""
    assert isinstance(harness.blobs, NoReads)
    harness.blobs.closed = True


@pytest.fixture
def harness(database_url: str) -> Iterator[Harness]:
    with Harness(database_url, blobs=NoReads(), engines=f"{VLLM} {SGLANG}") as harness:
        harness.add_base()
        yield harness


def stored(harness: Harness, ref: str = "acme/support") -> dict[str, str]:
    return {v.profile: v.outcome for v in harness.admin.version(ref).verdicts if v.check == "engine"}


def rows(harness: Harness) -> list[VerdictRow]:
    with harness.session() as session:
        return list(session.exec(select(VerdictRow).where(VerdictRow.check == "engine")).all())


def many(harness: Harness, count: int) -> None:
    """More versions of the first adapter's facts, as rows alone."""
    with harness.session(write=True) as session:
        pattern = session.exec(select(VersionRow)).first()
        adapter = session.exec(select(AdapterRow)).first()
        values = pattern.model_dump() | {"adapter_id": adapter.id}
        values.pop("id")
        new = [values | {"number": 100 + i, "digest": f"sha256:{i:064x}"} for i in range(count)]
        session.connection().execute(insert(VersionRow), new)


# ------------------------------------------------------------------ at push
def test_a_push_stores_a_verdict_for_each_engine_that_the_operator_lists(harness: Harness) -> None:
    harness.push("acme/support", harness.files(rank=64))
    assert stored(harness) == {VLLM: "fail", SGLANG: "pass"}
    made_by = {row.profile: row.made_by["rules"] for row in rows(harness)}
    assert made_by == {VLLM: rulebook.digest("vllm"), SGLANG: rulebook.digest("sglang")}
    line = harness.admin.adapter("acme/support")
    assert line.verdicts[f"engine {VLLM}"] == "fail"


def test_a_server_with_an_unknown_engine_in_its_settings_does_not_start(database_url: str) -> None:
    with pytest.raises(Invalid, match="REGISTRY_ENGINES: unknown engine 'vlm'"):
        Harness(database_url, engines="vlm==0.33.0")


# ------------------------------------------------------------------ asked
def test_engine_verdicts_are_computed_without_reading_a_blob(harness: Harness) -> None:
    harness.push("acme/support", harness.files(rank=64))
    close(harness)
    items = harness.admin.verdicts("acme/support", [VLLM, WIDE]).items
    assert [(v.profile, v.outcome) for v in items] == [(VLLM, "fail"), (WIDE, "pass")]
    assert "max_lora_rank" in items[0].findings[0].message
    assert len(rows(harness)) == 2


def test_without_an_engine_the_stored_verdicts_are_the_response(harness: Harness) -> None:
    harness.push("acme/support")
    assert [str(v.check) for v in harness.admin.verdicts("acme/support").items] == [
        "compat",
        "weights",
        "engine",
        "engine",
    ]


@pytest.mark.parametrize("profile", ["vllm", "vlm==1.0", "vllm==0.33.0,max_lora_rank=33"])
def test_an_invalid_profile_is_a_bad_request(harness: Harness, profile: str) -> None:
    harness.push("acme/support")
    with pytest.raises(Invalid) as caught:
        harness.admin.verdicts("acme/support", [profile])
    assert caught.value.code == "REQUEST_INVALID"


def test_an_invisible_version_has_no_verdicts(harness: Harness) -> None:
    harness.push("acme/support")
    with pytest.raises(NotFound):
        harness.actor("pull", namespaces=["other"]).verdicts("acme/support", [VLLM])


@pytest.mark.parametrize(("severities", "outcome"), [((), "pass"), (("error",), "fail")])
def test_what_headers_cannot_compare_is_unknown_until_the_worker_asked_peft(
    harness: Harness, severities: tuple[Severity, ...], outcome: str
) -> None:
    base = samples.llama("unfamiliar")
    harness.bases["unfamiliar"] = spec_of(base).model_copy(update={"names_known": False})
    harness.admin.add_base(BaseAdd(spec=harness.bases["unfamiliar"]))
    narrow = samples.llama("unfamiliar", hidden=32, heads=2, kv_heads=1, intermediate=64)
    version = harness.push("acme/support", harness.files(narrow), base="unfamiliar").version
    assert set(stored(harness).values()) == {"unknown"}
    findings = tuple(Finding.of(severity, "compat.shape", "q_proj", "PEFT says no") for severity in severities)
    report = harness.report(version.digest, "unfamiliar").model_copy(update={"compat": findings})
    claimed = next(job for job in iter(lambda: harness.admin.claim(ClaimRequest(worker="w")), None)
                   if job.job.subject == "acme/support@1")  # fmt: skip
    harness.admin.finish(claimed.job.id, FinishRequest(lease_token=claimed.lease.token, report=report))
    assert set(stored(harness).values()) == {outcome}


def test_a_header_is_checked_before_the_push(harness: Harness) -> None:
    files = harness.files(rank=64)
    weights = files[samples.WEIGHTS]
    length = int.from_bytes(weights[:8], "little")
    request = CheckRequest(
        base="tiny-llama", config=files[samples.CONFIG].decode(), header=weights[8 : 8 + length].decode(),
        size_bytes=len(weights), engines=[VLLM, WIDE],
    )  # fmt: skip
    items = harness.admin.check(request).items
    assert [(str(v.check), v.outcome) for v in items] == [("compat", "warn"), ("engine", "fail"), ("engine", "pass")]
    assert rows(harness) == []
    with pytest.raises(Invalid) as caught:
        harness.admin.check(request.model_copy(update={"header": json.dumps({"x": 1})}))
    assert caught.value.code == "TENSORS_INVALID"


def test_a_header_of_another_tool_is_checked_before_the_push(harness: Harness) -> None:
    harness.admin.add_base(BaseAdd(spec=image_cases.bases()["flux-tiny"]))
    for case, fits in (("flux-kohya", "pass"), ("flux-comfy", "pass"), ("flux-wrong-width", "fail")):
        data = image_cases.CASES[case].file
        length = int.from_bytes(data[:8], "little")
        request = CheckRequest(
            base="flux-tiny", file="style.safetensors", header=data[8 : 8 + length].decode(), size_bytes=len(data),
            engines=["diffusers==0.42.1"],
        )  # fmt: skip
        compat, loaded = harness.admin.check(request).items
        assert compat.outcome == fits
        assert loaded.outcome == ("fail" if fits == "fail" else "unknown")


# ------------------------------------------------------------------ fleets
def test_engine_settings_name_the_largest_adapter_and_the_limit_it_needs(harness: Harness) -> None:
    harness.push("acme/small", harness.files(rank=8))
    harness.push("acme/large", harness.files(rank=64))
    harness.push("acme/gone", harness.files(rank=128))
    harness.admin.yank("acme/gone@1", "wrong data")
    close(harness)
    settings = harness.admin.engine_settings("tiny-llama", [VLLM, SGLANG])
    assert (settings.base, settings.adapters) == ("tiny-llama", 2)
    vllm = settings.items[0]
    assert (vllm.rank_limit, vllm.raised_by) == (64, ("acme/large",))
    assert "--max-lora-rank 64" in vllm.flags
    assert harness.actor("pull", namespaces=["other"]).engine_settings("tiny-llama", [VLLM]).adapters == 0
    first = harness.admin.engine_settings("tiny-llama", [VLLM], limit=1)
    assert (first.adapters, first.items[0].max_rank) == (1, 8)
    second = harness.admin.engine_settings("tiny-llama", [VLLM], limit=1, cursor=first.next_cursor)
    assert (second.adapters, second.items[0].max_rank, second.next_cursor) == (1, 64, "")


# ------------------------------------------------------------------ renewal
def renewed(harness: Harness, setting: str) -> tuple[int, int]:
    done = reevaluate.evaluate_again(harness.engine, harness.blobs, engine_profiles.parse_setting(setting))
    return done.versions, done.verdicts


def test_only_verdicts_older_than_the_rules_are_renewed(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    harness.push("acme/support")
    harness.push("acme/other")
    setting = harness.settings.engines
    assert renewed(harness, setting) == (2, 0)
    before = rulebook.digest
    monkeypatch.setattr(rulebook, "digest", lambda name: "sha256:new" if name == "vllm" else before(name))
    assert renewed(harness, setting) == (2, 2)
    assert renewed(harness, setting) == (2, 0)
    assert len(rows(harness)) == 6
    assert {row.made_by["rules"] for row in sorted(rows(harness), key=lambda row: row.id or 0)[-2:]} == {"sha256:new"}


def test_an_engine_added_to_the_settings_gets_its_verdicts_without_reading_blobs(harness: Harness) -> None:
    harness.push("acme/support", harness.files(rank=64))
    close(harness)
    assert renewed(harness, f"{VLLM} {SGLANG} {WIDE}") == (1, 1)
    assert stored(harness) == {VLLM: "fail", SGLANG: "pass", WIDE: "pass"}


def test_a_run_is_cut_into_requests_and_is_for_administrators(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.push("acme/support")
    many(harness, 5)
    monkeypatch.setattr(reevaluate, "BATCH", 2)
    monkeypatch.setattr(reevaluate, "SECONDS", 0.0)
    counts: list[Any] = []
    cursor = ""
    while True:
        page = harness.admin.recheck_engines(RecheckEnginesRequest(cursor=cursor))
        counts.append((page.versions, page.verdicts))
        cursor = page.next_cursor
        if not cursor:
            break
    assert sum(looked for looked, _ in counts) == 6
    assert sum(written for _, written in counts) == 10
    assert len(counts) >= 3
    with pytest.raises(Denied):
        harness.actor("push").recheck_engines(RecheckEnginesRequest())


# ------------------------------------------------------------------ headers that are read again
def as_an_older_release_kept_it(harness: Harness) -> None:
    """The only version's row with facts and tags of a release that knew other ones, and with verdicts of those."""
    with harness.session(write=True) as session:
        row = session.exec(select(VersionRow)).one()
        row.facts = {"format": "unknown", "card": {"datasets": ["d"]}, "engine": {"facts_version": 0, "format": "peft"}}
        row.method, row.rank = "", None
        session.add(row)
        for verdict in session.exec(select(VerdictRow).where(VerdictRow.check == "engine")).all():
            verdict.made_by = {"rules": "sha256:old"}
            session.add(verdict)
        for tag in session.exec(select(VersionAttributeRow)).all():
            session.delete(tag)
        session.add(VersionAttributeRow(version_id=row.id or 0, key=f"{FACT}format:unknown", value=""))


def test_facts_of_an_older_release_are_read_from_the_header_again_once(harness: Harness) -> None:
    before = harness.push("acme/support", harness.files(rank=64), annotations={"team": "search"}).version
    as_an_older_release_kept_it(harness)
    assert harness.admin.verdicts("acme/support", [WIDE]).items[0].outcome == "unknown"
    done = reevaluate.evaluate_again(
        harness.engine, harness.blobs, engine_profiles.parse_setting(harness.settings.engines)
    )
    assert (done.versions, done.headers, done.verdicts) == (1, 1, 2)
    after = harness.admin.version("acme/support")
    assert (after.digest, after.number) == (before.digest, before.number)
    assert after.facts == before.facts | {"card": {"datasets": ["d"]}}
    assert (line := harness.admin.adapter("acme/support")).method == "LORA"
    assert line.rank == 64
    assert stored(harness) == {VLLM: "fail", SGLANG: "pass"}
    assert [str(v.outcome) for v in after.verdicts if v.check == "compat"] == ["warn"]  # rank over width
    for search in ({"format": "peft"}, {"target": ["q_proj"]}, {"annotation": ["team=search"]}, {"rank_min": 64}):
        assert [item.name for item in harness.admin.adapters(**search).items] == ["acme/support"], search
    assert harness.admin.adapters(format="unknown").items == []
    close(harness)
    assert renewed(harness, harness.settings.engines) == (1, 0)


def test_an_alias_evaluates_the_versions_that_name_it_again_and_opens_their_gate(harness: Harness) -> None:
    for name, claim in (("acme/hub", "hub/Tiny"), ("acme/other", "hub/Other"), ("acme/same", "tiny-llama")):
        harness.push(name, harness.files(config={"base_model_name_or_path": claim}))
        harness.admin.set_gate(name, "prod", Gate(passes=(Check.COMPAT,)))
    before = harness.admin.version("acme/hub")
    with pytest.raises(Refused) as closed:
        harness.admin.promote("acme/hub", "prod", "1", generation=0)
    assert [finding.code for finding in closed.value.findings] == ["gate.compat_warn"]
    harness.admin.set_base_aliases("tiny-llama", ["hub/Tiny"])
    harness.transport.settle()
    after = harness.admin.version("acme/hub")
    [compat] = [verdict for verdict in after.verdicts if verdict.check is Check.COMPAT]
    assert (compat.outcome, [finding.code for finding in compat.findings]) == ("pass", ["compat.base_same_weights"])
    assert (after.digest, after.facts) == (before.digest, before.facts)
    harness.admin.promote("acme/hub", "prod", "1", generation=0)
    with pytest.raises(Refused):
        harness.admin.promote("acme/other", "prod", "1", generation=0)
    with harness.session() as session:
        compat_rows = session.exec(select(VerdictRow.version_id).where(VerdictRow.check == "compat")).all()
    assert len(compat_rows) == 4
    close(harness)
    assert renewed(harness, harness.settings.engines) == (3, 0)


def test_an_unreadable_header_stays_unknown_and_stops_nothing(harness: Harness) -> None:
    harness.push("acme/support")
    as_an_older_release_kept_it(harness)
    before = harness.admin.version("acme/support").facts
    done = reevaluate.evaluate_again(
        harness.engine, MemoryBlobs(), engine_profiles.parse_setting(harness.settings.engines)
    )
    assert (done.versions, done.headers, done.verdicts) == (1, 0, 2)
    assert harness.admin.version("acme/support").facts == before
    assert stored(harness) == {VLLM: "unknown", SGLANG: "unknown"}


# ------------------------------------------------------------------ what a worker has seen
DIFFUSERS = "diffusers==0.42.1"


def push_style(harness: Harness) -> None:
    harness.admin.add_base(BaseAdd(spec=image_cases.bases()["flux-tiny"]))
    harness.bases["flux-tiny"] = image_cases.bases()["flux-tiny"]
    harness.push("art/style", {"style.safetensors": image_cases.CASES["flux-kohya"].file}, base="flux-tiny")


def test_no_engine_of_text_models_is_asked_about_an_image_adapter(harness: Harness) -> None:
    push_style(harness)
    harness.admin.recheck_engines(RecheckEnginesRequest())
    assert [str(verdict.check) for verdict in harness.admin.version("art/style").verdicts] == ["compat", "weights"]
    assert engine_verdicts(harness, VLLM) == [("fail", "engine.vllm.kind")], "a gate may still name one"


def engine_verdicts(harness: Harness, profile: str = DIFFUSERS) -> list[tuple[str, str]]:
    return [(str(v.outcome), v.findings[0].code) for v in harness.admin.verdicts("art/style", [profile]).items]


@pytest.mark.parametrize("severity", ["info", "error"])
def test_what_a_worker_saw_diffusers_take_is_the_verdict_and_rechecks_keep_it(
    severity: Severity, harness: Harness
) -> None:
    push_style(harness)
    assert engine_verdicts(harness) == [("unknown", "engine.diffusers.not_loaded")]
    taken = Finding.of(severity, "smoke.tensors_loaded", "style.safetensors", "as diffusers says")
    harness.validate("art/style", engine=(taken,), made_by={"diffusers": "0.42.1"})
    outcome = "pass" if severity == "info" else "fail"
    assert stored(harness, "art/style")[DIFFUSERS] == outcome
    assert engine_verdicts(harness) == [(outcome, "smoke.tensors_loaded")]
    renewed(harness, f"{VLLM} {DIFFUSERS}")
    assert stored(harness, "art/style")[DIFFUSERS] == outcome
    (other,) = harness.admin.verdicts("art/style", ["diffusers==0.40.0"]).items
    assert other.outcome == "unknown"


@pytest.mark.parametrize("version", ["0.42.1,strength=1", "", "newest"])
def test_a_report_cannot_name_a_profile_that_there_is_not(version: str, harness: Harness) -> None:
    push_style(harness)
    taken = Finding.of("info", "smoke.tensors_loaded", "style.safetensors", "as diffusers says")
    harness.validate("art/style", engine=(taken,), made_by={"diffusers": version})
    assert stored(harness, "art/style") == {}
