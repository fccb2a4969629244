"""Spans of the primitives: from this library's provider, from the application's, or none."""
