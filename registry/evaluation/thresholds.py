"""`Thresholds`: the limits at which a measurement becomes a finding; a base may override some of them."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, ValidationError

from registry.errors import Invalid
from registry.model import FrozenModel
from registry.validation import first_problem


class Thresholds(FrozenModel):
    """The limits of one smoke test, and of the check `weights`.

    `effect_logit_delta`: the largest |change| of a logit below which an adapter does nothing; fp32 noise of another
    summation order stays under 1e-5 of the largest logit.
    `drift_warn_kl_nats`, `drift_fail_kl_nats`: mean KL(base ‖ adapter) per token on neutral text. Healthy but
    overfitted adapters were measured at 0.5 to 1.9, a B ten times too large at 6.4.
    `drift_fail_perplexity_ratio`: perplexity of neutral text with the adapter over that without; 2 to 7 were healthy.
    `golden_margin_nats`: how much likelier, in nats a token, an expected answer must be than on the bare base.
    `swap_logit_delta`: how far the logits of one row may differ between alone and in a mixed batch, as a part of the
    largest logit; 0 asks for equal bits.
    `image_delta`: the mean |change| of a pixel (0 to 1) below which an image adapter does nothing.
    `update_share_warn`: |scale · BA| over |W| of one module. Trained adapters have 0.001 to 0.3; from 1 on, the update
    is larger than the weight that it changes.
    """

    effect_logit_delta: float = Field(default=1e-6, ge=0, le=10)
    drift_warn_kl_nats: float = Field(default=3.0, gt=0, le=100)
    drift_fail_kl_nats: float = Field(default=5.0, gt=0, le=100)
    drift_fail_perplexity_ratio: float = Field(default=100.0, gt=1, le=1e9)
    golden_margin_nats: float = Field(default=0.1, ge=-10, le=100)
    swap_logit_delta: float = Field(default=1e-4, ge=0, le=1)
    image_delta: float = Field(default=1e-6, ge=0, le=1)
    update_share_warn: float = Field(default=1.0, gt=0, le=1e6)

    @classmethod
    def with_overrides(cls, overrides: Mapping[str, Any]) -> Self:
        """The defaults with these numbers in their place. `Invalid` (REQUEST_INVALID) names the field and its limit."""
        try:
            return cls.model_validate(dict(overrides))
        except ValidationError as e:
            location, message = first_problem(e, "thresholds")
            advice = "" if location in cls.model_fields else f"; known are {', '.join(cls.model_fields)}"
            raise Invalid("REQUEST_INVALID", f"thresholds: {location}: {message}{advice}") from None


DEFAULTS = Thresholds()
