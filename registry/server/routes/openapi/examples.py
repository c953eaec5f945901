"""An example of each JSON body, by operation. A test validates them against the models of their routes."""

from __future__ import annotations

from typing import Any

from registry.events import EventType

_DIGEST = "sha256:" + "3f9a" * 16
_FINGERPRINT = "sha256:" + "71c0" * 16
_REASON = {"reason": "answers in the wrong language"}
_LEASE = "lease-4kq2v7x1"
_GATE = {"gate": {"approvals": 1, "signed_by": ["ci"]}}
_IDENTITY = {
    "identity": {
        "exact": _FINGERPRINT,
        "tensors": 1,
        "marks": {"lm_head.weight": {"dtype": "BF16", "shape": [32000, 4096], "digest": _DIGEST}},
    }
}

EXAMPLES: dict[str, dict[str, Any]] = {
    "plan_push": {
        "manifest": {
            "base": {"name": "llama-3.1-8b", "fingerprint": _FINGERPRINT},
            "files": [
                {
                    "path": "adapter_model.safetensors",
                    "media_type": "application/vnd.safetensors",
                    "digest": _DIGEST,
                    "size_bytes": 13640000,
                }
            ],
        },
        "message": "trained on the tickets of October",
    },
    "commit_push": {"alias": "canary"},
    "promote_alias": {"version": "3", "reason": "passed the regression suite"},
    "rollback_alias": {"to": "2", "reason": "too slow"},
    "yank_version": _REASON,
    "unyank_version": {"reason": "yanked by mistake"},
    "quarantine_version": _REASON,
    "unquarantine_version": {"reason": "the report was wrong"},
    "approve_version": {"alias": "prod", "comment": "reviewed"},
    "set_adapter_gate": _GATE,
    "set_namespace_gate": _GATE,
    "sign_version": {"bundle": "{…}", "public_key": "-----BEGIN PUBLIC KEY-----…"},
    "check_adapter": {"base": "llama-3.1-8b", "header": "eyJfX21ldGFkYXRhX18iOnt9fQ==", "size_bytes": 13640000},
    "reevaluate_verdicts": {"cursor": ""},
    "identify_base": _IDENTITY,
    "compare_base": _IDENTITY,
    "set_thresholds": {"thresholds": {}},
    "report_node": {"base": "llama-3.1-8b", "alias": "prod", "slots": []},
    "submit_job": {"kind": "smoke-test", "ref": "acme/support@3"},
    "claim_job": {"worker": "gpu-1", "bases": ["llama-3.1-8b"]},
    "renew_job": {"lease_token": _LEASE, "progress": "comparing outputs"},
    "finish_job": {"lease_token": _LEASE, "result": {"ref": "acme/support@4"}},
    "fail_job": {"lease_token": _LEASE, "error": "the process was killed"},
    "start_campaign": {"base": "llama-3.1-8b", "outdated": True},
    "create_token": {"name": "ci", "scopes": ["push"], "namespaces": ["acme"], "expires_in_seconds": 86400},
    "exchange_token": {"assertion": "eyJhbGciOi…", "adapter": "acme/support"},
    "rotate_token": {"keep_seconds": 3600},
    "create_namespace": {"name": "acme", "owner": "alice@example.org"},
    "change_namespace": {"public": True, "quota_versions": 1000},
    "grant_role": {"role": "pusher"},
    "rename_adapter": {"to": "acme/support-en"},
    "add_publisher": {"issuer": "https://ci.example.org", "claims": {"repository": "acme/train"}},
    "collect_garbage": {"dry_run": True},
    "check_store": {"deep": True},
    "rebuild_index": {"dry_run": True},
    "create_webhook": {
        "url": "https://hooks.example.org/registry",
        "namespace": "acme",
        "actions": [EventType.ALIAS_MOVE],
    },
}
"""`add_base` has none: the facts of a base model are long."""
