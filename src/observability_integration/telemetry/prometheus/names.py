"""Translates OpenTelemetry names, units, attributes and values to Prometheus.

Follows the OpenTelemetry specification, "Prometheus and OpenMetrics Compatibility". Names and units equal those of the
official Python exporter, so that dashboards and rules work with either.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from opentelemetry.sdk.util.instrumentation import InstrumentationScope

# The UCUM units that the OpenTelemetry Collector translates (pkg/translator/prometheus, normalize_name.go). By the
# specification "1" is "ratio"; the official exporters omit it, as this one does.
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
    """The suffix of a name for a UCUM unit; empty for plain numbers and annotations."""
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
        counter: whether a final ``_total`` is the suffix of the kind, which comes after the unit, and is removed.
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
    """A value as encodable text: a string unchanged, any other value as JSON; without lone surrogates."""
    # The __str__ of a str enum returns its name.
    words = str.__str__(value) if isinstance(value, str) else json.dumps(value, default=str)
    if words.isascii():
        return words
    return words.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def number_of(value: float) -> float:
    """A value as a float; infinite if the int is too large for one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def labels_of(attributes: Mapping[str, Any] | None, *, reserved: str = "") -> dict[str, str]:
    """The labels for attributes.

    If several keys become the same label, their values are joined with ``;`` in the order of the keys. An empty value
    makes no label: Prometheus treats the two alike, so that keeping it could export one series twice.

    Args:
        attributes: attributes of a point, a scope or a resource.
        reserved: a label of the family itself; an attribute of that name gets the prefix ``exported_``, as in
            Prometheus for labels that conflict with its own.
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

    Omits scope attributes called name, version or schema_url: they would conflict with those of the scope.
    """
    own = {"name": scope.name, "version": scope.version, "schema_url": scope.schema_url}
    prefixed = {f"otel_scope_{key}": value for key, value in {**(scope.attributes or {}), **own}.items()}
    return labels_of(prefixed)
