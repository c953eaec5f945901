"""The adapter registry: the registry that knows what a LoRA adapter is.

The files directly in this folder are the domain: words and rules, bytes in and values out. They
know no database, no network, no clock and no torch. Each folder below is something one installs:

    registry/*.py        the domain             base install
    registry/client/     what talks HTTP        base install
    registry/serving/    what runs beside an engine   base install
    registry/server/     the service            extra [server]
    registry/worker/     loads adapters on a base   extra [worker]

ARCHITECTURE.md walks through the four journeys; docs/glossary.md defines every word used here.
"""

__version__ = "0.1.0"
