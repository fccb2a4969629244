"""The Prometheus scrape endpoint: metric reader and HTTP server."""
