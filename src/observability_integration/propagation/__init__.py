"""What crosses a process boundary with a call: the time it has left, its trace and its baggage.

`outgoing_headers` writes them for the next process, `continue_from` puts what came from the previous one in force, and
`fan_in` joins the traces of several. They do their work without OpenTelemetry too: time and baggage travel, and a trace
that others record is passed on.
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
