"""Instruments that primitives record into, and their snapshots for exporters."""
