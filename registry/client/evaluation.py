"""`Judging`: the routes of smoke tests that few need: campaigns, a base's thresholds, reference log-probabilities.

Invariants
- One method for each route, as in api.py; nothing is kept here.
"""

from __future__ import annotations

from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from registry import names
from registry.api.bases import ThresholdsRequest
from registry.api.catalog import BaseView
from registry.api.evaluation import ReferenceLogprobsView
from registry.api.jobs import CampaignRequest, CampaignView
from registry.client.core import Versions
from registry.errors import RegistryError
from registry.names import Ref

Shape = TypeVar("Shape", bound=BaseModel)


class Judging:
    def __init__(self, registry: Versions) -> None:
        self._connection = registry.connection

    def begin(self, request: CampaignRequest) -> CampaignView:
        """Queue the affected versions of a base."""
        return self._send("POST", "/campaigns", CampaignView, request.model_dump(mode="json"))

    def campaign(self, campaign_id: str) -> CampaignView:
        """How far it is, and what changed so far."""
        return self._send("GET", f"/campaigns/{quote(campaign_id, safe='')}", CampaignView)

    def set_thresholds(self, base: str, thresholds: dict[str, float]) -> BaseView:
        """What smoke tests on this base take instead of the defaults."""
        path = f"/bases/{quote(str(names.base_name(base)), safe='/')}/thresholds"
        body = ThresholdsRequest(thresholds=thresholds).model_dump(mode="json")
        return self._send("PUT", path, BaseView, body)

    def reference_logprobs(self, ref: Ref) -> ReferenceLogprobsView:
        """What a serving node compares after loading this version."""
        selector = quote(str(ref.selector), safe="")
        path = f"/adapters/{ref.name.namespace}/{ref.name.name}/versions/{selector}/reference-logprobs"
        return self._send("GET", path, ReferenceLogprobsView)

    def _send(self, method: str, path: str, shape: type[Shape], body: dict[str, Any] | None = None) -> Shape:
        answer = self._connection.send(method, path, json=body)
        try:
            return shape.model_validate_json(answer.content)
        except ValidationError as e:
            raise RegistryError("INTERNAL", f"{method} {path}: this client does not understand the answer") from e
