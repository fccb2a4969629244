"""The engine under CachePrimitive: keys, codec, stores, single flight and the guard around the shared store."""
