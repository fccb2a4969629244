"""Streams in the cache: broadcast to joined readers, recorded, replayed."""
