"""Recognises a mistake of the calling program: an exception that was raised before the provider was asked."""

from __future__ import annotations

from .shapes import chain_of, read

#: The classes of such mistakes: a misspelt parameter, a missing field, a prompt that cannot be encoded. A subclass
#: belongs to some domain, and may say anything: `json.JSONDecodeError`, ``class ProviderDown(ValueError)``.
CALLER_ERRORS: frozenset[type[BaseException]] = frozenset(
    {
        AttributeError,
        ImportError,
        KeyError,
        ModuleNotFoundError,
        NameError,
        NotImplementedError,
        TypeError,
        UnboundLocalError,
        UnicodeEncodeError,
        UnicodeTranslateError,
        ValueError,
    }
)
#: Their names, for an error of which no more is known.
CALLER_NAMES: frozenset[str] = frozenset(each.__name__ for each in CALLER_ERRORS)

# What an exception has once there was a response.
_OF_A_RESPONSE = ("response", "status_code", "status", "headers", "body")
_BEGUN = "_observability_integration_begun"


def is_callers(error: object) -> bool:
    """Whether an exception is a mistake of the calling program, and carries nothing of a response."""
    return type(error) in CALLER_ERRORS and all(read(error, name) is None for name in _OF_A_RESPONSE)


def mark_begun(error: Exception) -> None:
    """Notes on such an exception that the answer had begun when it was raised: then the provider is at fault.

    Noted on the exception, because primitives further out classify it too, and did not see the chunks.
    """
    for each in chain_of(error):
        if type(each) in CALLER_ERRORS:
            each.__dict__[_BEGUN] = True


def has_begun(error: object) -> bool:
    """Whether `mark_begun` has noted on an exception that the answer had begun."""
    return read(error, _BEGUN) is True
