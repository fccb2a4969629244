"""Checks of arguments: one rule for each kind of value, and one wording for all.

A refusal reads ``<knob> must be <rule>, got <value>``. Where its type is wrong, brackets say what to give::

    timeout_seconds must be > 0, got '30' (a str; give seconds as a number)

Numbers are accepted as `int` and `float`, and as their subclasses, such as ``numpy.float64``. Refused are `bool`, text,
other numeric types (``Decimal``, ``numpy.int64``), NaN, infinity, and an `int` too large for a float. No check raises
anything but a `ConfigurationError`, whatever the value is.

No message repeats long text or an object that may hold a secret: see `shown`.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import cast

from observability_integration.errors import ConfigurationError

_SHOWN_CHARACTERS = 40
_SHOWN_TEXT_CHARACTERS = 20  # shorter than the API keys of providers: those of OpenAI and Anthropic have 50 and more
_MAX_PORT = 65_535
_UNITS = {"seconds": "seconds", "_ms": "milliseconds", "_usd": "USD"}


def check_positive(knob: str, value: object, *, unit: str | None = None, optional: bool = False) -> None:
    """Refuses a value that is not a finite number > 0.

    Args:
        knob: the argument's name; its suffix (``_seconds``, ``_ms``, ``_usd``) names the unit.
        value: what the caller gave.
        unit: the unit, where the name has no such suffix.
        optional: whether None passes.

    Raises:
        ConfigurationError: the value is refused.
    """
    number = _finite(value)
    if (number is None or not number > 0) and not (optional and value is None):
        raise _not_a_number(knob, value, "> 0", unit, optional)


def check_at_least(
    knob: str,
    value: object,
    minimum: float,
    *,
    maximum: float = inf,
    unit: str | None = None,
    optional: bool = False,
) -> None:
    """Refuses a value that is not a finite number from `minimum` to `maximum`.

    Args:
        knob: see `check_positive`, as for the other arguments.
        value: what the caller gave.
        minimum: the least number allowed.
        maximum: the greatest number allowed; infinity for no bound.
        unit: the unit.
        optional: whether None passes.

    Raises:
        ConfigurationError: the value is refused.
    """
    number = _finite(value)
    if (number is None or not minimum <= number <= maximum) and not (optional and value is None):
        rule = f">= {minimum}" if maximum == inf else f">= {minimum} and <= {maximum}"
        raise _not_a_number(knob, value, rule, unit, optional)


def check_share(
    knob: str,
    value: object,
    *,
    minimum: float = 0,
    above_zero: bool = False,
    below_one: bool = False,
    optional: bool = False,
) -> None:
    """Refuses a value that is not a share: a number from `minimum` to 1.

    Args:
        knob: the argument's name.
        value: what the caller gave.
        minimum: the least share allowed.
        above_zero: whether 0 is refused.
        below_one: whether 1 is refused.
        optional: whether None passes.

    Raises:
        ConfigurationError: the value is refused.
    """
    number = _finite(value)
    if number is not None:
        high_enough = number > 0 if above_zero else number >= minimum
        if high_enough and (number < 1 if below_one else number <= 1):
            return
    elif optional and value is None:
        return
    rule = f"{'> 0' if above_zero else f'>= {minimum}'} and {'< 1' if below_one else '<= 1'}"
    raise _not_a_number(knob, value, rule, None, optional)


def check_finite(knob: str, value: object) -> None:
    """Refuses a value that is not a finite number.

    Raises:
        ConfigurationError: the value is refused.
    """
    if _finite(value) is None:
        raise _not_a_number(knob, value, "a finite number", None, False)


def check_cost(knob: str, value: object, *, optional: bool = False) -> None:
    """Refuses a value that is not a finite number of USD >= 0; None passes if `optional`.

    Raises:
        ConfigurationError: the value is refused.
    """
    check_at_least(knob, value, 0, unit="USD", optional=optional)


def check_count(
    knob: str, value: object, minimum: int = 1, *, maximum: int | None = None, optional: bool = False
) -> None:
    """Refuses a value that is not an integer from `minimum` to `maximum`; a float is refused, even a whole one.

    Args:
        knob: the argument's name.
        value: what the caller gave.
        minimum: the least number allowed.
        maximum: the greatest number allowed; None for no bound.
        optional: whether None passes.

    Raises:
        ConfigurationError: the value is refused.
    """
    number = _integer(value)
    if number is not None and _finite(number) is not None:
        if minimum <= number and (maximum is None or number <= maximum):
            return
        expected = ""
    elif number is not None:
        expected = "give an int that fits a float"
    elif optional and value is None:
        return
    else:
        expected = _behind_type(value, f"give an int{', or None' if optional else ''}")
    bounds = f">= {minimum}" if maximum is None else f"from {minimum} to {maximum}"
    raise _refusal(knob, value, f"an integer {bounds}", expected)


def check_port(knob: str, value: object) -> None:
    """Refuses a value that is not a TCP port, or 0 for any free one.

    Raises:
        ConfigurationError: the value is refused.
    """
    check_count(knob, value, 0, maximum=_MAX_PORT)


def check_order(smaller_knob: str, smaller: object, greater_knob: str, greater: object) -> None:
    """Refuses a first number that is greater than the second; where one is None, there is nothing to compare.

    Raises:
        ConfigurationError: the numbers are in the wrong order.
    """
    low, high = _finite(smaller), _finite(greater)
    if low is not None and high is not None and low > high:
        raise ConfigurationError(
            f"{smaller_knob} must not be greater than {greater_knob}, got {shown(smaller)} and {shown(greater)}"
        )


def check_choice(knob: str, value: object, allowed: Iterable[str]) -> None:
    """Refuses a value that is not one of the texts in `allowed`.

    Raises:
        ConfigurationError: the value is refused.
    """
    choices = list(allowed)
    text = _text(value)
    if text is None or text not in choices:
        *first, last = map(repr, choices)
        raise _refusal(knob, value, f"{', '.join(first)} or {last}" if first else last)


def check_callable(knob: str, value: object, *, optional: bool = False) -> None:
    """Refuses a value that cannot be called; None passes if `optional`.

    Raises:
        ConfigurationError: the value is refused.
    """
    if not callable(value) and not (optional and value is None):
        raise _refusal(knob, value, "a function")


def shown(value: object) -> str:
    """A value as messages show it: at most about 40 characters, and nothing that may hold a secret.

    Numbers, None and text of up to 20 characters are shown as they are; of longer text only its length is shown, of any
    other object only its type.
    """
    if value is None:
        return "None"
    text = _text(value)
    if text is not None and len(text) > _SHOWN_TEXT_CHARACTERS:
        return f"{_kind(value)} of {len(text)} characters"
    if text is None and not _is_numeric(value):
        return _kind(value)
    try:
        written = repr(value if text is None else text)
    except Exception:  # noqa: BLE001 - a type's own repr may raise, and an int of more than 4,300 digits has none
        return _kind(value)
    return written if len(written) <= _SHOWN_CHARACTERS else f"{written[:_SHOWN_CHARACTERS]}..."


def _refusal(knob: str, value: object, rule: str, expected: str = "") -> ConfigurationError:
    hint = f" ({expected})" if expected else ""
    return ConfigurationError(f"{knob} must be {rule}, got {shown(value)}{hint}")


def _not_a_number(knob: str, value: object, rule: str, unit: str | None, optional: bool) -> ConfigurationError:
    if _finite(value) is not None:
        return _refusal(knob, value, rule)
    unit = unit or next((name for suffix, name in _UNITS.items() if knob.endswith(suffix)), None)
    plain = _is_plain(value)
    if plain:
        number = "a finite number"
    else:
        number = "an int or a float" if _is_numeric(value) and type(value) is not bool else "a number"
    expected = f"give {unit} as {number}" if unit else f"give {number}"
    if optional:
        expected += ", or None"
    return _refusal(knob, value, rule, expected if plain else _behind_type(value, expected))


def _behind_type(value: object, expected: str) -> str:
    kind = _kind(value)
    return expected if value is None or shown(value).startswith(kind) else f"{kind}; {expected}"


def _kind(value: object) -> str:
    try:
        name = type(value).__name__[:_SHOWN_CHARACTERS]
    except Exception:  # noqa: BLE001 - a metaclass may raise at anything
        name = "object"
    return f"{'an' if name[:1] in tuple('aeiouAEIOU') else 'a'} {name}"


# The type decides, not `isinstance`: a value may pretend to another class, and raise while it does so. The methods are
# those of the builtin types, because a subclass may override its own with anything.


def _is_plain(value: object) -> bool:
    """Whether it is an `int` or a `float`, or of a subclass other than `bool`."""
    return issubclass(type(value), int | float) and type(value) is not bool


def _is_numeric(value: object) -> bool:
    try:
        return hasattr(type(value), "__float__")
    except Exception:  # noqa: BLE001 - a metaclass may raise at anything
        return False


def _integer(value: object) -> int | None:
    return int.__int__(cast("int", value)) if issubclass(type(value), int) and type(value) is not bool else None


def _finite(value: object) -> float | None:
    """The value as a plain number, or None if it is no number, not finite, or too large for a float."""
    if issubclass(type(value), float):
        number: float = float.__float__(cast("float", value))
        return number if -inf < number < inf else None
    whole = _integer(value)
    if whole is None:
        return None
    try:
        float(whole)
    except OverflowError:
        return None
    return whole


def _text(value: object) -> str | None:
    return str.__str__(cast("str", value)) if issubclass(type(value), str) else None
