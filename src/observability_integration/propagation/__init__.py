"""What crosses a process boundary with a call: the time it has left, its trace and its baggage.

`outgoing_headers` writes them for the next process, `continue_from` applies those of the previous process to a block,
and `fan_in` links a span to the traces of several processes. All three work without OpenTelemetry too: they propagate
the deadline and the baggage, and pass on a trace that other processes record.
"""

from .carrier import DEADLINE_HEADER
from .extract import Incoming, continue_from, incoming
from .inject import outgoing_headers
from .links import fan_in, links_from

__all__ = [
    "DEADLINE_HEADER",
    "Incoming",
    "continue_from",
    "fan_in",
    "incoming",
    "links_from",
    "outgoing_headers",
]
