"""Engines under the primitives that bound, repeat and limit a call."""
