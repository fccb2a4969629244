"""Series that primitives add to, and the ways they leave the process."""
