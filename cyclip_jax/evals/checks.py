"""What an evaluation's settings alone show to be wrong, said before its data are opened."""

import dataclasses
import math
import numbers
import os
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from cyclip_jax.errors import UserError
from cyclip_jax.files import check_scheme, located_in

_WORDS = {
    str: "a text",
    int: "a whole number",
    float: "a finite number",
    bool: "True or False",
    Sequence[str]: "a list of texts",
    Sequence[int]: "a list of whole numbers",
    types.NoneType: "None",
}


def check_types(settings: Any) -> None:
    """Checks the settings of an evaluation, a dataclass with a `name`, by the types of its fields.

    A whole number may be written as 5.0, and becomes 5. A path may be any that Python has.

    Raises:
      UserError: a setting is of another type than its field, or a path that nothing here opens.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if int in _alternatives(field.type) and isinstance(value, float) and value.is_integer():
            object.__setattr__(settings, field.name, int(value))
        else:
            check_type(f"config.evals.{settings.name}.{field.name}", value, field.type)
        if isinstance(value, str) and located_in(field.type):
            check_scheme(value, f"config.evals.{settings.name}.{field.name}")


def check_type(config_key: str, value: Any, kind: Any) -> None:
    """Raises UserError, with the value's `config_key`, where a value is not of a type."""
    kinds = _alternatives(kind)
    if not any(_is_a(value, one) for one in kinds):
        words = " or ".join(_WORDS.get(one, "settings by name") for one in kinds)
        raise UserError(f"{config_key} {value!r} must be {words}")


def _alternatives(kind):
    """The types of which a union is one; any other type by itself; all without marks."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return tuple(one for part in typing.get_args(kind) for one in _alternatives(part))
    return (kind.__origin__,) if typing.get_origin(kind) is typing.Annotated else (kind,)


def _is_a(value, kind):
    if typing.get_origin(kind) is Mapping:
        return isinstance(value, Mapping | ml_collections.ConfigDict)
    if typing.get_origin(kind) is Sequence:
        (inner,) = typing.get_args(kind)
        return isinstance(value, list | tuple) and all(_is_a(one, inner) for one in value)
    if kind is float:
        return isinstance(value, numbers.Real) and math.isfinite(value)
    known = {str: str | os.PathLike, int: numbers.Integral, bool: int | None}
    return isinstance(value, known.get(kind, kind))


def check_at_least(settings: Any, least: int, *fields: str) -> None:
    """Raises UserError where one of these numbers is below the `least`; None is not."""
    for field in fields:
        value = getattr(settings, field)
        if value is not None and value < least:
            raise UserError(
                f"config.evals.{settings.name}.{field} {value} must be at least {least}"
            )


def check_named(settings: Any, *fields: str) -> None:
    """Raises UserError where one of these paths is empty; None is not."""
    for field in fields:
        if getattr(settings, field) == "":
            raise UserError(f"config.evals.{settings.name}.{field} is empty; name a file there")
