"""Maintenance: garbage collection, consistency checks, recovery from the bucket, re-evaluation."""
