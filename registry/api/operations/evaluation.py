"""Operations of verdicts."""

from registry.api.evaluation import CheckRequest, EngineSettingsList, NormsView, ReferenceLogprobsView, VerdictList
from registry.api.operations.operation import NO_BODY, PULL, SAME_VERSION, BodyLimit, Tag
from registry.api.operations.transfer import transfer

# fmt: off
verdicts = Tag("verdicts", "What engines say about a version; norms of its weights.")
CHECK_ADAPTER = verdicts.add(
    "check_adapter", "POST /check", PULL, CheckRequest, VerdictList, takes_key=False,
    example={"base": "llama-3.1-8b", "header": "eyJfX21ldGFkYXRhX18iOnt9fQ==", "size_bytes": 13640000},
    body_limit=BodyLimit(32 * 2**20),
)
LIST_VERDICTS = verdicts.add(
    "list_verdicts", "GET /adapters/{namespace}/{name}/versions/{selector}/verdicts", PULL, NO_BODY, VerdictList,
    echo={"items.subject": "digest"},
)
SHOW_NORMS = verdicts.add(
    "show_norms", "GET /adapters/{namespace}/{name}/versions/{selector}/norms", PULL, NO_BODY, NormsView,
    echo=SAME_VERSION,
)
RECOMMEND_ENGINE_SETTINGS = verdicts.add(
    "recommend_engine_settings", "GET /engine-settings", PULL, NO_BODY, EngineSettingsList,
)
READ_REFERENCE_LOGPROBS = transfer.add(
    "read_reference_logprobs", "GET /adapters/{namespace}/{name}/versions/{selector}/reference-logprobs",
    PULL, NO_BODY, ReferenceLogprobsView, echo={"digest": "digest"},
)
