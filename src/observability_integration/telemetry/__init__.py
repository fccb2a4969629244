"""Metrics and spans, and their export. The only package that imports OpenTelemetry."""
