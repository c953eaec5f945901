"""Pushes the checkpoints of a training as versions: a callback for `transformers.Trainer` and what builds on it."""

from registry.training.callback import RegistryCallback

__all__ = ["RegistryCallback"]
