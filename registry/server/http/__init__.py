"""HTTP below the routes: middleware, dependencies, idempotency, threads, request and response bodies, metrics."""
