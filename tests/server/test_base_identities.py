"""Which weights a base has: told once, compared with those of the other bases, and used when an adapter is pushed."""

from __future__ import annotations

import pytest

from registry.api.bases import BaseAdd
from registry.api.evaluation import CheckRequest
from registry.bases import BaseMatch
from registry.client.audit import Audit
from registry.errors import Conflict, Denied, Invalid, NotFound
from registry.evaluation.verdicts import Check
from registry.findings import Finding
from registry.server.catalog import base_weights
from tests import samples
from tests.base_specs import spec_of
from tests.harness import Harness
from tests.identities import make_identity, nudged, values

ONE = values()
SAME = make_identity(ONE)
CAST = make_identity(nudged(ONE, 0.0005), dtype="BF16")
TUNED = make_identity(nudged(ONE, 0.05))
PACKED = make_identity(nudged(ONE, 0.08, only="_proj"), quantization="bitsandbytes", packed="_proj")
OTHER = make_identity(values(1))


@pytest.fixture
def family(harness: Harness) -> Harness:
    """`tiny-llama` and its relatives, all with their weights told, and one base whose weights nobody knows."""
    members = {"tiny-llama": SAME, "cast": CAST, "tuned": TUNED, "packed-4bit": PACKED, "org/other": OTHER}
    for name, identity in members.items():
        spec = spec_of(samples.llama(name))
        harness.bases[name] = spec
        harness.admin.add_base(BaseAdd(spec=spec, identity=identity))
    harness.add_base(samples.llama("unknown"))
    return harness


def compat_findings(harness: Harness, files: samples.Files, base: str = "tiny-llama") -> list[Finding]:
    pushed = harness.push("acme/a", files, base=base)
    version = harness.admin.version(f"acme/a@{pushed.version.number}")
    return [f for v in version.verdicts if v.check is Check.COMPAT for f in v.findings]


def of_base(harness: Harness, claim: str) -> list[tuple[str, str]]:
    files = harness.files(config={"base_model_name_or_path": claim})
    return [
        (f.severity, f.code)
        for f in compat_findings(harness, files)
        if f.code.startswith(("compat.base_", "compat.trained"))
    ]


def test_a_base_shows_how_other_bases_are_related_to_it(family: Harness) -> None:
    matches = {relative.other: relative.match for relative in family.admin.base("tiny-llama").relatives}
    assert matches == {
        "cast": BaseMatch.OTHER_DTYPE, "tuned": BaseMatch.DESCENDANT, "packed-4bit": BaseMatch.QUANTIZED,
        "org/other": BaseMatch.UNRELATED,
    }  # fmt: skip
    assert {relative.other: relative.match for relative in family.admin.base("cast").relatives}[
        "tiny-llama"
    ] is BaseMatch.OTHER_DTYPE
    assert family.admin.base("unknown").relatives == []


