"""The OpenAPI document of the REST API, and a page that shows it without scripts."""
