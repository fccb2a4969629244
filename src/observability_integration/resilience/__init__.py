"""Engines under the primitives that bound a call."""
