"""The key of a whole request: all its fields count, except a closed list of those that cannot change the answer.

A list of the fields that *do* count would be out of date with the next field that a provider adds: a hit could then be
the answer to another question. So a field that is not listed here counts.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from datetime import date, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from types import MappingProxyType
from typing import Any
from uuid import UUID

from observability_integration.errors import ConfigurationError

# Top-level fields of a model's request that cannot change the answer, and why. OpenAI repeats some of them in its
# answers; a hit repeats those of the request that was sent.
IGNORED_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        # platform.openai.com/docs/api-reference/chat/create and /responses/create
        "metadata": "OpenAI: attached to the stored object, for its dashboard; Anthropic: the user's id, against abuse",
        "prompt_cache_key": "OpenAI: which of the provider's prompt caches is tried; changes price and time only",
        "prompt_cache_retention": "OpenAI: how long the provider keeps the prompt; changes price and time only",
        "safety_identifier": "OpenAI: the end user, to detect abuse",
        "service_tier": "OpenAI, Anthropic: the capacity that serves the request; changes price and time only",
        "user": "OpenAI: what safety_identifier and prompt_cache_key replace",
        # docs.anthropic.com/en/api/messages
        "cache_control": "Anthropic: up to where the provider caches the prompt; changes price and time only",
        # an option of `create` in both SDKs, never sent
        "timeout": "OpenAI, Anthropic: how long the SDK waits",
    }
)
# The same for a request with messages. In a request with input, this field may matter.
IGNORED_CHAT_FIELDS: Mapping[str, str] = MappingProxyType(
    {"store": "OpenAI: kept for evals and distillation; a response, however, is kept so that the next can refer to it"}
)
# Names in extra_headers that cannot change the answer; others can, as anthropic-beta does.
IGNORED_HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "baggage": "W3C Baggage: what belongs to the trace",
        "idempotency-key": "OpenAI, Anthropic: names the attempts of one call",
        "traceparent": "W3C Trace Context: the span that makes the call",
        "tracestate": "W3C Trace Context: the same, for vendors",
        "x-client-request-id": "OpenAI: names the call in the provider's logs",
        "x-request-id": "by custom: names the call in the logs of all services",
    }
)

_SDKS = frozenset({"anthropic", "openai"})
_NOT_GIVEN = frozenset({"NotGiven", "Omit"})  # how the SDKs say that a field is not sent
_SCALARS = (str, bytes, int, float, type(None))
_COMPARED_AS_TEXT = (date, timedelta, Decimal, UUID)  # date includes datetime
_LONGEST_NAME = 64  # characters of a field's name in an error


def request_key(request: Any, *, exclude: Collection[str] = ()) -> Any:
    """Returns the parts of a request that can change the answer, for `KeySpace.digest` to hash.

    Takes requests as mappings or objects: OpenAI chat completions and responses, Anthropic messages, or any others. The
    order of fields does not matter, nor whether a sequence is a list or a tuple. An absent field differs from None, and
    0 from 0.0.

    Pydantic models, dataclasses, msgspec structs and named tuples count with their class and all their fields. A model
    of an SDK counts as a mapping of the fields that were set, which the SDK sends. A pydantic class (such as
    ``response_format``) counts with its schema.

    In a request with ``model`` and either ``messages`` or ``input``, the fields in `IGNORED_FIELDS`,
    `IGNORED_CHAT_FIELDS` and `IGNORED_HEADERS` do not count. In any other request all fields count: a ``user`` may be
    part of the question there.

    Args:
        request: the request.
        exclude: names of further top-level fields that do not change the answer.

    Raises:
        ConfigurationError: `exclude` is one text.
        TypeError: a value in the request has no canonical form; the message names its field, and never the value.
    """
    if isinstance(exclude, str):
        raise ConfigurationError("exclude must be a collection of names, not one text")
    try:
        fields, tag = _fields_of(request)
        if fields is None:
            return _canonical_form(request, "request")
        counting = {name: value for name, value in _significant_fields(fields) if name not in exclude}
        return _with_class(tag, _mapping(counting, "request"))
    except RecursionError:
        raise TypeError("a request must not be nested that deeply, nor contain itself") from None


def _significant_fields(fields: Mapping[Any, Any]) -> Iterator[tuple[Any, Any]]:
    is_chat, is_model = "messages" in fields, "model" in fields
    for name, value in fields.items():
        if is_model and (is_chat or "input" in fields):
            if name in IGNORED_FIELDS or (is_chat and name in IGNORED_CHAT_FIELDS):
                continue
            if name == "extra_headers" and issubclass(type(value), Mapping):
                yield name, {key: item for key, item in value.items() if str(key).lower() not in IGNORED_HEADERS}
                continue
        yield name, value


def _canonical_form(value: Any, path: str) -> Any:
    # Lists, mappings, sets and scalars. A tuple in the result names the class of a value; tuples of a request become
    # lists.
    if isinstance(value, _SCALARS):
        return value
    kind: Any = value.__class__
    if issubclass(kind, list) or kind is tuple:
        return [_canonical_form(item, f"{path}[{number}]") for number, item in enumerate(value)]
    fields, tag = _fields_of(value)
    if fields is not None:
        return _with_class(tag, _mapping(fields, path))
    if isinstance(value, Enum):
        return ("enum", _class_name(kind), value.name)
    if isinstance(value, _COMPARED_AS_TEXT):
        return (kind.__name__, str(value))
    if issubclass(kind, set | frozenset) and all(isinstance(member, _SCALARS) for member in value):
        return value
    if issubclass(kind, type) and _is_pydantic(value):
        return ("schema", value.__name__, _schema(value, path))
    raise TypeError(
        f"{path} has no canonical form: a request may hold text, bytes, numbers, None, models and structures of them, "
        f"not {kind.__name__}"
    )


def _mapping(fields: Mapping[Any, Any], path: str) -> dict[Any, Any]:
    plain: dict[Any, Any] = {}
    for name, value in fields.items():
        if not isinstance(name, _SCALARS):
            raise TypeError(f"{path} has a field whose name is no text but a {type(name).__name__}")
        if type(value).__name__ in _NOT_GIVEN and _is_of_sdk(type(value)):
            continue
        plain[name] = _canonical_form(value, path + _path_step(name))
    return plain


def _path_step(name: Any) -> str:
    # A key that does not look like the name of a field may be a piece of a prompt.
    return f".{name}" if isinstance(name, str) and name.isidentifier() and len(name) <= _LONGEST_NAME else "[…]"


def _with_class(tag: tuple[str, ...], plain: dict[Any, Any]) -> Any:
    return (*tag, plain) if tag else plain


def _fields_of(value: Any) -> tuple[Mapping[Any, Any] | None, tuple[str, ...]]:
    # The fields of a mapping or a model, and the name of its class; None for other values.
    kind: Any = value.__class__
    if issubclass(kind, Mapping):
        return value, ()
    names = _field_names(value, kind)
    if names is None:
        return None, ()
    # The values themselves, not as the model serializes them: two secrets that differ would both be "***". A model that
    # was built without validation may lack some.
    fields = {name: getattr(value, name) for name in names if hasattr(value, name)}
    return fields, () if _is_of_sdk(kind) else ("object", _class_name(kind))


def _field_names(value: Any, kind: Any) -> Collection[str] | None:
    if is_dataclass(kind):
        return [field.name for field in dataclass_fields(kind)]
    if _is_pydantic(kind):
        # An SDK sends the fields that were set; in other models the defaults are part of the request.
        set_or_all: Collection[str] = value.model_fields_set if _is_of_sdk(kind) else kind.model_fields
        return {*set_or_all, *(value.model_extra or ())}
    # Named tuples have _fields, msgspec structs __struct_fields__.
    names: Collection[str] | None = getattr(kind, "_fields" if issubclass(kind, tuple) else "__struct_fields__", None)
    return names


def _is_pydantic(kind: type[Any]) -> bool:
    return hasattr(kind, "model_fields") and hasattr(kind, "model_json_schema")


def _is_of_sdk(kind: Any) -> bool:
    return kind.__module__.partition(".")[0] in _SDKS


def _class_name(kind: type[Any]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _schema(kind: Any, path: str) -> Any:
    try:
        return _canonical_form(_schema_of(kind), path)
    except Exception:  # noqa: BLE001 - pydantic's errors, which quote values
        raise TypeError(f"{path} is a class without a schema") from None


@lru_cache(maxsize=128)  # a schema takes a hundred times as long as the rest of the key
def _schema_of(kind: Hashable) -> Any:
    model: Any = kind
    return model.model_json_schema()
