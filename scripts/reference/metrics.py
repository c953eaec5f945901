"""docs/reference/metrics.md: the Prometheus metrics of servers and agents, from the collectors that export them."""

from __future__ import annotations

from registry.server.http import metrics as server
from registry.serving.agent import metrics as agent
from scripts.reference.tables import table

INTRODUCTION = """\
# Metrics

How to scrape them: [operations](../operations.md).
"""


def markdown() -> str:
    """The whole page."""
    rows = [(f"{server.PREFIX}{name}_total", description) for name, description, _ in server.COUNTERS]
    rows[0] = (rows[0][0], f"{rows[0][1]} Labels `{'`, `'.join(server.REQUEST_LABELS)}`.")
    histogram, meaning = server.SECONDS
    labels = "`, `".join(server.SECONDS_LABELS)
    rows.append(
        (
            f"{server.PREFIX}{histogram}",
            f"{meaning} A histogram with the labels `{labels}`; a route is the template of its path.",
        )
    )
    rows += [(f"{server.PREFIX}{name}", description) for name, description in (server.BUILD, server.QUEUE_AGE)]
    rows += [(f"{server.PREFIX}{name}", description) for name, description, _ in server._totals()]
    rows += [(f"{server.PREFIX}{name}", f"{description} Label `state`: {', '.join(states)}.")
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
