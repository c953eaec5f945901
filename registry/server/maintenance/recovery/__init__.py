"""Recovery: `reindex` restores rows from the records in the bucket, `missing_records` restores records from rows."""
