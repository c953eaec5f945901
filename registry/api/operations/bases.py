"""Operations of base models."""

from registry.api.bases import (
    BaseAdd,
    BaseAliases,
    BasePage,
    BaseView,
    IdentityRequest,
    ModulesRequest,
    ThresholdsRequest,
)
from registry.api.catalog import DeleteResult
from registry.api.operations.operation import ADMIN, NO_BODY, PULL, PUSH, WORK, Tag
from registry.bases import Similarity

# fmt: off
bases = Tag("bases", "Base models, their identity, and how they are related.")
ADD_BASE = bases.add(
    "add_base", "POST /bases", PUSH, BaseAdd, BaseView,
    status=201, echo={"name": "spec.name", "fingerprint": "spec.fingerprint"},
)
LIST_BASES = bases.add("list_bases", "GET /bases", PULL, NO_BODY, BasePage)
SHOW_BASE = bases.add("show_base", "GET /bases/{base:path}", PULL, NO_BODY, BaseView)
DELETE_BASE = bases.add("delete_base", "DELETE /bases/{base:path}", PUSH, NO_BODY, DeleteResult)
SET_BASE_ALIASES = bases.add("set_base_aliases", "PUT /bases/{base:path}/aliases", ADMIN, BaseAliases, BaseView)
IDENTIFY_BASE = bases.add("identify_base", "PUT /bases/{base:path}/identity", WORK, IdentityRequest, BaseView)
SET_BASE_MODULES = bases.add("set_base_modules", "PUT /bases/{base:path}/modules", WORK, ModulesRequest, BaseView)
SET_THRESHOLDS = bases.add("set_thresholds", "PUT /bases/{base:path}/thresholds", ADMIN, ThresholdsRequest, BaseView)
COMPARE_BASE = bases.add("compare_base", "POST /bases/{base:path}/similarity", PULL, IdentityRequest, Similarity)
