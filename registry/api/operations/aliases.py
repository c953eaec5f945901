"""Operations of aliases, gates and approvals, and of the withdrawal of versions."""

from registry.api.aliases import (
    AliasList,
    AliasMove,
    AliasView,
    ApprovalGroup,
    ApprovalList,
    ApprovalResults,
    ApprovalView,
    ApproveRequest,
    DescribeGroup,
    DescribeResults,
    GateCheck,
    GateList,
    GateSet,
    GateView,
    History,
    MoveGroup,
    MovePage,
    MoveResults,
    NamespaceHistory,
    PromoteRequest,
    RollbackRequest,
    WithdrawRequest,
)
from registry.api.catalog import VersionView
from registry.api.operations.adapters import adapters
from registry.api.operations.operation import (
    ABSENT,
    ADMIN,
    DRY_RUN,
    LIST_BODY,
    NO_BODY,
    PRESENT,
    PROMOTE,
    PULL,
    PUSH,
    SAME_ADAPTER,
    SAME_VERSION,
    Tag,
)

# fmt: off
gates = Tag("gates", "What a version needs before an alias may point at it; approvals and quarantine.")
_SAME_ALIAS = {"alias": "alias", "number": "number", "digest": "digest"}
LIST_ALIASES = adapters.add("list_aliases", "GET /adapters/{namespace}/{name}/aliases", PULL, NO_BODY, AliasList)
SHOW_HISTORY = adapters.add(
    "show_history", "GET /adapters/{namespace}/{name}/history", PULL, NO_BODY, History,
    echo=SAME_ADAPTER | {"moves.alias": "alias"},
)
SHOW_NAMESPACE_HISTORY = adapters.add(
    "show_namespace_history", "GET /namespaces/{namespace}/history", PULL, NO_BODY, NamespaceHistory,
    echo={"namespace": "namespace", "moves.alias": "alias"},
)
LIST_MOVES = adapters.add(
    "list_moves", "GET /moves", PULL, NO_BODY, MovePage, echo={"items.group_id": "group_id", "items.alias": "alias"},
)
CHANGE_METADATA = adapters.add(
    "change_metadata", "POST /metadata", PUSH, DescribeGroup, DescribeResults, is_bulk=True,
    example={"items": [{"subject": "acme/support@3", "tags": {"reviewed": "", "trial": None}}]},
    body_limit=LIST_BODY,
)
SHOW_ALIAS = adapters.add(
    "show_alias", "GET /adapters/{namespace}/{name}/aliases/{alias}", PULL, NO_BODY, AliasView, echo={"alias": "alias"},
)
PROMOTE_ALIAS = adapters.add(
    "promote_alias", "PUT /adapters/{namespace}/{name}/aliases/{alias}", PROMOTE, PromoteRequest, AliasView,
    echo=_SAME_ALIAS,
    example={"version": "3", "reason": "passed the regression suite"},
)
DELETE_ALIAS = adapters.add(
    "delete_alias", "DELETE /adapters/{namespace}/{name}/aliases/{alias}", PROMOTE, NO_BODY, AliasMove,
    echo={"alias": "alias", "reason": "reason", "number": ABSENT},
    takes=(DRY_RUN,),
)
ROLLBACK_ALIAS = adapters.add(
    "rollback_alias", "POST /adapters/{namespace}/{name}/aliases/{alias}/rollback", PROMOTE, RollbackRequest, AliasView,
    echo=_SAME_ALIAS,
    example={"to": "2", "reason": "too slow"},
)
MOVE_ALIASES = adapters.add(
    "move_aliases", "POST /moves", PROMOTE, MoveGroup, MoveResults, echo=SAME_ADAPTER | _SAME_ALIAS, is_bulk=True,
    example={
        "items": [
            {"name": "acme/support", "alias": "prod", "version": "3", "generation": 2},
            {"name": "acme/billing", "alias": "prod", "rollback": True},
        ],
        "atomic": True,
    },
    body_limit=LIST_BODY,
)
YANK_VERSION = adapters.add(
    "yank_version", "POST /adapters/{namespace}/{name}/versions/{selector}/yank", PROMOTE, WithdrawRequest, VersionView,
    echo=SAME_VERSION | {"yanked_at": PRESENT},
    example={"reason": "answers in the wrong language"},
)
UNYANK_VERSION = adapters.add(
    "unyank_version", "POST /adapters/{namespace}/{name}/versions/{selector}/unyank",
    PROMOTE, WithdrawRequest, VersionView, echo=SAME_VERSION | {"yanked_at": ABSENT},
    example={"reason": "yanked by mistake"},
)
DELETE_VERSION = adapters.add(
    "delete_version", "DELETE /adapters/{namespace}/{name}/versions/{selector}", ADMIN, NO_BODY, VersionView,
    echo=SAME_VERSION,
)
UNDELETE_VERSION = adapters.add(
    "undelete_version", "POST /adapters/{namespace}/{name}/versions/{selector}/undelete",
    ADMIN, WithdrawRequest, VersionView, echo=SAME_VERSION | {"deleted_at": ABSENT},
    example={"reason": "deleted by mistake"},
)
LIST_GATES = gates.add_of_owners("list_{owner}_gates", "GET /{owner}/gates", PULL, NO_BODY, GateList)
SHOW_GATE = gates.add_of_owners(
    "show_{owner}_gate", "GET /{owner}/gates/{alias}", PULL, NO_BODY, GateView, echo={"alias": "alias"},
)
SET_GATE = gates.add_of_owners(
    "set_{owner}_gate", "PUT /{owner}/gates/{alias}", ADMIN, GateSet, GateView, echo={"alias": "alias"},
    takes=(DRY_RUN,),
    example={"gate": {"approvals": 1, "signed_by": ["ci"]}},
)
DELETE_GATE = gates.add_of_owners(
    "delete_{owner}_gate", "DELETE /{owner}/gates/{alias}", ADMIN, NO_BODY, GateView, echo={"alias": "alias"},
    takes=(DRY_RUN,),
)
CHECK_GATE = gates.add(
    "check_gate", "GET /adapters/{namespace}/{name}/versions/{selector}/gates/{alias}", PULL, NO_BODY, GateCheck,
    echo={"alias": "alias", "gate.alias": "alias", "number": "number"},
)
LIST_APPROVALS = gates.add(
    "list_approvals", "GET /adapters/{namespace}/{name}/versions/{selector}/approvals", PULL, NO_BODY, ApprovalList,
    echo={"items.number": "number"},
)
APPROVE_VERSION = gates.add(
    "approve_version", "POST /adapters/{namespace}/{name}/versions/{selector}/approvals",
    PROMOTE, ApproveRequest, ApprovalView, echo={"alias": "alias", "number": "number"},
    example={"alias": "prod", "comment": "reviewed"},
)
APPROVE_VERSIONS = gates.add(
    "approve_versions", "POST /approvals", PROMOTE, ApprovalGroup, ApprovalResults,
    echo={"alias": "alias", "number": "number"}, is_bulk=True,
    example={"items": [{"ref": "acme/support@3", "alias": "prod", "comment": "reviewed"}]},
    body_limit=LIST_BODY,
)
QUARANTINE_VERSION = gates.add(
    "quarantine_version", "POST /adapters/{namespace}/{name}/versions/{selector}/quarantine",
    PROMOTE, WithdrawRequest, VersionView, echo=SAME_VERSION | {"quarantined_at": PRESENT},
    example={"reason": "answers in the wrong language"},
)
UNQUARANTINE_VERSION = gates.add(
    "unquarantine_version", "POST /adapters/{namespace}/{name}/versions/{selector}/unquarantine",
    ADMIN, WithdrawRequest, VersionView, echo=SAME_VERSION | {"quarantined_at": ABSENT},
    example={"reason": "the report was wrong"},
)
