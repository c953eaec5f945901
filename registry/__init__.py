"""The adapter registry: the registry that knows what a LoRA adapter is.

Five folders need more than the domain; every other file and folder here, except `cli`, is the domain: pure functions
and data types without a database, network, clock or torch.

    registry/client/     talks to the server over HTTP      base install
    registry/sdk/        the Python interface               base install
    registry/serving/    runs beside an inference engine    base install
    registry/server/     the service                        extra [server]
    registry/worker/     loads adapters on a base model     extra [worker]

ARCHITECTURE.md describes the modules; docs/glossary.md defines the words used here.
"""

__version__ = "0.1.0"
