"""Spans of the primitives: ours, the application's, or none."""
