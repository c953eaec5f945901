"""The database: engine and sessions, schema, locks, and the tables in `models`."""
