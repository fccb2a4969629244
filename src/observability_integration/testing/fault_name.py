"""The base of all faults: converts a fault to the model name that requests it, and back."""

from __future__ import annotations

import re
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Self

from observability_integration.checks import check_at_least, check_count

if TYPE_CHECKING:
    from .pending_request import PendingRequest

PREFIX = "faulty-"
_MAX_NUMBER = 1_000_000


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of a provider, with its parameters. Its subclasses are in `faults`.

    Attributes:
        template: the model name of the fault, with parameters in braces and the optional part in brackets.
    """

    template: ClassVar[str]

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None or field.default is not None:
                _check(field.name, value)

    @property
    def model(self) -> str:
        """The model name that requests this fault."""
        required, _, optional = self.template.removesuffix("]").partition("[")
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        template = required if _is_default(self, optional) else required + optional
        return template.format_map({name: format_number(value) for name, value in values.items()})

    @classmethod
    def read(cls, name: str) -> Self | None:
        """Parses a model name; returns None if it does not request a fault of this class.

        Raises:
            ConfigurationError: a number in the name is out of range.
        """
        match = _pattern(cls.template).fullmatch(name)
        if match is None:
            return None
        values: dict[str, Any] = {
            key: float(text) if _is_seconds(key) else int(text)
            for key, text in match.groupdict().items()
            if text is not None
        }
        return cls(**values)

    async def play(self, request: PendingRequest) -> None:
        """Replies to one request with this fault."""
        raise NotImplementedError  # a fault without `play` would never reply: each class has its own


def _is_seconds(name: str) -> bool:
    return name.endswith("seconds")


def _check(name: str, value: object) -> None:
    if _is_seconds(name):
        check_at_least(name, value, 0, maximum=_MAX_NUMBER)
    else:
        check_count(name, value, 0 if name == "token" else 1, maximum=_MAX_NUMBER)


def format_number(value: float | None) -> str:
    """Formats a number for names and headers, with up to six decimals and no trailing zeros."""
    return f"{value or 0:.6f}".rstrip("0").rstrip(".")


def _is_default(fault: Fault, optional: str) -> bool:
    # The optional part names one parameter, which has a default.
    defaults = {field.name: field.default for field in fields(fault) if field.default is not MISSING}
    return all(getattr(fault, name) == defaults[name] for name in re.findall(r"\{(\w+)\}", optional))


@cache
def _pattern(template: str) -> re.Pattern[str]:
    def group(match: re.Match[str]) -> str:
        number = r"[0-9]{1,7}(?:\.[0-9]{1,6})?" if _is_seconds(match[1]) else "[0-9]{1,7}"
        return f"(?P<{match[1]}>{number})"

    required, _, optional = template.removesuffix("]").partition("[")
    pattern = f"{required}(?:{optional})?" if optional else required
    return re.compile(re.sub(r"\{(\w+)\}", group, pattern))
