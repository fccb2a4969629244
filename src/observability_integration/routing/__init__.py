"""How a router decides."""
