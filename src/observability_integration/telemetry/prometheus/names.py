"""How OpenTelemetry names, units, attributes and values are spelled in Prometheus.

The rules are those of the OpenTelemetry specification, "Prometheus and OpenMetrics Compatibility". Names and units come
out as the official Python exporter spells them, so that dashboards and rules work with either.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from opentelemetry.sdk.util.instrumentation import InstrumentationScope

# UCUM, as far as the OpenTelemetry Collector translates it (pkg/translator/prometheus, normalize_name.go). The
# specification would have "1" be "ratio"; the official exporters leave it out, and so do we.
_UNITS = {
    "1": "",
    "d": "days",
    "h": "hours",
    "min": "minutes",
    "s": "seconds",
    "ms": "milliseconds",
    "us": "microseconds",
    "ns": "nanoseconds",
    "By": "bytes",
    "KiBy": "kibibytes",
    "MiBy": "mebibytes",
    "GiBy": "gibibytes",
    "TiBy": "tibibytes",
    "KBy": "kilobytes",
    "MBy": "megabytes",
    "GBy": "gigabytes",
    "TBy": "terabytes",
    "m": "meters",
    "V": "volts",
    "A": "amperes",
    "J": "joules",
    "W": "watts",
    "g": "grams",
    "Cel": "celsius",
    "Hz": "hertz",
    "%": "percent",
}
_PER_UNITS = {"s": "second", "m": "minute", "h": "hour", "d": "day", "w": "week", "mo": "month", "y": "year"}

_ANNOTATION = re.compile(r"\{[^}]*\}")
_NOT_IN_NAMES = re.compile(r"^[0-9]|[^a-zA-Z0-9:]+")
_NOT_IN_LABELS = re.compile(r"^[0-9]|[^a-zA-Z0-9]+")
_SEVERAL_UNDERSCORES = re.compile(r"__+")


def _spell(word: str, forbidden: re.Pattern[str]) -> str:
    return _SEVERAL_UNDERSCORES.sub("_", forbidden.sub("_", word))


@lru_cache(maxsize=256)
def unit_word(unit: str) -> str:
    """The word for a UCUM unit that becomes the suffix of a name; empty for plain numbers and annotations."""
    bare = _ANNOTATION.sub("", unit)
    if bare in _UNITS:
        return _UNITS[bare]
    top, slash, bottom = bare.partition("/")
    bottom = _spell(bottom, _NOT_IN_NAMES).strip("_")
    if slash and bottom:
        top = _UNITS.get(top, _spell(top, _NOT_IN_NAMES).strip("_"))
        return f"{top}_per_{_PER_UNITS.get(bottom, bottom)}".lstrip("_")
    return _spell(bare, _NOT_IN_NAMES).strip("_")


@lru_cache(maxsize=1024)
def family_name(name: str, unit: str, *, counter: bool) -> str:
    """The name of a metric family, without ``_total``.

    Args:
        name: name of the instrument.
        unit: what `unit_word` returned.
        counter: whether a ``_total`` at the end stands for the kind, which then comes after the unit.
    """
    spelled = _spell(name, _NOT_IN_NAMES)
    if counter:
        spelled = spelled.removesuffix("_total")
    if unit and not spelled.endswith(f"_{unit}"):
        spelled = f"{spelled}_{unit}"
    return spelled or "_"


@lru_cache(maxsize=4096)
def _label_name(key: str) -> str:
    return _spell(key, _NOT_IN_LABELS) or "_"


def text(value: object) -> str:
    """A value as text that can be encoded: strings as they are, anything else as JSON, no lone surrogates."""
    # A str enum's own __str__ would give its name.
    words = str.__str__(value) if isinstance(value, str) else json.dumps(value, default=str)
    if words.isascii():
        return words
    return words.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def number_of(value: float) -> float:
    """A value as a float; an int that is larger than any float is infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def labels_of(attributes: Mapping[str, Any] | None, *, reserved: str = "") -> dict[str, str]:
    """The labels for attributes.

    Values whose keys become the same label are joined with ``;`` in the order of the original keys. A value that is
    empty makes no label, since to Prometheus that is the same; keeping it would make two series of one.

    Args:
        attributes: attributes of a point, a scope or a resource.
        reserved: a label that the family needs for itself; an attribute of that name gets the prefix ``exported_``,
            as Prometheus does with labels that clash with its own.
    """
    labels: dict[str, str] = {}
    for key, value in sorted((attributes or {}).items(), key=lambda item: str(item[0])):
        if value is None:
            continue
        label = _label_name(str(key))
        if label == reserved:
            label = f"exported_{label}"
        words = text(value)
        labels[label] = f"{labels[label]};{words}" if label in labels else words
    return {label: words for label, words in labels.items() if words}


def scope_labels_of(scope: InstrumentationScope) -> dict[str, str]:
    """The ``otel_scope_*`` labels of an instrumentation scope.

    Scope attributes called name, version or schema_url are left out, since they would pass for the scope's own.
    """
    own = {"name": scope.name, "version": scope.version, "schema_url": scope.schema_url}
    prefixed = {f"otel_scope_{key}": value for key, value in {**(scope.attributes or {}), **own}.items()}
    return labels_of(prefixed)
