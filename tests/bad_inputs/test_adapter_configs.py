"""Attack: a configuration that names code or files, hangs a matcher, or asks for impossible sizes."""

from __future__ import annotations

import json

import pytest

from registry.adapters.peft import config
from registry.errors import Invalid, TooLarge
from tests import effort, samples
from tests.bad_files import CONFIGS

pytestmark = pytest.mark.security


@pytest.mark.parametrize("name", CONFIGS)
def test_a_bad_configuration_is_refused_with_its_rule(name: str) -> None:
    data, code, reason = CONFIGS[name]
    with effort.ends(), pytest.raises((Invalid, TooLarge)) as caught:
        config.read_config(data)
    assert caught.value.code == code
    assert reason in {r.code for r in caught.value.findings}
    assert "adapter_config.json" in caught.value.detail


def test_every_rule_about_configurations_has_a_case() -> None:
    # 50 and 56 are warnings, tested below
    assert {int(name[:2]) for name in CONFIGS} >= set(range(41, 56)) - {50}


def test_a_trainers_local_folder_is_a_warning_and_is_shortened() -> None:
    fields = json.loads(samples.lora(samples.llama())[samples.CONFIG])
    for written, shown in (
        ("/home/ann/secret-project/models/llama-7b", "llama-7b"),
        ("./outputs/merged/llama-7b/", "llama-7b"),
        ("C:\\Users\\Ann\\llama 7b", "llama-7b"),
        ("/home/ann/.cache/hub/models--meta-llama--Llama-2-7b/snapshots/0123", "meta-llama/Llama-2-7b"),
    ):
        adapter_config = config.read_fields({**fields, "base_model_name_or_path": written})
        assert adapter_config.base.name == shown
        assert adapter_config.base.is_local
        assert [f.code for f in adapter_config.findings] == ["config.base_model_local"]
        assert "ann" not in adapter_config.model_dump_json().lower()


def test_unknown_fields_are_warned_about_and_not_kept() -> None:
    fields = json.loads(samples.lora(samples.llama())[samples.CONFIG])
    adapter_config = config.read_fields({**fields, "a_newer_field": [1, 2]})
    assert [(f.code, f.severity) for f in adapter_config.findings] == [("config.field_unknown", "warning")]
    assert "a_newer_field" not in adapter_config.other


def test_all_broken_fields_are_reported_and_not_only_the_first() -> None:
    fields = json.loads(samples.lora(samples.llama())[samples.CONFIG])
    with pytest.raises(Invalid) as caught:
        config.read_fields({**fields, "r": 0, "lora_alpha": "x", "use_dora": 1, "auto_map": {}})
    assert len(caught.value.findings) == 4
