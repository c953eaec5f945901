"""Malformed weights and configurations through the API: refused with file, rule and reason, and nothing is stored."""

from __future__ import annotations

import pytest

from tests import samples
from tests.bad_files import CONFIGS, WEIGHTS
from tests.bad_inputs.raw_push import RawClient, assert_refused
from tests.harness import Harness

pytestmark = pytest.mark.security


@pytest.fixture
def client(harness: Harness) -> RawClient:
    harness.add_base()
    return RawClient(harness)


@pytest.mark.parametrize("name", WEIGHTS)
def test_malformed_weights_are_refused(refusing: RawClient, name: str) -> None:
    data, code, reason = WEIGHTS[name]
    response = refusing.push({**refusing.harness.files(), samples.WEIGHTS: data})
    assert_refused(refusing.harness, response, 413 if code == "SIZE_INVALID" else 422, [code], reason)
    assert samples.WEIGHTS in response.json()["detail"]


@pytest.mark.parametrize("name", CONFIGS)
def test_malformed_configurations_are_refused(refusing: RawClient, name: str) -> None:
    data, code, reason = CONFIGS[name]
    response = refusing.push({**refusing.harness.files(), samples.CONFIG: data})
    reason = "file.too_large" if reason == "config.too_large" else reason
    assert_refused(refusing.harness, response, 413 if code == "SIZE_INVALID" else 422, [code], reason)
    assert samples.CONFIG in response.json()["detail"]


def test_weights_in_pieces_are_refused_by_the_rule_of_loaders(refusing: RawClient) -> None:
    files = refusing.harness.files()
    weights = files.pop(samples.WEIGHTS)
    pieces = {f"adapter_model-0000{n}-of-00002.safetensors": weights for n in (1, 2)}
    response = refusing.push(files | pieces)
    assert_refused(refusing.harness, response, 422, ["MANIFEST_INVALID"], "adapter.weights_missing")
    assert "the weights are in 2 pieces" in response.json()["detail"]


@pytest.mark.parametrize(
    ("gone", "reason"), [(samples.WEIGHTS, "adapter.weights_missing"), (samples.CONFIG, "adapter.config_missing")]
)
def test_a_version_without_weights_or_configuration_is_refused(refusing: RawClient, gone: str, reason: str) -> None:
    files = {path: data for path, data in refusing.harness.files().items() if path != gone}
    assert_refused(refusing.harness, refusing.push(files), 422, ["MANIFEST_INVALID"], reason)


def test_a_trainers_folder_as_base_is_a_warning_and_is_not_repeated(client: RawClient) -> None:
    config = {"base_model_name_or_path": "/home/jane/secret-project/checkpoints/llama"}
    response = client.push(samples.lora(samples.llama(), config=config))
    if not response.is_error:
        verdicts = response.json()["version"]["verdicts"]
        assert {v["check"]: v["outcome"] for v in verdicts} == {"compat": "warn", "weights": "pass"}
        assert "jane" not in response.text
    else:
        assert_refused(client.harness, response, 422, ["CONFIG_INVALID"], "config.base_model_invalid")


def test_unknown_fields_are_a_warning(client: RawClient) -> None:
    response = client.push(samples.lora(samples.llama(), config={"a_field_of_tomorrow": 1}))
    assert response.json().get("created"), response.text
    assert "a_field_of_tomorrow" in str(response.json()["version"]["verdicts"][0]["findings"])


def test_every_other_safetensors_file_is_read_as_strictly(refusing: RawClient) -> None:
    files = {**refusing.harness.files(), "extra.safetensors": WEIGHTS["09-a-tensor-twice"][0]}
    response = refusing.push(files)
    assert_refused(refusing.harness, response, 422, ["TENSORS_INVALID"], "safetensors.duplicate_key")
    assert "extra.safetensors" in response.json()["detail"]
