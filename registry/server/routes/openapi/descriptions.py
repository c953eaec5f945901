"""Descriptions and examples of parameters, descriptions of fields, and examples of JSON bodies by operation.

Parameters of the same name mean the same in every route, so each stands here once. Where one route differs, its
operation stands before the name: `list_jobs.state`. A test validates the bodies against the models of their routes.
Fields are described in fields.toml in the same manner.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from registry.events import EventType

PARAMETERS: dict[str, tuple[str, Any]] = {
    # ------------------------------------------------------------ paths
    "namespace": ("Namespace of the adapter.", "acme"),
    "name": ("Name of the adapter within its namespace.", "support"),
    "selector": (
        "Version: an alias, a number, a digest or its first 8 digits or more. `main` is the newest.",
        "prod",
    ),
    "alias": ("Alias, a movable name of one version.", "prod"),
    "base": ("Name of a base model, which may contain a slash.", "llama-3.1-8b"),
    "digest": ("SHA-256 digest of the bytes.", "sha256:" + "0" * 64),
    "key": ("Key of the blob. The link's query is part of it: use links as they are.", f"blobs/sha256/4f/4f{'0' * 62}"),
    "job_id": ("Job.", "job_0123456789abcdef0123"),
    "campaign_id": ("Campaign.", "cmp_4kq2v7x1"),
    "token_id": ("Token.", "tok_4kq2v7x1"),
    "publisher_id": ("Trusted publisher.", "pub_4kq2v7x1"),
    "webhook_id": ("Webhook.", "whk_4kq2v7x1"),
    "delivery_id": ("Delivery of a webhook.", 17),
    "subject": ("Person or program, as the identity provider names it. It may contain slashes.", "alice@example.org"),
    "path": ("Path of a file in the version.", "adapter_model.safetensors"),
    "read_log_entries.path": ("Path of a bundle as C2SP tlog-tiles writes it.", "000.p/12"),
    "read_log_tile.path": ("Path of a tile as C2SP tlog-tiles writes it.", "0/000.p/12"),
    "seq": ("Number of the event.", 1042),
    "node": ("Serving node, or only what runs on this one.", "gpu-7"),
    "engine": ("Engine with its version and settings.", "vllm==0.33.0,max_lora_rank=32"),
    "report_node.engine": ("Name of the engine on its node.", "vllm-8000"),
    # ------------------------------------------------------------ lists
    "cursor": ("Where to continue: `next_cursor` of the previous page, unchanged.", ""),
    "limit": ("Items on one page. More than 200 means 200.", 50),
    # ------------------------------------------------------------ filters
    "list_adapters.namespace": ("Only adapters of this namespace.", "acme"),
    "list_adapters.base": ("Only adapters of this base model.", "llama-3.1-8b"),
    "list_adapters.alias": ("Only adapters with this alias.", "prod"),
    "base_match": ("How closely the adapter's base must match `base`.", "exact"),
    "method": ("Only adapters trained with this PEFT method.", "lora"),
    "text": ("Only adapters whose `namespace/name` or description contains this text.", "support"),
    "owner": ("Only adapters that this identity pushed first.", "alice@example.org"),
    "format": ("Only adapters whose tensors are named by this format.", "peft"),
    "target": ("Only adapters that train this module. Repeat it for several.", ["q_proj"]),
    "tag": ("Only adapters with this tag, their own or of the newest version. Repeat it for several.", ["team=nlp"]),
    "deleted": ("Include deleted versions.", False),
    "reason": ("Why; everyone who requests the version reads it.", "trained on the wrong data"),
    "force": ("Delete although children, jobs, nodes or signatures need it.", False),
    "annotation": ("Only adapters whose newest version has this annotation in its manifest.", ["license=apache-2.0"]),
    "rank_min": ("Only adapters of at least this rank.", 8),
    "rank_max": ("Only adapters of at most this rank.", 64),
    "list_adapters.engine": ("Only adapters with a verdict for this engine.", "vllm==0.33.0"),
    "outcome": ("Only adapters with this outcome: of the engine, if one is named.", "pass"),
    "list_jobs.state": ("Only jobs in this state.", "running"),
    "kind": ("Only jobs of this kind.", "validate"),
    "ref": ("Only jobs about this adapter or version.", "acme/support@3"),
    "list_deliveries.state": ("Only deliveries in this state.", "dead"),
    "adapter": ("Only nodes that have this adapter.", "acme/support"),
    "list_nodes.base": ("Only nodes that serve this base model.", "llama-3.1-8b"),
    "list_nodes.alias": ("Only nodes that follow this alias.", "prod"),
    # ------------------------------------------------------------ history and lineage
    "show_history.alias": ("Only moves of this alias.", "prod"),
    "at": ("What held at this moment.", "2026-11-27T12:00:00Z"),
    "direction": ("`up` for ancestors, `down` for descendants.", "up"),
    "dataset": ("Digest or URI of a data set.", "hf://datasets/acme/tickets"),
    "find_lineage.base": ("Base model to start from.", "llama-3.1-8b"),
    # ------------------------------------------------------------ engines and serving
    "list_verdicts.engine": ("Engine to evaluate now. Repeat it for several.", ["vllm==0.33.0"]),
    "recommend_engine_settings.base": ("Base model of the adapters.", "llama-3.1-8b"),
    "recommend_engine_settings.engine": ("Engine to find settings for. Repeat it for several.", ["vllm==0.33.0"]),
    "slots": ("Adapters that the engine holds at once.", 16),
    "show_desired_state.alias": ("Alias to serve.", "prod"),
    "since": ("Cursor of the answer that the caller has.", ""),
    "wait": ("Seconds to wait for something new before answering.", 20),
    # ------------------------------------------------------------ audit log
    "after": ("Number of the last event that the caller has.", 1042),
    "action": ("Only events of this type. Repeat it for several.", [EventType.ALIAS_MOVE]),
    "object": ("Only events about this object.", "acme/support"),
    "old": ("Size of the log that the caller knows.", 1000),
    "new": ("Size of the log to prove consistent with it.", 1042),
    "stored": ("Read the tile from the blob store instead of the database.", False),
    # ------------------------------------------------------------ health
    "store": ("Ask the blob store as well.", True),
    # ------------------------------------------------------------ headers
    "if-match": ('Generation of the alias that the caller has seen, `"0"` for a new alias.', '"3"'),
    "if-none-match": ("ETag of the answer that the caller has. The answer is 304 if nothing changed.", '"5f3a"'),
    "last-event-id": ("Number of the last event that arrived, to resume a broken stream.", "1042"),
    "range": ("One range of bytes.", "bytes=0-1023"),
    "idempotency-key": (
        "A new random value for each request. A repeated request with the same key acts once.",
        "5f3a8c0e-62c1-4f6b",
    ),
}


def describe(operation: dict[str, Any]) -> None:
    """Add description and example to every parameter of the operation that has none. `KeyError` for an unknown one."""
    for parameter in operation.get("parameters", ()):
        if "$ref" in parameter:
            continue
        name = parameter["name"]
        own = f"{operation['operationId']}.{name}"
        description, example = PARAMETERS[own] if own in PARAMETERS else PARAMETERS[name]
        parameter.setdefault("description", description)
        if example != "":
            parameter.setdefault("example", example)


def read_fields() -> dict[str, dict[str, str]]:
    """fields.toml: schema → field → description; `shared` for fields that mean the same in every schema."""
    return tomllib.loads(Path(__file__).with_name("fields.toml").read_text("utf-8"))


def describe_fields(schemas: dict[str, Any]) -> None:
    """Add its description to every field of these schemas. `KeyError` for a field that fields.toml lacks."""
    described = read_fields()
    for schema, content in schemas.items():
        descriptions = described["shared"] | described.get(schema, {})
        for field, declared in content.get("properties", {}).items():
            declared["description"] = descriptions[field]


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
    "plan_pushes": {
        "items": [
            {
                "name": "acme/support",
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
            }
        ]
    },
    "commit_pushes": {"items": [{"push_id": "psh_3f9a71c05d2e8b460a1f4c7d", "alias": "canary"}], "atomic": False},
    "plan_pulls": {"refs": ["acme/support:prod", "acme/billing@3"]},
    "promote_alias": {"version": "3", "reason": "passed the regression suite"},
    "rollback_alias": {"to": "2", "reason": "too slow"},
    "yank_version": _REASON,
    "unyank_version": {"reason": "yanked by mistake"},
    "undelete_version": {"reason": "deleted by mistake"},
    "quarantine_version": _REASON,
    "unquarantine_version": {"reason": "the report was wrong"},
    "change_adapter_metadata": {"tags": {"team": "nlp", "trial": None}},
    "change_version_metadata": {"description": "Answers about returns", "tags": {"reviewed": ""}},
    "approve_version": {"alias": "prod", "comment": "reviewed"},
    "set_adapter_gate": _GATE,
    "set_namespace_gate": _GATE,
    "sign_version": {"bundle": "{…}", "public_key": "-----BEGIN PUBLIC KEY-----…"},
    "check_adapter": {"base": "llama-3.1-8b", "header": "eyJfX21ldGFkYXRhX18iOnt9fQ==", "size_bytes": 13640000},
    "reevaluate_verdicts": {"cursor": ""},
    "identify_base": _IDENTITY,
    "compare_base": _IDENTITY,
    "set_base_modules": {
        "modules": {
            "library": "transformers 5.24.0",
            "modules": {"lm_head": {"kind": "linear", "in_features": 4096, "out_features": 32000}},
        }
    },
    "set_base_aliases": {"aliases": ["HuggingFaceTB/SmolLM2-135M-Instruct"]},
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
