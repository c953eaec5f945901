"""Readers that refuse what two programs could read differently: JSON, its fields, YAML, patterns."""
