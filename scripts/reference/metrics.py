"""docs/reference/metrics.md: the Prometheus metrics of servers and agents, from the collectors that export them."""

from __future__ import annotations

from registry.server.http import metrics as server
from registry.server.http import request_metrics as requests
from registry.serving.agent import metrics as agent
from scripts.reference.tables import table

INTRODUCTION = """\
# Metrics

How to scrape them: [operations](../operations.md).
"""


def markdown() -> str:
    """The whole page."""
    counters = (requests.REQUESTS, requests.FAILED_SIGN_INS, requests.STORE_ERRORS)
    rows = [(f"{name}_total", description) for name, description in counters]
    rows[0] = (rows[0][0], f"{rows[0][1]} Labels `{'`, `'.join(requests.REQUEST_LABELS)}`.")
    histogram, meaning = requests.SECONDS
    labels = "`, `".join(requests.SECONDS_LABELS)
    rows.append((histogram, f"{meaning} A histogram with the labels `{labels}`; a route is the template of its path."))
    rows += [(f"{requests.PREFIX}{name}", description) for name, description in (server.BUILD, server.QUEUE_AGE)]
    rows += [(f"{requests.PREFIX}{name}", description) for name, description, _ in server._totals()]
    rows += [(f"{requests.PREFIX}{name}", f"{description} Label `state`: {', '.join(states)}.")
             for name, description, states, _ in server._totals_by_state()]  # fmt: skip
    of_agents = [(f"{agent.PREFIX}{name}_total", description) for name, description in agent.COUNTERS.items()]
    of_agents += [(f"{agent.PREFIX}{name}", description) for name, description in agent.GAUGES.items()]
    heads = ("metric", "meaning")
    return "\n".join([
        INTRODUCTION,
        "## Server\n", table(heads, ((f"`{name}`", description) for name, description in rows)),
        "## Agent\n", "The label `engine` names the engine.\n",
        table(heads, ((f"`{name}`", description) for name, description in of_agents)),
    ])  # fmt: skip
