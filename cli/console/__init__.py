"""The terminal: arguments, which registry, tables and progress, groups of adapters, logs."""
