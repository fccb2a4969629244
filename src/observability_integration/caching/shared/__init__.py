"""The shared store as the engine sees it: guarded, recovered, leased, and heard from."""
