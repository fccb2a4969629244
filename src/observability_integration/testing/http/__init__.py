"""A small HTTP server on the loopback interface, and the documents of the chat completions API that it is asked for.

What `FaultyProvider` and the demo's provider have in common: HTTP/1.1 parsed by h11, and a request and its reply.
"""
