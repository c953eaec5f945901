"""The filters of a list of adapters: parameters of the REST API, options of `adapter list`, and what a search has.

Their SQL is in `registry/server/catalog/search/filters.py`.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from registry.api.models import Request
from registry.bases import BaseMatch
from registry.evaluation.verdicts import PROFILE_LIMIT, Outcome

Text = Annotated[str, Field(max_length=300)]
Texts = Annotated[list[Text], Field(max_length=32)]
Pairs = Annotated[list[Annotated[Text, Field(pattern="^([^=]|$)")]], Field(max_length=32)]
Rank = Annotated[int, Field(ge=0, le=2**31 - 1, strict=False)]  # a query is text
CloseMatch = Literal[BaseMatch.EXACT, BaseMatch.OTHER_DTYPE, BaseMatch.QUANTIZED, BaseMatch.DESCENDANT]


class AdapterFilters(Request):
    """Filters of a list of adapters; empty ones do not filter.

    Most are about the newest version. About the adapter are `alias`, `owner` and `prefix`; `tag` and `text` are about
    either.
    """

    # Other parameters of a list stand beside them. Built with the first request, pydantic warns of FastAPI's alias.
    model_config = ConfigDict(extra="ignore", defer_build=False)

    namespace: Text = Field("", description="Only adapters of this namespace.", examples=["acme"])
    base: Text = Field("", description="Only adapters of this base model.", examples=["llama-3.1-8b"])
    base_match: CloseMatch | None = Field(
        None, description="With a base: also adapters of bases that match it this closely.", examples=["exact"]
    )
    method: Text = Field("", description="Only adapters trained with this PEFT method.", examples=["lora"])
    text: Text = Field(
        "",
        description="Words, at most 12: only adapters that have, for each of them, a word that begins with it in their "
        "name, description, tags, annotations, trigger words or card.",
        examples=["support"],
    )
    prefix: Text = Field("", description="Only adapters whose namespace and name begin so.", examples=["acme/su"])
    alias: Text = Field("", description="Only adapters with this alias.", examples=["prod"])
    owner: Text = Field(
        "", description="Only adapters that this subject or token:NAME pushed first.", examples=["alice@example.org"]
    )
    format: Text = Field("", description="Only adapters whose tensors are named by this format.", examples=["peft"])
    target: Texts = Field(
        [], description="Only adapters that train this module. Repeat it for several.", examples=[["q_proj"]]
    )
    tag: Pairs = Field(
        [],
        description="Only adapters with this KEY or KEY=VALUE among the tags, their own or of the newest version, with "
        "an alias of the version that it points at. Repeat it for several.",
        examples=[["team=nlp"]],
    )
    annotation: Pairs = Field(
        [],
        description="Only adapters whose manifest has this KEY or KEY=VALUE among its annotations. Repeat it for "
        "several.",
        examples=[["license=apache-2.0"]],
    )
    rank_min: Rank | None = Field(None, description="Only adapters of at least this rank.", examples=[8])
    rank_max: Rank | None = Field(None, description="Only adapters of at most this rank.", examples=[64])
    engine: str = Field(
        "",
        max_length=PROFILE_LIMIT,
        description="Only adapters that this engine serves; the server has verdicts for those in REGISTRY_ENGINES.",
        examples=["vllm==0.33.0"],
    )
    outcome: Outcome | None = Field(
        None, description="With an engine: only adapters with this outcome of it.", examples=["pass"]
    )
