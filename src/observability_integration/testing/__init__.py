"""Tools for the tests of code that uses this library."""

from .clock import FakeClockLoop

__all__ = ["FakeClockLoop"]
