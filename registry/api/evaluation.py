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
    """Name of the base model, such as `llama-3.1-8b`."""
    file: str = Field(default=WEIGHTS, max_length=PATH_LIMIT_BYTES)
    """Name of the weights file; other tools use any that ends in `.safetensors`."""
    config: str = Field(default="", max_length=CONFIG_LIMIT_BYTES)
    """Text of `adapter_config.json`. Empty if there is none."""
    header: str = Field(max_length=HEADER_LIMIT_BYTES)
    """JSON header of the weights file as text, without the 8 bytes before it that give its length."""
    size_bytes: int = Field(ge=0, le=FILE_LIMIT_BYTES)
    """Length of the weights file in bytes."""
    engines: list[EngineText] = Field(default=[], max_length=ENGINES_LIMIT)
    """Engine profiles to evaluate too, such as `vllm==0.33.0`."""


class VerdictList(ItemList[Verdict]):
    """Verdicts about a version or about files."""

    items: list[Verdict]
    """The newest verdict of each check, or of each engine of the request."""


class EngineSettingsList(ItemPage[EngineSettings]):
    """Per engine, the settings that serve the newest versions of a page of a base's adapters."""

    items: list[EngineSettings]
    """Settings for each engine of the request, in its order."""

    base: str
    """Name of the base model, such as `llama-3.1-8b`."""
    adapters: int
    """Number of adapters on this page."""


class RecheckEnginesRequest(Request):
    """Renew the engine verdicts that older rules made.

    Versions whose stored facts an older release wrote have their headers read again first.
    """

    cursor: str = Field(default="", max_length=20)
    """Where to continue: `next_cursor` of the previous response, unchanged. Empty to start."""


class RecheckEnginesPage(Response):
    """What one request did."""

    versions: int = 0
    """Versions that were looked at."""
    headers: int = 0
    """Headers that were read again, because an older release wrote the facts."""
    verdicts: int = 0
    """Verdicts that were renewed."""
    next_cursor: str = ""
    """Send it as `cursor` to continue. Empty on the last page."""


class ReferenceLogprobsView(Response):
    """How a version answered in its newest smoke test; an engine that answers alike has loaded it."""

    version: str
    """Version, as `namespace/name@number`."""
    digest: Digest
    """Digest of the version's manifest, which names the version."""
    base: str
    """Name of the base model, such as `llama-3.1-8b`."""
    base_fingerprint: str
    """Digest of the architecture of the base: tensor names, shapes, and what changes the computation."""
    report: Digest
    """Digest of the report that holds them."""
    reference_logprobs: ReferenceLogprobs
    """Prompts and log-probabilities. An engine that answers alike has loaded the adapter."""


class ModuleNorms(Response):
    """Norms of one module: of A, B and scale · BA, and of the base's own weight (`adapter base identify` reads it)."""

    a: float | None
    """Frobenius norm of A; null if it is too large for 32-bit floats."""
    b: float | None
    """Frobenius norm of B; null as for `a`."""
    update: float | None
    """Frobenius norm of scale · BA; null as for `a`."""
    rms: float | None
    """Root mean square of the elements of scale · BA; null as for `a`."""
    weight: float | None = None
    """Frobenius norm of the base's own weight; null if it was never read or cannot be unpacked."""
    share: float | None = None
    """`update` divided by `weight`; null without both."""


class NormsView(Response):
    """How large the updates of a version's modules are."""

    name: str
    """Adapter, as `namespace/name`."""
    number: int
    """Number of the version in its adapter, from 1."""
    digest: Digest
    """Digest of the version's manifest, which names the version."""
    measured_at: datetime | None
    """When the weights were read; null until then."""
    base: str = ""
    """Name of the base model, such as `llama-3.1-8b`."""
    base_measured: bool = False
    """Whether the norms of the base's own weights are known."""
    modules: dict[str, ModuleNorms]
    """Path of a module → its norms. Empty until the weights were read, for methods other than LoRA, and for NaN."""
