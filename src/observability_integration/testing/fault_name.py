"""How a fault and the model name that asks for it are made from each other."""

from __future__ import annotations

import re
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Self

from observability_integration.checks import check_at_least, check_count

if TYPE_CHECKING:
    from .faulty_turn import Turn

PREFIX = "faulty-"
_MOST = 1_000_000


@dataclass(frozen=True, slots=True)
class Fault:
    """A way to misbehave, with its parameters. The classes of `faults` are all there are.

    Attributes:
        template: the model name that asks for it, with its parameters in braces and what may be left out in brackets.
    """

    template: ClassVar[str]

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None or field.default is not None:
                _check(field.name, value)

    @property
    def model(self) -> str:
        """The model name that asks for this fault."""
        always, _, optional = self.template.removesuffix("]").partition("[")
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        template = always if _is_default(self, optional) else always + optional
        return template.format_map({name: written(value) for name, value in values.items()})

    @classmethod
    def read(cls, name: str) -> Self | None:
        """The fault of this kind that a model name asks for; None where it asks for another one.

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

    async def play(self, turn: Turn) -> None:
        """Does it to one request."""
        raise NotImplementedError  # a fault without behaviour would answer nothing: each class has its own


def _is_seconds(name: str) -> bool:
    return name.endswith("seconds")


def _check(name: str, value: object) -> None:
    if _is_seconds(name):
        check_at_least(name, value, 0, maximum=_MOST)
    else:
        check_count(name, value, 0 if name == "token" else 1, maximum=_MOST)


def written(value: float | None) -> str:
    """A number as it stands in names and headers, with no more digits than it needs and six decimals at the most."""
    return f"{value or 0:.6f}".rstrip("0").rstrip(".")


def _is_default(fault: Fault, optional: str) -> bool:
    # An optional part names one parameter, which has a default.
    defaults = {field.name: field.default for field in fields(fault) if field.default is not MISSING}
    return all(getattr(fault, name) == defaults[name] for name in re.findall(r"\{(\w+)\}", optional))


@cache
def _pattern(template: str) -> re.Pattern[str]:
    def group(match: re.Match[str]) -> str:
        number = r"[0-9]{1,7}(?:\.[0-9]{1,6})?" if _is_seconds(match[1]) else "[0-9]{1,7}"
        return f"(?P<{match[1]}>{number})"

    always, _, optional = template.removesuffix("]").partition("[")
    whole = f"{always}(?:{optional})?" if optional else always
    return re.compile(re.sub(r"\{(\w+)\}", group, whole))
