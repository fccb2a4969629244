"""How an entry is written to the shared store: frame, compression, encryption."""
