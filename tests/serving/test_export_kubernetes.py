"""Kubernetes objects from a desired state, compared as wholes with what the projects' types take."""

from __future__ import annotations

import re

import pytest

from registry.api.serving import DesiredAdapter, DesiredState
from registry.digest import Digest
from registry.errors import Invalid
from registry.evaluation.engine_settings import EngineSettings
from registry.serving.export import kubernetes

DIGEST = Digest.of(b"one")
MANAGED = {"app.kubernetes.io/managed-by": "adapter-registry"}
ABOUT = {"adapter-registry/version": "acme/support@3", "adapter-registry/digest": str(DIGEST)}


def entry(served: str = "acme-support-v3") -> DesiredAdapter:
    return DesiredAdapter(
        name="acme/support", served_name=served, number=3, digest=DIGEST, generation=1, method="LORA", rank=16,
        size_bytes=10, files=[], verdicts={},
    )  # fmt: skip


def desired(*entries: DesiredAdapter, settings: EngineSettings | None = None) -> DesiredState:
    return DesiredState(
        base="meta/Llama-3.1-8B", base_fingerprint="f", alias="prod", cursor="c", adapters=list(entries), ranks={},
        settings=settings,
    )  # fmt: skip


def make(
    kind: str, location: str, *entries: DesiredAdapter, settings: EngineSettings | None = None, **how: object
) -> kubernetes.Object:
    return kubernetes.make(kind, desired(*entries, settings=settings), list(entries), location, **how)  # type: ignore[arg-type]


def test_a_model_adapter_of_aibrix_ends_its_url_with_a_slash() -> None:
    assert make("modeladapter", "s3://models/prod/", entry(), namespace="ai", secret="s3-read") == {
        "apiVersion": "v1",
        "kind": "List",
        "items": [
            {
                "apiVersion": "model.aibrix.ai/v1alpha1",
                "kind": "ModelAdapter",
                "metadata": {
                    "name": "acme-support-v3",
                    "namespace": "ai",
                    "labels": {**MANAGED, "model.aibrix.ai/name": "acme-support-v3"},
                    "annotations": ABOUT,
                },
                "spec": {
                    "baseModel": "meta/Llama-3.1-8B",
                    "podSelector": {"matchLabels": {"model.aibrix.ai/name": "meta-llama-3-1-8b"}},
                    "artifactURL": "s3://models/prod/acme-support-v3/",
                    "credentialsSecretRef": {"name": "s3-read"},
                },
            }
        ],
    }


def test_a_lora_adapter_of_production_stack_is_local_and_nothing_else() -> None:
    assert make("loraadapter", "/models/prod", entry(), model="llama") == {
        "apiVersion": "v1",
        "kind": "List",
        "items": [
            {
                "apiVersion": "production-stack.vllm.ai/v1alpha1",
                "kind": "LoraAdapter",
                "metadata": {"name": "acme-support-v3", "labels": MANAGED, "annotations": ABOUT},
                "spec": {
                    "baseModel": "llama",
                    "adapterSource": {
                        "type": "local",
                        "adapterName": "acme-support-v3",
                        "adapterPath": "/models/prod/acme-support-v3",
                    },
                    "loraAdapterDeploymentConfig": {"algorithm": "default"},
                },
            }
        ],
    }
    with pytest.raises(Invalid, match="cannot be the label 'model' of a pod"):  # meta/Llama-3.1-8B has a slash
        make("loraadapter", "/models/prod", entry())
    with pytest.raises(Invalid, match="'s3' does nothing"):
        make("loraadapter", "s3://models/prod", entry())


def test_an_llm_inference_service_of_kserve_has_all_adapters_and_what_the_fleet_needs() -> None:
    settings = EngineSettings(profile="vllm==0.33.0", adapters=1, rank_limit=16, slots=1)
    manifest = make(
        "llminferenceservice", "s3://models/prod", entry(), settings=settings, model="hf://meta/Llama-3.1-8B"
    )
    assert manifest == {
        "apiVersion": "v1",
        "kind": "List",
        "items": [
            {
                "apiVersion": "serving.kserve.io/v1alpha2",
                "kind": "LLMInferenceService",
                "metadata": {
                    "name": "meta-llama-3-1-8b",
                    "labels": MANAGED,
                    "annotations": {"adapter-registry/base": "meta/Llama-3.1-8B", "adapter-registry/alias": "prod"},
                },
                "spec": {
                    "model": {
                        "name": "meta/Llama-3.1-8B",
                        "uri": "hf://meta/Llama-3.1-8B",
                        "lora": {
                            "adapters": [{"name": "acme-support-v3", "uri": "s3://models/prod/acme-support-v3/"}],
                            "maxRank": 16,
                            "maxAdapters": 1,
                            "maxCpuAdapters": 1,
                        },
                    }
                },
            }
        ],
    }
    volume = make("llminferenceservice", "pvc://adapters/prod/", entry(), model="hf://meta/Llama-3.1-8B")
    assert volume["items"][0]["spec"]["model"]["lora"]["adapters"][0]["uri"] == "pvc://adapters/prod/acme-support-v3"
    with pytest.raises(Invalid, match="hf://"):
        make("llminferenceservice", "s3://models/prod", entry(), model="meta/Llama")


def test_names_of_objects_are_dns_labels_that_stay_apart() -> None:
    long = [f"{'a' * 70}-v{number}" for number in (1, 2)]
    labels = [kubernetes.dns_label(name) for name in long]
    assert [len(label) <= 63 for label in labels] == [True, True]
    assert labels[0] != labels[1]
    assert kubernetes.dns_label("acme-support-v3") == "acme-support-v3"
    for text in ("3d-shop-style-v1", "01-ai/Yi-6B", "7" * 70, "..."):  # a Service of that name must begin with a letter
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", kubernetes.dns_label(text)), kubernetes.dns_label(text)
