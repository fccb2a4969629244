"""The wire format of entries in the shared store: frame, compression, encryption."""
