"""Routes of adapters."""

from fastapi import APIRouter

router = APIRouter(tags=["adapters"])
