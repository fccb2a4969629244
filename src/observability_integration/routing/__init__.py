"""Estimates that a router decides by."""
