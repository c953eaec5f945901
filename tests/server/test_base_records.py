"""Records of an earlier version read as those of today: a record never changes once it is in the bucket."""

from __future__ import annotations

import json

from registry.server.catalog.metadata_backup import BaseRecord, VersionRecord
from tests import samples
from tests.domain.specs import base_spec
from tests.domain.test_provenance import manifest
from tests.identities import make_identity, values


def test_a_record_of_version_1_reads_with_the_field_names_of_today() -> None:
    spec = base_spec(samples.llama("b"))
    today = BaseRecord(
        created_at="2026-01-01T00:00:00Z", created_by="ann", spec=spec, source="", identity=make_identity(values())
    )
    old = json.loads(today.to_bytes()) | {"schema_version": 1}
    for field in ("spec", "identity"):
        old[field]["quantisation"] = old[field].pop("quantization") or "awq"
    record = BaseRecord.parse(json.dumps(old).encode())
    assert record.spec == spec.model_copy(update={"quantization": "awq"})
    assert (record.identity and record.identity.quantization, record.schema_version) == ("awq", 2)
    assert BaseRecord.parse(today.to_bytes()) == today


def test_a_record_with_former_codes_reads_with_those_of_today() -> None:
    stored = {"schema_version": 2, "created_at": "2026-01-01T00:00:00Z", "created_by": "ann", "namespace": "acme",
              "name": "a", "number": 1, "manifest": manifest().model_dump(mode="json"), "method": "LORA", "rank": 8,
              "facts": {"problems": ["lora.rank_unannounced", "lora.rank_differs"]}, "message": "", "yanked_at": None,
              "yank_reason": ""}  # fmt: skip
    record = VersionRecord.parse(json.dumps(stored).encode())
    assert record.facts == {"problems": ["lora.rank_differs_from_config", "lora.rank_differs"]}
