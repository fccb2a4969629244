"""What is measured, and how it leaves the process. The only package that knows OpenTelemetry."""
