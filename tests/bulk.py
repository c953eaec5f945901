"""Bulk requests of one item, sent by hand, and the response about that item as if it were the whole response."""

from __future__ import annotations

from typing import Any

import httpx

from registry.api import transfer
from registry.client.core import AnyRef, Name, Versions, only, parsed_name

PUSHES = "/api/v1/pushes"
COMMITS = "/api/v1/pushes/commit"


def push_body(name: str, manifest: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"items": [{"name": name, "manifest": manifest, **more}]}


def commit_body(push_id: str, **more: Any) -> dict[str, Any]:
    return {"items": [{"push_id": push_id, **more}]}


def response_about(response: httpx.Response, position: int = 0) -> httpx.Response:
    """An error of the whole request stays as it is; else the result of an item, or its problem with its status."""
    if response.is_error:
        return response
    item = response.json()["items"][position]
    if item["problem"] is None:
        headers = {"x-request-id": request_id(response)}
        return httpx.Response(response.status_code, json=item["result"], headers=headers, request=response.request)
    problem = item["problem"]
    headers = {"content-type": "application/problem+json", "x-request-id": request_id(response)}
    if problem["retry_after_seconds"] is not None:
        headers["retry-after"] = str(problem["retry_after_seconds"])
    return httpx.Response(problem["status"], json=problem, headers=headers, request=response.request)


def request_id(response: httpx.Response) -> str:
    return response.headers["x-request-id"]


def plan_push(registry: Versions, name: Name, request: transfer.PushRequest) -> transfer.PushPlan:
    item = transfer.PushItem(
        name=str(parsed_name(name)), manifest=request.manifest, base=request.base, message=request.message
    )
    return only(registry.plan_pushes([item]))


def commit_push(registry: Versions, push_id: str, **options: Any) -> transfer.PushResult:
    return only(registry.commit_pushes([transfer.CommitItem(push_id=push_id, **options)]))


def plan_pull(registry: Versions, ref: AnyRef) -> transfer.PullPlan:
    return only(registry.plan_pulls([ref])[0])
