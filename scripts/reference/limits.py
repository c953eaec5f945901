"""docs/reference/limits.md: limits of what a registry accepts and keeps, read from the modules that enforce them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from importlib import import_module

from registry.server.settings import Settings
from registry.server.webhooks import dispatch
from registry.versions.files import KINDS
from scripts.reference.tables import table

INTRODUCTION = """\
# Limits

What a registry accepts and keeps. Limits that operators change are [settings](settings.md); namespaces have quotas.
"""
LIMITS = {
    "Versions": {
        "registry.versions.manifest": {
            "FILES_LIMIT": "files of a version",
            "VERSION_LIMIT_BYTES": "size of a version",
            "MANIFEST_LIMIT_BYTES": "size of a manifest",
            "ANNOTATIONS_LIMIT_BYTES": "size of all annotations of a version",
            "TAG_VALUE_LIMIT": "characters of a tag, and of an annotation that can be searched",
        },
        "registry.names": {
            "NAME_LIMIT": "characters of a namespace, adapter or alias",
            "BASE_NAME_LIMIT": "characters of a base's name",
            "SERVED_WORDS_LIMIT": "characters of a name under which an engine serves an adapter, before its version",
            "VERSION_NUMBER_LIMIT": "number of a version",
            "PATH_LIMIT_BYTES": "length of a file's path",
            "PATH_DEPTH_LIMIT": "folders and file in a path",
        },
        "registry.versions.provenance": {
            "PROVENANCE_FILE_LIMIT_BYTES": "file of declared inputs",
            "SIZE_LIMIT_BYTES": "size of the declared inputs",
            "DATASETS_LIMIT": "declared data sets",
            "PARAMETERS_LIMIT": "declared parameters",
            "URI_LIMIT": "characters of a declared URI",
            "TEXT_LIMIT": "characters of a declared name or id",
            "VALUE_LIMIT": "characters of a declared value",
        },
        "registry.versions.retention": {"NEWEST_LIMIT": "versions that a retention rule keeps for being new"},
        "registry.durations": {"SECONDS_LIMIT": "seconds of a retention rule or an expiry"},
        "registry.evaluation.golden": {
            "SAMPLES_LIMIT": "golden samples, in a file of the size above",
            "SAMPLE_LIMIT_BYTES": "size of a golden sample",
        },
        "registry.evaluation.verdicts": {
            "FINDINGS_LIMIT": "findings kept of a verdict",
            "FINDINGS_TEXT_LIMIT": "characters of the findings kept of a verdict",
            "PROFILE_LIMIT": "characters of an engine's profile",
        },
        "registry.server.push.commit": {"MANIFESTS_LIMIT": "characters of the manifests of one commit"},
        "registry.server.push.inspect": {"FACTS_LIMIT_BYTES": "facts of a version, which its header and README say"},
        "registry.server.evaluation.norms": {
            "FACTOR_ELEMENTS_LIMIT": "elements of a factor whose norm is measured",
        },
    },
    "Tensors": {
        "registry.adapters.safetensors": {
            "HEADER_LIMIT_BYTES": "header of a safetensors file",
            "TENSORS_LIMIT": "tensors of a safetensors file",
            "NAME_LIMIT_BYTES": "length of a tensor's name",
            "NAME_PARTS_LIMIT": "parts of a tensor's name",
            "DIMENSIONS_LIMIT": "dimensions of a tensor",
            "SIDE_LIMIT": "one dimension of a tensor",
            "METADATA_LIMIT_BYTES": "metadata of a safetensors file",
        },
        "registry.adapters.formats.gguf": {
            "HEADER_LIMIT_BYTES": "header of a GGUF file",
            "TENSORS_LIMIT": "tensors of a GGUF file",
            "FIELDS_LIMIT": "fields of a GGUF file",
            "ITEMS_LIMIT": "items of an array in a GGUF file",
            "DEPTH_LIMIT": "nesting of arrays in a GGUF file",
            "TEXT_LIMIT_BYTES": "text in a GGUF file",
            "NAME_LIMIT_BYTES": "length of a name in a GGUF file",
            "SIDE_LIMIT": "elements of a tensor in a GGUF file",
        },
        "registry.adapters.formats.images": {"ALPHA_READS_LIMIT": "tensors of an image adapter whose alphas are read"},
    },
    "Configurations": {
        "registry.adapters.peft.config": {
            "RANK_LIMIT": "rank",
            "ALPHA_LIMIT": "alpha",
            "LAYERS_LIMIT": "number of a layer",
            "PATTERN_VALUE_LIMIT": "number in a pattern, unless its field has a limit of its own",
            "BASE_NAME_LIMIT": "characters of the base in a configuration",
        },
        "registry.adapters.formats.text": {
            "RANK_LIMIT": "rank in a format other than PEFT",
            "NUMBER_LIMIT": "alpha or scale in a format other than PEFT",
        },
        "registry.strict.fields": {
            "NAMES_LIMIT": "names in a list",
            "NAME_LIMIT": "characters of a module's name",
            "TEXT_LIMIT": "characters of a text",
            "WHOLE_NUMBER_LIMIT": "whole number, unless its field has a limit of its own",
            "PATTERNS_LIMIT": "patterns in an object",
            "PATTERN_STEPS_LIMIT": "steps to match one path with the patterns of an object, about",
        },
        "registry.adapters.peft.targets": {
            "COMPARED_LIMIT": "characters of paths times patterns beyond plain names",
        },
        "registry.strict.patterns": {
            "LENGTH_LIMIT": "characters of a pattern",
            "DEPTH_LIMIT": "nesting of a pattern",
            "REPEAT_LIMIT": "m and n of `{m,n}` in a pattern",
            "OPEN_REPEATS_LIMIT": "`*`, `+` and `{m,}` in a pattern",
            "LOOKS_LIMIT": "look-aheads in a pattern",
        },
        "registry.compat": {
            "PATTERN_STEPS_LIMIT": "steps to match all modules of a base, about",
            "COMPILATIONS_LIMIT": "keys of `rank_pattern` and the like, if over 512, times modules of the base",
        },
    },
    "Other files": {
        "registry.adapters.companions": {
            "TOTAL_LIMIT_BYTES": "JSON and YAML files of a version that are parsed, together",
            "VALUES_LIMIT": "values in a JSON or YAML file",
        },
        "registry.strict.yaml": {
            "DEPTH_LIMIT": "nesting of a YAML file",
            "EVENTS_LIMIT": "values in a YAML file, about",
        },
        "registry.adapters.templates": {
            "TEMPLATES_LIMIT": "chat templates of a version",
            "LENGTH_LIMIT": "characters of a chat template",
            "TOTAL_LIMIT": "characters of all chat templates of a version",
            "DEPTH_LIMIT": "nesting of a chat template",
            "NODES_LIMIT": "expressions of a chat template",
        },
        "registry.adapters.trainer": {
            "READ_LIMIT_BYTES": "trainer state that is read",
            "VALUES_LIMIT": "values in a trainer state",
            "DEPTH_LIMIT": "nesting of a trainer state",
        },
        "registry.adapters.card": {
            "READ_LIMIT_BYTES": "beginning of a README that is read",
            "NAMES_LIMIT": "bases and data sets read from a README",
            "TOOLS_LIMIT": "lines of tool versions read from a README",
        },
        "registry.bases.fingerprints": {"DEPTH_LIMIT": "nesting of a tokenizer.json"},
        "registry.compat.tokenizers": {
            "TOKENIZER_LIMIT_BYTES": "tokenizer that is compared with the base's",
            "TOKENIZER_VALUES_LIMIT": "values of such a tokenizer",
        },
        "registry.hub": {"SMALL_LIMIT_BYTES": "file that the Hub API shows as a small one"},
        "registry.hub.operations": {
            "OPERATIONS_LIMIT": "operations of a commit of a Hub client",
            "BODY_LIMIT_BYTES": "commit of a Hub client, with the files in it",
            "LINE_LIMIT_BYTES": "line of such a commit without its file",
        },
        "registry.server.hub.drafts": {"DRAFTS_LIMIT": "drafts of one adapter that a pusher has"},
        "registry.hub.xet.xorbs": {
            "XORB_LIMIT_BYTES": "chunks of a xorb, unpacked",
            "XORB_BODY_LIMIT_BYTES": "xorb, as it is sent",
            "CHUNK_LIMIT_BYTES": "chunk of a xorb",
            "CHUNKS_LIMIT": "chunks of a xorb",
        },
        "registry.hub.xet.shards": {
            "SHARD_LIMIT_BYTES": "shard of a Xet upload",
            "SEGMENTS_LIMIT": "segments of all files of a shard",
            "SMALL_SEGMENTS_LIMIT": "segments of a shard, beyond one for each file and each 8 KiB",
            "FILES_LIMIT": "files of a shard",
        },
        "registry.server.hub.xet.sessions": {"XORBS_LIMIT": "xorbs of one Xet upload"},
        "registry.server.hub.xet.files": {"REPEATS_LIMIT": "bytes of a shard's files for each byte of their xorbs"},
        "registry.server.routes.hub.pushing": {"BATCH_LIMIT": "files of one preupload or Git LFS batch"},
    },
    "Bases and lineage": {
        "registry.server.catalog.bases": {
            "BASES_LIMIT": "bases",
            "BASES_PER_ORG_LIMIT": "bases of an organization, added by a right in its namespace",
            "SPECS_PER_ORG_LIMIT": "characters of their specs",
        },
        "registry.server.catalog.base_weights": {
            "COMPARED_LIMIT": "bases with which the weights of a new base are compared",
            "COMPUTED_LIMIT": "missing comparisons that one request does; the others are `unknown`",
        },
        "registry.server.catalog.base_rows": {
            "UNREGISTERED_LIMIT": "bases that are not registered, of the versions of one namespace"
        },
        "registry.bases": {
            "CONFIG_LIMIT_BYTES": "configuration of a base",
            "SIZE_LIMIT": "size (hidden, vocabulary, heads …) in a base's configuration",
            "MODULES_LIMIT": "modules of a base",
        },
        "registry.api.bases": {"IDENTITY_BODY_BYTES": "body with the marks of a base's weights"},
        "registry.server.catalog.lineage": {"EDGES_LIMIT": "edges in a lineage"},
        "registry.lineage.diagrams": {"PIECES_LIMIT": "columns that all arrows of an SVG of a lineage cross together"},
    },
    "Requests": {
        "registry.server.http.request_body": {
            "BODY_LIMIT_BYTES": "body of a request, files and records aside",
            "VALUES_LIMIT": "values in a JSON body",
            "LIST_VALUES_LIMIT": "values of a group, a node's report and the weights of a base",
            "MANY_VALUES_LIMIT": "values of a push, of a base with its modules and of a report",
        },
        "registry.errors": {"RETRY_AFTER_LIMIT_SECONDS": "`Retry-After` that a client obeys"},
        "registry.server.http.conditional": {"RANGES_LIMIT": "ranges of a request for a file"},
        "registry.api": {
            "PAGE_LIMIT": "items of a page",
            "DEPTH_LIMIT": "nesting of a body",
            "MESSAGE_LIMIT": "characters of a message or reason",
            "REF_LIMIT": "characters of a name, a ref or an id in a group",
            "GROUP_LIMIT": "items of a request that moves aliases, approves or describes",
            "GROUP_BODY_BYTES": "body of such a request",
        },
        "registry.model": {"UNKNOWN_FIELDS_LIMIT": "unknown fields listed of one object"},
        "registry.api.catalog": {
            "DESCRIPTION_LIMIT": "characters of a description",
            "TAGS_LIMIT": "tags of an adapter or version, and as many links",
        },
        "registry.server.catalog.version_groups": {
            "PAGE_CHARACTERS": "characters on a page of versions (manifests, facts, findings), of bases (specs) or "
            "of a desired state (facts, files); others follow"
        },
        "registry.api.evaluation": {"ENGINES_LIMIT": "engine profiles of a request"},
        "registry.server.routes.adapters": {"TARGETS_LIMIT": "targets or tags of a search"},
        "registry.server.search.text_index": {
            "QUERY_WORDS_LIMIT": "words of a search",
            "WORDS_LIMIT": "different words of names and tags that a search finds, and as many of the card",
            "CARD_LIMIT_BYTES": "beginning of a README that a search finds words in",
        },
        "registry.server.routes.hub.repositories": {
            "PATHS_LIMIT": "paths of a Hub API request",
            "FILTERS_LIMIT": "filters of a Hub API search",
        },
        "registry.server.outgoing.documents": {"DOCUMENT_LIMIT_BYTES": "response of an identity provider"},
        "registry.server.routes.audit": {"WAIT_LIMIT_SECONDS": "long poll of `/events`"},
        "registry.server.routes.serving": {"WAIT_LIMIT_SECONDS": "long poll of a node for its desired state"},
    },
    "Access": {
        "registry.roles": {"SUBJECT_LIMIT": "characters of a subject"},
        "registry.api.access": {
            "LIFETIME_LIMIT_SECONDS": "lifetime of a token that has one",
            "QUOTA_LIMIT": "quota of versions or of pushes an hour",
            "QUOTA_LIMIT_BYTES": "quota of bytes",
            "CLAIMS_LIMIT": "claims of a trusted publisher",
            "CLAIM_LIMIT": "characters of a claim",
        },
        "registry.server.access.token_exchange": {
            "RULES_LIMIT": "trusted publishers of a namespace",
            "WILDCARDS_LIMIT": "`*` in the pattern of a claim",
            "LIFETIME_SECONDS": "lifetime of an exchanged token",
        },
        "registry.server.access.issuers": {
            "LIFETIME_LIMIT_SECONDS": "lifetime of an identity token",
            "JTI_LIMIT": "characters of an identity token's `jti`",
            "GROUPS_LIMIT": "groups of an identity token",
        },
        "registry.client.adapters_file": {"FILE_LIMIT_BYTES": "file of `adapter apply`"},
        "registry.api.transfer": {
            "BULK_LIMIT": "adapters of one request to push or pull",
            "BULK_BODY_BYTES": "body of one request to push",
            "EXCERPTS_LIMIT": "excerpts of one plan",
            "EXCERPT_LIMIT_BYTES": "header that a client's plan carries; a longer one is evaluated by the commit",
            "READ_LIMIT_BYTES": "excerpts that one plan parses, counted for each push that has others",
            "BULK_SMALL_BYTES": "small files in one response to a pull",
            "BULK_MANIFESTS_BYTES": "manifests in one response to a pull; the others are requested again",
        },
        "registry.server.access.namespaces": {"ROLES_LIMIT": "roles of a namespace"},
        "registry.server.access.quotas": {
            "PUSHES_OF_TOKEN_LIMIT": "open pushes of a token",
            "PUSHES_OF_NAMESPACE_LIMIT": "open pushes of a namespace",
        },
        "registry.server.sessions.page_sessions": {"SESSION_SECONDS": "session of a browser"},
        "registry.server.access.oidc_client": {
            "DEFAULT_SESSION_SECONDS": "session of a browser from an identity provider",
            "SESSION_LIMIT_SECONDS": "the same, at most",
        },
        "registry.evaluation.gates": {"SOAK_LIMIT_SECONDS": "soak of a gate"},
        "registry.server.promotion.approvals": {
            "ALIASES_LIMIT": "aliases for which one identity approves a version",
            "APPROVALS_LIMIT": "approvals of a version",
        },
        "registry.server.promotion.attestations.signatures": {
            "SIGNATURES_LIMIT": "signatures of a version",
            "SIGNATURES_OF_ACTOR_LIMIT": "the same, by one actor",
            "SIGNATURES_LIMIT_BYTES": "size of all signatures of a version; a quarter of it by one actor",
        },
        "registry.server.promotion.moves": {"ALIASES_LIMIT": "aliases of an adapter"},
        "registry.server.promotion.gates": {"GATES_LIMIT": "gates of an adapter, and of a namespace"},
        "registry.server.promotion.aliases": {"HISTORY_LIMIT": "moves of an alias that a rollback looks back"},
    },
    "Jobs and nodes": {
        "registry.merging.recipes": {
            "SOURCES_LIMIT": "sources of a merge",
            "RANK_LIMIT": "rank of a merge",
            "WEIGHT_LIMIT": "weight of a source",
        },
        "registry.jobs": {
            "ATTEMPTS_LIMIT": "attempts of a job",
            "PRIORITY_LIMIT": "priority of a job, and its negative the lowest",
            "STEPS_LIMIT": "steps kept of a job",
            "PAYLOAD_LIMIT_BYTES": "payload of a job, and result of a smoke test beside its report",
            "RESULT_LIMIT_BYTES": "report of a smoke test; result of another job",
            "LEASE_SECONDS": "lease of a job, which its worker renews",
        },
        "registry.worker.sandbox.program": {
            "LINE_LIMIT_BYTES": "a report of a merge, a conversion or another program of a worker",
            "OUTPUT_LIMIT_BYTES": "all that such a program writes to standard output",
        },
        "registry.evaluation.reports": {
            "NUMBER_LIMIT": "number of a measurement; a worker reports a larger one as the limit",
            "MODULES_LIMIT": "modules with norms in a worker's report",
            "TOOLS_LIMIT": "tools in a worker's report",
        },
        "registry.api.jobs": {"BASES_LIMIT": "bases that a worker names when it claims a job"},
        "registry.server.jobs.ended": {
            "ENDED_CHARACTERS": "characters of ended jobs of each kind that a version keeps, those of campaigns aside",
            "ENDED_RETENTION": "how long an ended job is kept",
        },
        "registry.server.jobs.requests": {
            "WAITING_LIMIT": "waiting merges and conversions of a namespace",
            "LISTED_RESULT_LIMIT": "characters of a result in a list of jobs; a longer one is left out",
        },
        "registry.server.jobs.campaigns": {
            "NEWEST_LIMIT": "campaigns listed, the newest",
            "DAILY_LIMIT": "campaigns that one actor begins in a day",
            "JOBS_LIMIT": "jobs of a campaign",
            "ITEMS_LIMIT": "changed versions listed of a campaign",
        },
        "registry.engines.settings": {"SLOTS_LIMIT": "adapter slots that `adapter engine-settings` proposes"},
        "registry.api.serving": {
            "SLOTS_LIMIT": "versions of an engine on a node",
            "REASON_LIMIT": "characters of a node's reason",
            "LEASE_SECONDS": "lease of a node",
        },
        "registry.serving.desired_state": {
            "FILES_LIMIT": "files of a desired state that a node reads",
            "PAGES_LIMIT": "pages of a desired state, of up to 500 adapters each, that a node reads",
        },
        "registry.server.serving.status": {
            "SLOTS_OF_PAGE": "reported versions on a page of nodes, unless its first node has more",
            "CONVERGENCE_LIMIT": "versions whose convergence is listed, those first that are behind",
        },
        "registry.server.serving.desired": {
            "WHOLE_LIMIT": "adapters of a desired state in one response; the agent reads more page by page",
        },
        "registry.server.serving.reports": {
            "NODES_LIMIT": "engines of one reporter",
            "SERVED_ON_LIMIT": "nodes listed in a response that withdraws a version",
            "KEEP_SILENT": "time that a silent node is shown",
        },
    },
    "Storage and events": {
        "registry.server.storage.signed_links": {"LIMIT_SECONDS": "life of a link to the server"},
        "registry.server.storage.s3.store": {
            "COPY_LIMIT_BYTES": "one copy within a bucket; larger ones go in parts",
            "UPLOAD_LIMIT_BYTES": "one direct upload to a bucket",
        },
        "registry.client.local.cache": {"LIMIT_BYTES": "cache of a client, by default"},
        "registry.server.audit": {"DETAIL_LIMIT_BYTES": "detail of an event"},
        "registry.server.maintenance.gc": {
            "ENDED_RETENTION": "time that ended pushes, stored responses and exchanged tokens are kept",
            "KEEP_DELIVERIES": "time that ended deliveries of webhooks are kept",
        },
        "registry.server.webhooks": {"WEBHOOKS_LIMIT": "webhooks of a namespace"},
        "registry.server.webhooks.dispatch": {
            "RESPONSE_SECONDS": "wait for a webhook's response",
            "RESPONSE_LIMIT_BYTES": "what is read of a webhook's response",
        },
    },
    "Signatures and proofs": {
        "registry.attestations": {"BUNDLE_LIMIT_BYTES": "bundle of a signature"},
        "registry.attestations.keys": {"KEY_LIMIT_BYTES": "file of a public key"},
        "registry.attestations.certificates": {"CHAIN_LIMIT": "certificates of a chain"},
        "registry.server.promotion.attestations": {"SHOWN_LIMIT": "signatures shown of a version"},
        "registry.tlog.notes": {
            "NOTE_LIMIT_BYTES": "signed checkpoint",
            "HASHES_LIMIT": "hashes of a proof",
            "NOTES_LIMIT": "keys that an audit log has had",
        },
        "registry.tlog.tiles": {"ENTRY_LIMIT_BYTES": "entry of the audit log"},
    },
}
"""Section → module → constant → what it limits."""


def attempts() -> int:
    """How often the delivery of an event is tried."""
    return len(dispatch.RETRY_SECONDS) + 1


def markdown() -> str:
    """The whole page."""
    parts = [
        INTRODUCTION,
        "## Files\n",
        "Files of other kinds are refused. The table is `registry.versions.files.KINDS`.\n",
    ]
    kinds = ((f"`{kind.pattern}`", _size(kind.limit_bytes), f"`{kind.media_type}`") for kind in KINDS)
    parts.append(table(["file", "at most", "media type"], kinds))
    for title, modules in LIMITS.items():
        parts += [f"## {title}\n", table(["limit", "value", "set in"], _rows(modules))]
    waits = ", ".join(_seconds(seconds) for seconds in dispatch.RETRY_SECONDS)
    parts.append(f"A webhook delivery has {attempts()} attempts; the pauses between them are {waits}.\n")
    parts.append(
        f"Garbage collection keeps unreferenced blobs for {_seconds(Settings().gc_grace_seconds)} by default.\n"
    )
    return "\n".join(parts)


def _rows(modules: dict[str, dict[str, str]]) -> Iterable[tuple[str, str, str]]:
    for name, constants in modules.items():
        for constant, meaning in constants.items():
            yield meaning, _value(constant, getattr(import_module(name), constant)), f"`{name}.{constant}`"


def _value(constant: str, value: float | timedelta) -> str:
    if isinstance(value, timedelta):
        return _seconds(value.total_seconds())
    if constant.endswith("_BYTES"):
        return _size(int(value))
    return _seconds(value) if constant.endswith("_SECONDS") else f"{int(value):,}"


def _size(size_bytes: int) -> str:
    """In the largest unit that divides it."""
    for power, unit in ((60, "EiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size_bytes % 2**power == 0:
            return f"{size_bytes >> power} {unit}"
    return f"{size_bytes} bytes"


def _seconds(seconds: float) -> str:
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds % length == 0:
            return f"{seconds // length:g} {unit}"
    return f"{seconds:,.9g} s"
