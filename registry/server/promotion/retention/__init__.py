"""Retention: which versions a rule or an expiry deletes, and what keeps a version although a rule would delete it."""
