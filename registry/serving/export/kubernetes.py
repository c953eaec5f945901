"""Kubernetes objects of a desired state: AIBrix ModelAdapter, production-stack LoraAdapter, KServe LLMInferenceService.

The fields are those of the projects' Go types: vllm-project/aibrix api/model/v1alpha1/modeladapter_types.go,
vllm-project/production-stack operator/api/v1alpha1/loraadapter_types.go, kserve/kserve
pkg/apis/serving/v1alpha2/llm_inference_service_types.go. Every object has the label
`app.kubernetes.io/managed-by: adapter-registry`, for `kubectl apply --prune -l`.
"""

import re
from collections.abc import Sequence
from typing import Any

from registry.api.serving import DesiredAdapter, DesiredState
from registry.digest import Digest
from registry.errors import Invalid

KINDS = ("modeladapter", "loraadapter", "llminferenceservice")
LABEL_LIMIT = 63
_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
MANAGED = {"app.kubernetes.io/managed-by": "adapter-registry"}
Object = dict[str, Any]


def make(
    kind: str, desired: DesiredState, entries: Sequence[DesiredAdapter], location: str, *, namespace: str = "",
    model: str = "", selector: dict[str, str] | None = None, secret: str = "",
) -> Object:  # fmt: skip
    """A `List` for `kubectl apply -f -` that serves `entries` from their folders in `location`, in that order.

    `model`: what the engine calls the base (KServe: where its weights are, `hf://…`). For a ModelAdapter: `secret`
    is the name of the Secret with the bucket's credentials, `selector` the labels of the engine's pods.
    `Invalid` (URL_REFUSED) for a location or a model that the kind does not support.
    """
    root = location.rstrip("/")
    if kind == "modeladapter":
        items = [_model_adapter(entry, desired, root, model, selector, secret) for entry in entries]
    elif kind == "loraadapter":
        items = [_lora_adapter(entry, desired, root, model) for entry in entries]
    else:
        items = [_llm_service(desired, entries, root, model)]
    for item in items:
        if namespace:
            item["metadata"]["namespace"] = namespace
    return {"apiVersion": "v1", "kind": "List", "items": items}


def dns_label(text: str) -> str:
    """The text as a DNS label that begins with a letter, because controllers make Services of the same name."""
    word = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if len(word) <= LABEL_LIMIT and word[:1].isalpha():
        return word
    whole = word if word[:1].isalpha() else f"x-{word}"
    return f"{whole[: LABEL_LIMIT - 9].rstrip('-')}-{Digest.of(text.encode()).hex[:8]}"


def _metadata(entry: DesiredAdapter) -> Object:
    return {
        "name": dns_label(entry.served_name),
        "labels": dict(MANAGED),
        "annotations": {
            "adapter-registry/version": f"{entry.name}@{entry.number}",
            "adapter-registry/digest": str(entry.digest),
        },
    }


def _model_adapter(
    entry: DesiredAdapter, desired: DesiredState, root: str, model: str, selector: dict[str, str] | None, secret: str
) -> Object:
    """AIBrix. The object's name is the model name of requests; without a slash at the end it fetches a single file."""
    base = model or desired.base
    metadata = _metadata(entry)
    metadata["labels"]["model.aibrix.ai/name"] = metadata["name"]
    spec: Object = {
        "baseModel": base,
        "podSelector": {"matchLabels": selector or {"model.aibrix.ai/name": dns_label(base)}},
        "artifactURL": f"{root}/{entry.served_name}/",
    }
    if secret:
        spec["credentialsSecretRef"] = {"name": secret}
    return {"apiVersion": "model.aibrix.ai/v1alpha1", "kind": "ModelAdapter", "metadata": metadata, "spec": spec}


def _lora_adapter(entry: DesiredAdapter, desired: DesiredState, root: str, model: str) -> Object:
    """production-stack. Its operator responds "not implemented" for the type s3: folders of a shared volume only."""
    if "://" in root:
        raise Invalid(
            "URL_REFUSED",
            f"{root!r}: production-stack's operator loads adapters of the type 'local' only; its 's3' does nothing",
            next_step="export to a folder on a volume that the pods share, and give its path there",
        )
    base = model or desired.base
    if not _LABEL_VALUE.fullmatch(base):
        raise Invalid(
            "URL_REFUSED",
            f"baseModel {base[:80]!r} cannot be the label 'model' of a pod, by which the operator finds engines",
            next_step="pass --model with the label `model` that these pods have",
        )
    source = {"type": "local", "adapterName": entry.served_name, "adapterPath": f"{root}/{entry.served_name}"}
    return {
        "apiVersion": "production-stack.vllm.ai/v1alpha1", "kind": "LoraAdapter", "metadata": _metadata(entry),
        "spec": {"baseModel": base, "adapterSource": source, "loraAdapterDeploymentConfig": {"algorithm": "default"}},
    }  # fmt: skip


def _llm_service(desired: DesiredState, entries: Sequence[DesiredAdapter], root: str, model: str) -> Object:
    """KServe. One object with every adapter in it: a change of the list means new pods."""
    if not re.match(r"(hf|s3|pvc|oci)://", model) or not re.match(r"(s3|pvc)://", root):
        raise Invalid(
            "URL_REFUSED",
            "an LLMInferenceService takes its model from hf://, s3://, pvc:// or oci:// and adapters from s3:// or pvc://",
            next_step="pass --model hf://ORG/NAME and --location s3://BUCKET/PREFIX/",
        )
    slash = "/" if root.startswith("s3://") else ""  # a raw prefix: `…-v1` is one of `…-v10`
    lora: Object = {"adapters": [{"name": e.served_name, "uri": f"{root}/{e.served_name}{slash}"} for e in entries]}
    if desired.settings is not None and entries:
        lora["maxRank"] = max(desired.settings.rank_limit, 1)
        lora["maxAdapters"] = max(desired.settings.slots, 1)
        lora["maxCpuAdapters"] = max(len(entries), desired.settings.slots)
    return {
        "apiVersion": "serving.kserve.io/v1alpha2",
        "kind": "LLMInferenceService",
        "metadata": {
            "name": dns_label(desired.base),
            "labels": dict(MANAGED),
            "annotations": {"adapter-registry/base": desired.base, "adapter-registry/alias": desired.alias},
        },
        "spec": {"model": {"name": desired.base, "uri": model, "lora": lora}},
    }
