"""Merges by arithmetic on files: combine, resize and extract adapters, or fuse one into its base. No model is built."""
