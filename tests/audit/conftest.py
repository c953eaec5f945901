"""The audit log's tests run on SQLite; what depends on the database asks for both itself."""