def test_a_new_identity_is_compared_with_bases_of_its_architecture_first(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most descendants are of other organizations than the model that they were trained from."""
    monkeypatch.setattr(base_weights, "COMPARED_LIMIT", 1)
    monkeypatch.setattr(base_weights, "COMPUTED_LIMIT", 0)
    for name, hidden, identity in (("acme/wide", 128, OTHER), ("tiny-llama", 64, SAME), ("acme/tuned", 64, TUNED)):
        spec = spec_of(samples.llama(name, hidden=hidden))
        shown = harness.admin.add_base(BaseAdd(spec=spec, identity=identity)).relatives
    matches = {relative.other: relative.match for relative in shown}
    assert matches == {"tiny-llama": BaseMatch.DESCENDANT, "acme/wide": BaseMatch.UNKNOWN}
    monkeypatch.setattr(base_weights, "COMPUTED_LIMIT", 1)
    harness.admin.add_base(BaseAdd(spec=spec_of(samples.llama("a/new")), identity=CAST))
    relatives = {relative.other: relative.match for relative in harness.admin.base("acme/tuned").relatives}
    assert relatives["a/new"] is not BaseMatch.UNKNOWN, "before the older base of another architecture"


def test_a_list_of_bases_carries_exact_fingerprints_but_no_relatives(family: Harness) -> None:
    by_name = {base.name: base for base in family.admin.bases().items}
    assert by_name["cast"].spec.fingerprints.exact == CAST.exact
    assert by_name["unknown"].spec.fingerprints.exact is None
    assert not any(base.relatives for base in by_name.values())


def test_other_weights_under_the_name_of_a_base_are_refused_with_the_match(family: Harness) -> None:
    spec = spec_of(samples.llama("tiny-llama"))
    assert family.admin.add_base(BaseAdd(spec=spec, identity=SAME)).spec.fingerprints.exact == SAME.exact
    refused = r"exists with other weights.*descends from the same weights"
    with pytest.raises(Conflict, match=refused) as caught:
        family.admin.add_base(BaseAdd(spec=spec, identity=TUNED))
    assert caught.value.code == "BASE_EXISTS"
    with pytest.raises(Conflict, match=refused):
        family.admin.identify_base("tiny-llama", TUNED)
    assert family.admin.base("tiny-llama").spec.fingerprints.exact == SAME.exact


def test_a_spec_that_claims_other_weights_is_refused_and_a_claim_alone_is_not_kept(family: Harness) -> None:
    def claiming(name: str) -> BaseAdd:
        spec = spec_of(samples.llama(name))
        prints = spec.fingerprints.model_copy(update={"exact": OTHER.exact})
        return BaseAdd(spec=spec.model_copy(update={"fingerprints": prints}))

    with pytest.raises(Conflict, match="exists with other weights"):
        family.admin.add_base(claiming("tiny-llama"))
    assert family.admin.add_base(claiming("unknown")).spec.fingerprints.exact is None


def test_a_worker_identifies_the_weights_of_a_base_once(family: Harness) -> None:
    worker = family.actor("work")
    first = worker.identify_base("unknown", OTHER)
    assert first.spec.fingerprints.exact == OTHER.exact
    assert {relative.other: relative.match for relative in first.relatives}["org/other"] is BaseMatch.EXACT
    assert worker.identify_base("unknown", OTHER) == first
    events = [event.action for event in Audit(family.admin).events()]
    assert events.count("base.identify") == 6
    with pytest.raises(NotFound):
        worker.identify_base("nothing", OTHER)


def test_identifying_needs_the_scope_work_and_comparing_the_scope_pull(family: Harness) -> None:
    with pytest.raises(Denied):
        family.actor("push").identify_base("unknown", OTHER)
    similarity = family.actor("pull").similarity("tiny-llama", TUNED)
    assert (similarity.match, similarity.changed) == (BaseMatch.DESCENDANT, ("down_proj", "embed_tokens", "q_proj"))
    assert family.actor("pull").similarity("unknown", TUNED).match is BaseMatch.UNKNOWN


def test_an_owner_of_one_namespace_cannot_identify_the_weights_of_a_base(family: Harness) -> None:
    """Once told it cannot be taken back, and workers everywhere would refuse the true weights."""
    owner = family.actor("admin", namespaces=["acme"])
    with pytest.raises(Denied):
        owner.identify_base("unknown", OTHER)
    with pytest.raises(Denied):
        owner.add_base(BaseAdd(spec=spec_of(samples.llama("unknown")), identity=OTHER))
    assert family.admin.base("unknown").spec.fingerprints.exact is None
    own = spec_of(samples.llama("acme/my-own", hidden=32, heads=2, kv_heads=1, intermediate=64))
    assert owner.add_base(BaseAdd(spec=own, identity=OTHER)).spec.fingerprints.exact == OTHER.exact


def test_an_invalid_identity_is_refused(family: Harness) -> None:
    broken = SAME.model_dump(mode="json") | {"exact": "sha256:1"}
    with pytest.raises(Invalid) as caught:
        family.admin.connection.send("PUT", "/bases/unknown/identity", json={"identity": broken})
    assert caught.value.code == "REQUEST_INVALID"


# ------------------------------------------------------------------ adapters
@pytest.mark.parametrize(
    ("claim", "expected"),
    [
        ("cast", ("info", "compat.base_same_weights")),
        ("tuned", ("warning", "compat.base_descendant")),
        ("packed-4bit", ("warning", "compat.base_quantized_variant")),
        ("org/other", ("error", "compat.base_unrelated")),
        ("unknown", ("warning", "compat.base_named_differently")),
        ("elsewhere/model-bnb-4bit", ("warning", "compat.trained_on_packed")),
    ],
)
def test_compat_of_an_adapter_for_another_base_names_the_match(
    family: Harness, claim: str, expected: tuple[str, str]
) -> None:
    assert of_base(family, claim) == [expected]


def test_an_adapter_for_unrelated_weights_is_stored_and_never_smoke_tested(family: Harness) -> None:
    assert of_base(family, "org/other") == [("error", "compat.base_unrelated")]
    assert family.admin.jobs().items == []


def test_an_own_tokenizer_or_chat_template_is_a_warning(family: Harness) -> None:
    base = samples.llama("with-template")
    base.files.update({"tokenizer.json": b'{"model": 1}', "chat_template.jinja": b"{{ x }}"})
    family.add_base(base)
    claim = {"base_model_name_or_path": "with-template"}
    same = family.files(config=claim) | {
        "tokenizer.json": b'{"model":1,"padding":{}}',
        "chat_template.jinja": b"{{ x }}",
    }
    assert compat_findings(family, same, "with-template") == []
    other = family.files(config=claim) | {"tokenizer.json": b'{"model":2}', "chat_template.jinja": b"{{ y }}"}
    assert [f.code for f in compat_findings(family, other, "with-template")] == [
        "compat.tokenizer_differs",
        "compat.template_differs",
    ]


def test_a_check_without_a_push_names_the_match_too(family: Harness) -> None:
    files = family.files(config={"base_model_name_or_path": "tuned"})
    data = files["adapter_model.safetensors"]
    header = data[8 : 8 + int.from_bytes(data[:8], "little")].decode()
    config = files["adapter_config.json"].decode()
    request = CheckRequest(base="tiny-llama", config=config, header=header, size_bytes=len(data))
    findings = family.admin.check(request).items[0].findings
    assert [f.code for f in findings if f.code.startswith("compat.base_")] == ["compat.base_descendant"]
