"""Routes of bases."""

from fastapi import APIRouter

router = APIRouter(tags=["bases"])
