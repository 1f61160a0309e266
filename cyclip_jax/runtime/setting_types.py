"""Whether a setting is of the type that its constructor names."""

import math
import numbers
import os
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from cyclip_jax.errors import UserError

_WORDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    Sequence[str]: "a list of texts",
    Sequence[int]: "a list of whole numbers",
    Sequence[float]: "a list of numbers",
    types.NoneType: "None",
}


def check_type(config_key: str, value: Any, kind: Any, *, is_finite: bool = False) -> None:
    """Checks the type of a setting.

    Args:
      config_key: its full name, for the message ("config.data.templates").
      value: what it is set to.
      kind: a type, or a union of several. Types that are not known here take every value.
      is_finite: whether a number has to be finite; not a number is none in any case.

    Raises:
      UserError: the value is of none of these types.
    """
    kinds = alternatives(kind)
    if not any(_is_a(value, one, is_finite) for one in kinds):
        finite = _WORDS | ({float: "a finite number"} if is_finite else {})
        words = dict.fromkeys(finite.get(one, "settings by name") for one in kinds if _is_told(one))
        raise UserError(f"{config_key} {value!r} must be {' or '.join(words)}")


def alternatives(kind: Any) -> tuple[Any, ...]:
    """The types of which a union is one; any other type by itself; all without marks."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return tuple(one for part in typing.get_args(kind) for one in alternatives(part))
    return (kind.__origin__,) if typing.get_origin(kind) is typing.Annotated else (kind,)


def _is_told(kind):
    """Whether a message names a type: arrays are given by programs and not by people."""
    return kind in _WORDS or typing.get_origin(kind) is Mapping or kind is Mapping


def _is_a(value, kind, is_finite):
    origin = typing.get_origin(kind)
    if Mapping in (kind, origin):
        return isinstance(value, Mapping | ml_collections.ConfigDict)
    if origin is Sequence:
        (inner,) = typing.get_args(kind)
        is_list = isinstance(value, list | tuple)
        return is_list and all(_is_a(one, inner, is_finite) for one in value)
    if origin is not None or kind is Any:
        return True
    if kind is float:
        is_number = isinstance(value, numbers.Real) and value == value
        return is_number and (math.isfinite(value) or not is_finite)
    known = {str: str | os.PathLike, int: numbers.Integral, bool: int | None}
    return isinstance(value, known.get(kind, kind))
