"""Blobs in an S3 store: `bucket` talks to it, `capabilities` probes it, `store` implements the interface."""
