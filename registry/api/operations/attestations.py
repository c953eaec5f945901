"""Operations of attestations."""

from registry.api.audit.attestations import AttestationList, AttestationView, SignRequest
from registry.api.operations.operation import NO_BODY, PULL, PUSH, Tag

# fmt: off
attestations = Tag("attestations", "Signatures and other signed statements about a version.")
LIST_ATTESTATIONS = attestations.add(
    "list_attestations", "GET /adapters/{namespace}/{name}/versions/{selector}/attestations",
    PULL, NO_BODY, AttestationList,
)
SIGN_VERSION = attestations.add(
    "sign_version", "POST /adapters/{namespace}/{name}/versions/{selector}/attestations",
    PUSH, SignRequest, AttestationView, status=201,
    example={"bundle": "{…}", "public_key": "-----BEGIN PUBLIC KEY-----…"},
)
