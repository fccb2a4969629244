"""The scrape endpoint: a reader that is right on the wire, and the HTTP server in front of it."""
