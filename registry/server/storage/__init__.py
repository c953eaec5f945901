"""Where bytes live: the blob store protocol, a local folder, S3, and who refers to a blob."""
