"""Classifies an exception: what went wrong, and whether to retry, fail over or count it against the target.

`classify` knows the exceptions of openai, anthropic, httpx, aiohttp, this library and Python by their shape: the names
of their classes (`by_class`) and what they say of the response (`by_response`). No SDK is imported. A subclass or a
vendored copy of such an exception is known as well. The user's own function is asked first.

==================  ==========================================================  ==========  =========  ===========
kind                meaning                                                     same again  next       counts
==================  ==========================================================  ==========  =========  ===========
``cancelled``       the work was stopped                                        no          no         no
``content_filter``  the provider refused the content                            no          no         no
``auth``            401, 403, 407: the credentials are wrong                    no          no         no
``invalid_request`` 3xx, another 4xx, 501, 505, or a wrong argument of ours     no          no         no
``caller``          a mistake of the calling program, before any response       no          no         no
``context_length``  the request is longer than the model's window               no          if larger  no
``refused``         a limit or deadline of ours: the call was never made        no          yes        no
``unknown``         none of the others                                          no          yes        yes
``malformed``       an answer that cannot be read                               no          yes        yes
``stream_cut``      an answer that ended before it was complete                 no          yes        yes
``timeout``         no answer in time; 504, 522, 524                            no          yes        yes
``rate_limited``    429: more than the provider allows                          yes         yes        no
``overloaded``      498, 503, 529: the provider has no room                     yes         yes        yes
``connection``      no connection, or a broken one; 499, 521, 523, 525, 526     yes         yes        yes
``transient``       408, 409, 425, any other 5xx                                yes         yes        yes
==================  ==========================================================  ==========  =========  ===========

*same again*: the same target may be retried. *next*: a fallback may ask another target. *counts*: a circuit breaker
counts a failure of the target.

Some kinds do not count against a target. A wrong key (``auth``) would open the breaker; an open breaker is routed
around, which hides what a person has to repair. A rate limit comes from a healthy target that says when to come back;
an open breaker would waste what the target still allows.

A mistake of the calling program (``caller``), such as a misspelt parameter, fails at any target and says nothing about
one. It is an exception of exactly one of the classes in `caller.CALLER_ERRORS`: TypeError, ValueError,
KeyError, AttributeError, NameError, ImportError, NotImplementedError, UnicodeEncodeError and their like. A subclass is
an error of a library or an application. It is no mistake of the caller either if the error carries a response, if a
known fault has led to it (``raise ValueError from connect_error``), or if it was raised after the first chunk of an
answer, which is ``malformed``. The code that makes a call may also read the reply, and meet such an error in an odd
one: then a `Classifier` has to say ``malformed``.

A used-up quota (OpenAI's 429 ``insufficient_quota``, a 402, a credit balance that is too low) is ``rate_limited`` with
`Fault.should_retry` False: a retry is useless and the target counts as failing, but another target may serve. The
header ``x-should-retry`` sets `Fault.should_retry` too.

A saga that could not be undone (`CompensationError`) is an ``invalid_request``, whatever ended it: a retry would run
all of its steps twice.

Of an exception group, the gravest member decides: the one whose kind comes first in the table. Where the exception
itself says nothing, or is a mistake of the calling program, its ``__cause__`` or ``__context__`` decides first.
"""

from .classification import Classifier, classify
from .kinds import FAULT_KINDS, Fault, FaultKind

__all__ = [
    "FAULT_KINDS",
    "Classifier",
    "Fault",
    "FaultKind",
    "classify",
]
