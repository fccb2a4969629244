"""An HTTP server on the loopback interface, and the documents of the chat completions API.

Shared by `FaultyProvider` and the provider of the demo. h11 parses the requests.
"""
