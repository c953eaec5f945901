"""Operations of a push and a pull, and bytes of files."""

from registry.api.operations.operation import (
    EXAMPLE_DIGEST,
    EXAMPLE_FINGERPRINT,
    MANY_VALUES_LIMIT,
    NO_BODY,
    NO_TOKEN,
    PULL,
    PUSH,
    BodyLimit,
    Tag,
)
from registry.api.transfer import (
    BULK_BODY_BYTES,
    BulkCommitRequest,
    BulkPullPlan,
    BulkPullRequest,
    BulkPushPlan,
    BulkPushRequest,
    BulkPushResult,
)

# fmt: off
_BULK_BODY = BodyLimit(BULK_BODY_BYTES, MANY_VALUES_LIMIT)
transfer = Tag("transfer", "Push and pull: plan, upload, commit; bytes of files.")
PLAN_PUSHES = transfer.add(
    "plan_pushes", "POST /pushes", PUSH, BulkPushRequest, BulkPushPlan, is_bulk=True, takes_key=False,
    example={
        "items": [
            {
                "name": "acme/support",
                "manifest": {
                    "base": {"name": "llama-3.1-8b", "fingerprint": EXAMPLE_FINGERPRINT},
                    "files": [
                        {
                            "path": "adapter_model.safetensors", "media_type": "application/vnd.safetensors",
                            "digest": EXAMPLE_DIGEST, "size_bytes": 13640000,
                        }
                    ],
                },
                "message": "trained on the tickets of October",
            }
        ]
    },
    body_limit=_BULK_BODY,
)
COMMIT_PUSHES = transfer.add(
    "commit_pushes", "POST /pushes/commit", PUSH, BulkCommitRequest, BulkPushResult, is_bulk=True,
    example={"items": [{"push_id": "psh_3f9a71c05d2e8b460a1f4c7d", "alias": "canary"}], "atomic": False},
    body_limit=_BULK_BODY,
)
PLAN_PULLS = transfer.add(
    "plan_pulls", "POST /pulls", PULL, BulkPullRequest, BulkPullPlan, is_bulk=True, takes_key=False,
    example={"refs": ["acme/support:prod", "acme/billing@3"]},
)
READ_FILE = transfer.add(
    "read_file", "GET /adapters/{namespace}/{name}/versions/{selector}/files/{path:path}", PULL, NO_BODY, bytes,
)
HEAD_FILE = transfer.add(
    "head_file", "HEAD /adapters/{namespace}/{name}/versions/{selector}/files/{path:path}", PULL, NO_BODY, bytes,
)
READ_REPORT = transfer.add(
    "read_report", "GET /adapters/{namespace}/{name}/versions/{selector}/reports/{digest}", PULL, NO_BODY, bytes,
)
UPLOAD_BY_LINK = transfer.add(
    "upload_by_link", "PUT /links/{key:path}", NO_TOKEN, bytes, NO_BODY, status=204, takes_key=False,
    body_limit=BodyLimit(None),
)
READ_BY_LINK = transfer.add("read_by_link", "GET /links/{key:path}", NO_TOKEN, NO_BODY, bytes)
