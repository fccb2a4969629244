"""What a call costs here, side by side with code written by hand and with peers: `python -m benchmarks`."""
