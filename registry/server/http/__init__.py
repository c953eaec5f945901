"""HTTP beneath the routes: middleware, idempotency, metrics, slow bodies."""
