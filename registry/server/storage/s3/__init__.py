"""Blobs in an S3 store: `bucket` talks to it, `probe` asks what it can do, `store` keeps blobs, `parts` big ones."""
