"""Equivalents of the primitives in plain asyncio, with the same guarantees and no telemetry."""
