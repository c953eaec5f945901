"""Operations of base models."""

from registry.api.bases import (
    IDENTITY_BODY_BYTES,
    BaseAdd,
    BaseAliases,
    BasePage,
    BaseView,
    IdentityRequest,
    ModulesRequest,
    ThresholdsRequest,
)
from registry.api.catalog import DeleteResult
from registry.api.operations.operation import (
    ADMIN,
    EXAMPLE_DIGEST,
    EXAMPLE_FINGERPRINT,
    LARGE_BODY,
    LIST_VALUES_LIMIT,
    MANY_VALUES_LIMIT,
    NO_BODY,
    PULL,
    PUSH,
    REASON,
    WORK,
    BodyLimit,
    Tag,
)
from registry.bases import Similarity

# fmt: off
bases = Tag("bases", "Base models, their identity, and how they are related.")
_WEIGHTS = {"lm_head.weight": {"dtype": "BF16", "shape": [32000, 4096], "digest": EXAMPLE_DIGEST}}
_IDENTITY_LIMIT = BodyLimit(IDENTITY_BODY_BYTES, LIST_VALUES_LIMIT)
_IDENTITY = {"identity": {"exact": EXAMPLE_FINGERPRINT, "tensors": 1, "marks": _WEIGHTS}}
ADD_BASE = bases.add(
    "add_base", "POST /bases", PUSH, BaseAdd, BaseView,
    status=201, echo={"name": "spec.name", "fingerprint": "spec.fingerprint"},
    body_limit=LARGE_BODY,
)
LIST_BASES = bases.add("list_bases", "GET /bases", PULL, NO_BODY, BasePage)
SHOW_BASE = bases.add("show_base", "GET /bases/{base:path}", PULL, NO_BODY, BaseView)
DELETE_BASE = bases.add("delete_base", "DELETE /bases/{base:path}", PUSH, NO_BODY, DeleteResult, takes=(REASON,))
SET_BASE_ALIASES = bases.add(
    "set_base_aliases", "PUT /bases/{base:path}/aliases", ADMIN, BaseAliases, BaseView,
    takes=(REASON,),
    example={"aliases": ["HuggingFaceTB/SmolLM2-135M-Instruct"]},
)
IDENTIFY_BASE = bases.add(
    "identify_base", "PUT /bases/{base:path}/identity", WORK, IdentityRequest, BaseView,
    example=_IDENTITY,
    body_limit=_IDENTITY_LIMIT,
)
SET_BASE_MODULES = bases.add(
    "set_base_modules", "PUT /bases/{base:path}/modules", WORK, ModulesRequest, BaseView,
    example={
        "modules": {
            "library": "transformers 5.24.0",
            "modules": {"lm_head": {"kind": "linear", "in_features": 4096, "out_features": 32000}},
        }
    },
    body_limit=BodyLimit(32 * 2**20, MANY_VALUES_LIMIT),
)
SET_THRESHOLDS = bases.add(
    "set_thresholds", "PUT /bases/{base:path}/thresholds", ADMIN, ThresholdsRequest, BaseView,
    example={"thresholds": {}},
)
COMPARE_BASE = bases.add(
    "compare_base", "POST /bases/{base:path}/similarity", PULL, IdentityRequest, Similarity,
    example=_IDENTITY,
    body_limit=_IDENTITY_LIMIT,
)
