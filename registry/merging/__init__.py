"""Recipes for merges and conversions: which adapters, which method, and what becomes of names and tensors."""
