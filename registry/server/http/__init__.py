"""The application: routes together, middleware, idempotency, metrics."""
