"""Export adapters for engines: folders, S3, Kubernetes objects."""
