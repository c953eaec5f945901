"""Operations of operators: garbage collection and its rules, consistency, re-index, metrics."""

from registry.api.evaluation import RecheckEnginesPage, RecheckEnginesRequest
from registry.api.maintenance import (
    FsckPage,
    FsckRequest,
    GcReport,
    GcRequest,
    ReindexPage,
    ReindexRequest,
    RetentionPlan,
    RetentionSet,
    RetentionView,
)
from registry.api.operations.operation import ADMIN, DRY_RUN, METRICS, NO_BODY, PULL, Tag

# fmt: off
maintenance = Tag("maintenance", "Garbage collection, consistency checks, metrics. For administrators.")
retention = Tag("retention", "Rules by which garbage collection deletes versions, and what they would delete.")
COLLECT_GARBAGE = maintenance.add(
    "collect_garbage", "POST /gc", ADMIN, GcRequest, GcReport, takes_key=False,
    example={"dry_run": True},
)
CHECK_STORE = maintenance.add(
    "check_store", "POST /fsck", ADMIN, FsckRequest, FsckPage, takes_key=False,
    example={"deep": True},
)
REBUILD_INDEX = maintenance.add(
    "rebuild_index", "POST /reindex", ADMIN, ReindexRequest, ReindexPage, takes_key=False,
    example={"dry_run": True},
)
REEVALUATE_VERDICTS = maintenance.add(
    "reevaluate_verdicts", "POST /verdicts/recheck-engines", ADMIN, RecheckEnginesRequest, RecheckEnginesPage,
    takes_key=False,
    example={"cursor": ""},
)
READ_METRICS = maintenance.add("read_metrics", "GET /metrics", METRICS, NO_BODY, str)
SHOW_RETENTION = retention.add_of_owners(
    "show_{owner}_retention", "GET /{owner}/retention", PULL, NO_BODY, RetentionView,
)
SET_RETENTION = retention.add_of_owners(
    "set_{owner}_retention", "PUT /{owner}/retention", ADMIN, RetentionSet, RetentionView,
    echo={"rule": "rule"},
    example={"rule": {"keep_newest": 3, "keep_seconds": 604800}},
)
DELETE_RETENTION = retention.add_of_owners(
    "delete_{owner}_retention", "DELETE /{owner}/retention", ADMIN, NO_BODY, RetentionView,
    takes=(DRY_RUN,),
)
PLAN_RETENTION = retention.add(
    "plan_retention", "GET /adapters/{namespace}/{name}/retention/plan", ADMIN, NO_BODY, RetentionPlan,
    echo={"items.name": "adapter"},
)
