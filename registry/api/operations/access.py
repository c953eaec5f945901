"""Operations of tokens, namespaces, roles and trusted publishers."""

from registry.api.access import (
    ExchangeRequest,
    NamespaceCreate,
    NamespacePage,
    NamespaceSet,
    NamespaceView,
    PublisherAdd,
    PublisherList,
    PublisherView,
    RenameRequest,
    RoleGrant,
    SubjectRoles,
    TokenCreate,
    TokenCreated,
    TokenPage,
    TokenRotate,
    TokenView,
    Whoami,
)
from registry.api.aliases import WithdrawRequest
from registry.api.catalog import AdapterView, DeleteResult
from registry.api.maintenance import Health
from registry.api.operations.operation import (
    ADMIN,
    ANY_TOKEN,
    DRY_RUN,
    NO_BODY,
    NO_TOKEN,
    PULL,
    REASON,
    SAME_ADAPTER,
    BodyLimit,
    Tag,
)

# fmt: off
access = Tag("access", "Tokens, the caller, and health.")
namespaces = Tag("namespaces", "Namespaces, roles, trusted publishers; renaming and deleting adapters.")
_SAME_NAMESPACE = {"name": "namespace"}
_SAME_SUBJECT = {"namespace": "namespace", "subject": "subject"}
_RULES = {name: name for name, field in NamespaceSet.model_fields.items() if field.annotation == bool | None}
CREATE_TOKEN = access.add(
    "create_token", "POST /tokens", ADMIN, TokenCreate, TokenCreated, status=201, has_secret=True,
    echo={f"token.{field}": field for field in ("name", "scopes", "namespaces", "adapters", "aliases")},
    example={"name": "ci", "scopes": ["push"], "namespaces": ["acme"], "expires_in_seconds": 86400},
)
EXCHANGE_TOKEN = access.add(
    "exchange_token", "POST /tokens/exchange", NO_TOKEN, ExchangeRequest, TokenCreated,
    status=201, echo={"token.adapters": "adapter"}, takes_key=False, has_secret=True,
    example={"assertion": "eyJhbGciOi…", "adapter": "acme/support"},
    body_limit=BodyLimit(20 * 2**10),
)
LIST_TOKENS = access.add("list_tokens", "GET /tokens", ANY_TOKEN, NO_BODY, TokenPage)
ROTATE_TOKEN = access.add(
    "rotate_token", "POST /tokens/{token_id}/rotate", ANY_TOKEN, TokenRotate, TokenCreated,
    echo={"token.id": "token_id"}, has_secret=True,
    example={"keep_seconds": 3600},
)
REVOKE_TOKEN = access.add(
    "revoke_token", "DELETE /tokens/{token_id}", ANY_TOKEN, NO_BODY, TokenView, echo={"id": "token_id"},
    takes=(REASON, DRY_RUN),
)
SHOW_CALLER = access.add("show_caller", "GET /whoami", ANY_TOKEN, NO_BODY, Whoami)
CHECK_HEALTH = access.add("check_health", "GET /health", NO_TOKEN, NO_BODY, Health)
LIST_NAMESPACES = namespaces.add("list_namespaces", "GET /namespaces", PULL, NO_BODY, NamespacePage)
CREATE_NAMESPACE = namespaces.add(
    "create_namespace", "POST /namespaces", ADMIN, NamespaceCreate, NamespaceView, status=201, echo={"name": "name"},
    example={"name": "acme", "owner": "alice@example.org"},
)
SHOW_NAMESPACE = namespaces.add(
    "show_namespace", "GET /namespaces/{namespace}", PULL, NO_BODY, NamespaceView, echo=_SAME_NAMESPACE,
)
CHANGE_NAMESPACE = namespaces.add(
    "change_namespace", "PATCH /namespaces/{namespace}", ADMIN, NamespaceSet, NamespaceView,
    echo=_SAME_NAMESPACE | _RULES,
    takes=(REASON, DRY_RUN),
    example={"public": True, "quota_versions": 1000},
)
DELETE_NAMESPACE = namespaces.add(
    "delete_namespace", "DELETE /namespaces/{namespace}", ADMIN, NO_BODY, DeleteResult, echo=_SAME_NAMESPACE,
    takes=(REASON, DRY_RUN),
)
GRANT_ROLE = namespaces.add(
    "grant_role", "PUT /namespaces/{namespace}/roles/{subject:path}", ADMIN, RoleGrant, SubjectRoles,
    echo=_SAME_SUBJECT,
    takes=(REASON, DRY_RUN),
    example={"role": "pusher", "aliases": ["canary"]},
)
REVOKE_ROLE = namespaces.add(
    "revoke_role", "DELETE /namespaces/{namespace}/roles/{subject:path}", ADMIN, NO_BODY, SubjectRoles,
    echo=_SAME_SUBJECT,
    takes=(REASON, DRY_RUN),
)
DELETE_ADAPTER = namespaces.add(
    "delete_adapter", "DELETE /adapters/{namespace}/{name}", ADMIN, NO_BODY, DeleteResult, echo=SAME_ADAPTER,
)
UNDELETE_ADAPTER = namespaces.add(
    "undelete_adapter", "POST /adapters/{namespace}/{name}/undelete", ADMIN, WithdrawRequest, DeleteResult,
    echo=SAME_ADAPTER,
    example={"reason": "deleted by mistake"},
)
RELEASE_NAME = namespaces.add(
    "release_name", "POST /adapters/{namespace}/{name}/release-name", ADMIN, WithdrawRequest, DeleteResult,
    echo=SAME_ADAPTER,
    example={"reason": "a typo that nobody pulled"},
)
RENAME_ADAPTER = namespaces.add(
    "rename_adapter", "POST /adapters/{namespace}/{name}/rename", ADMIN, RenameRequest, AdapterView,
    echo={"name": "to"},
    takes=(DRY_RUN,),
    example={"to": "acme/support-en"},
)
LIST_PUBLISHERS = namespaces.add(
    "list_publishers", "GET /adapters/{namespace}/{name}/publishers", ADMIN, NO_BODY, PublisherList,
    echo={"items.adapter": "adapter"},
)
ADD_PUBLISHER = namespaces.add(
    "add_publisher", "POST /adapters/{namespace}/{name}/publishers", ADMIN, PublisherAdd, PublisherView,
    status=201, echo={"adapter": "adapter", "issuer": "issuer", "claims": "claims", "aliases": "aliases"},
    example={"issuer": "https://ci.example.org", "claims": {"repository": "acme/train"}},
)
DELETE_PUBLISHER = namespaces.add(
    "delete_publisher", "DELETE /adapters/{namespace}/{name}/publishers/{publisher_id}", ADMIN, NO_BODY, PublisherView,
    echo={"adapter": "adapter", "id": "publisher_id"},
    takes=(REASON, DRY_RUN),
)
