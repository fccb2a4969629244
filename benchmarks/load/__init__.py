"""The part "load": retry storms, brown-outs, and real traffic through a pipeline."""
