"""Streams in the cache: broadcast to several readers, recorded and replayed."""
