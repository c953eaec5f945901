"""Operations of adapters and versions, and of their lineage."""

from registry.api.catalog import (
    AdapterPage,
    AdapterView,
    MetadataChange,
    Resolved,
    VersionMetadataChange,
    VersionPage,
    VersionView,
)
from registry.api.lineage import Lineage
from registry.api.operations.operation import NO_BODY, PULL, PUSH, SAME_ADAPTER, SAME_VERSION, Tag

# fmt: off
adapters = Tag("adapters", "Adapters, versions, aliases, lineage, and resolving a version.")
_CHANGED = {field: field for field in ("description", "tags", "links")}
RESOLVE_VERSION = adapters.add(
    "resolve_version", "GET /resolve/{namespace}/{name}/{selector}", PULL, NO_BODY, Resolved, echo=SAME_VERSION,
)
LIST_ADAPTERS = adapters.add("list_adapters", "GET /adapters", PULL, NO_BODY, AdapterPage)
SHOW_ADAPTER = adapters.add(
    "show_adapter", "GET /adapters/{namespace}/{name}", PULL, NO_BODY, AdapterView, echo=SAME_ADAPTER,
)
LIST_VERSIONS = adapters.add(
    "list_versions", "GET /adapters/{namespace}/{name}/versions", PULL, NO_BODY, VersionPage,
    echo={"items.name": "adapter"},
)
SHOW_VERSION = adapters.add(
    "show_version", "GET /adapters/{namespace}/{name}/versions/{selector}", PULL, NO_BODY, VersionView,
    echo=SAME_VERSION,
)
CHANGE_ADAPTER_METADATA = adapters.add(
    "change_adapter_metadata", "PATCH /adapters/{namespace}/{name}/metadata", PUSH, MetadataChange, AdapterView,
    echo=SAME_ADAPTER | _CHANGED,
    example={"tags": {"team": "nlp", "trial": None}},
)
CHANGE_VERSION_METADATA = adapters.add(
    "change_version_metadata", "PATCH /adapters/{namespace}/{name}/versions/{selector}/metadata",
    PUSH, VersionMetadataChange, VersionView, echo=SAME_VERSION | _CHANGED,
    example={"description": "Answers about returns", "tags": {"reviewed": ""}},
)
SHOW_LINEAGE = adapters.add(
    "show_lineage", "GET /adapters/{namespace}/{name}/versions/{selector}/lineage", PULL, NO_BODY, Lineage,
)
FIND_LINEAGE = adapters.add("find_lineage", "GET /lineage", PULL, NO_BODY, Lineage)
