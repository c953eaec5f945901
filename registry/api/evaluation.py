"""REST schemas of evaluation: checks of files, engine verdicts, norms, reference log-probabilities.

Engines are named by profile: `vllm==0.33.0,max_lora_rank=32`.
"""

from datetime import datetime
from typing import Annotated

from pydantic import Field

from registry.adapters.safetensors import HEADER_LIMIT_BYTES
from registry.api.models import ItemList, ItemPage, Request, Response
from registry.digest import Digest
from registry.evaluation.engine_settings import EngineSettings
from registry.evaluation.reference_logprobs import ReferenceLogprobs
from registry.evaluation.verdicts import PROFILE_LIMIT, Verdict
from registry.names import PATH_LIMIT_BYTES
from registry.versions.files import CONFIG_LIMIT_BYTES, FILE_LIMIT_BYTES, WEIGHTS

ENGINES_LIMIT = 32
"""How many profiles one request may name."""
EngineText = Annotated[str, Field(max_length=PROFILE_LIMIT)]


class CheckRequest(Request):
    """Files to check without pushing them. Other tools than PEFT often have no configuration."""

    base: str
    file: str = Field(default=WEIGHTS, max_length=PATH_LIMIT_BYTES)
    config: str = Field(default="", max_length=CONFIG_LIMIT_BYTES)
    header: str = Field(max_length=HEADER_LIMIT_BYTES)
    size_bytes: int = Field(ge=0, le=FILE_LIMIT_BYTES)
    engines: list[EngineText] = Field(default=[], max_length=ENGINES_LIMIT)


class VerdictList(ItemList[Verdict]):
    """Verdicts about a version or about files."""


class EngineSettingsList(ItemPage[EngineSettings]):
    """Per engine, the settings that serve the newest versions of a page of a base's adapters."""

    base: str
    adapters: int


class RecheckEnginesRequest(Request):
    """Renew the engine verdicts that older rules made.

    Versions whose stored facts an older release wrote have their headers read again first.
    """

    cursor: str = Field(default="", max_length=20)


class RecheckEnginesPage(Response):
    """What one request did."""

    versions: int = 0
    headers: int = 0
    verdicts: int = 0
    next_cursor: str = ""


class ReferenceLogprobsView(Response):
    """How a version answered in its newest smoke test; an engine that answers alike has loaded it."""

    version: str
    digest: Digest
    base: str
    base_fingerprint: str
    report: Digest
    reference_logprobs: ReferenceLogprobs


class ModuleNorms(Response):
    """Norms of one module: of A, B and scale · BA, and of the base's own weight (`adapter base identify` reads it)."""

    a: float | None
    b: float | None
    update: float | None
    rms: float | None
    weight: float | None = None
    share: float | None = None


class NormsView(Response):
    """How large the updates of a version's modules are."""

    name: str
    number: int
    digest: Digest
    measured_at: datetime | None
    base: str = ""
    base_measured: bool = False
    modules: dict[str, ModuleNorms]
