"""Equivalents of the primitives with telemetry written by hand on the OpenTelemetry API."""
