"""The table of operations of the REST API: a module a subject, a row an operation (`operation.Operation`)."""
