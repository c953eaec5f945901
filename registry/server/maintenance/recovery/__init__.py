"""Recovery: rebuild the database from the bucket, and write what the bucket lacks."""
