"""What an evaluation's settings alone show to be wrong, said before its data are opened."""

import dataclasses
from typing import Any

from cyclip_jax.errors import UserError
from cyclip_jax.files import check_located
from cyclip_jax.runtime import setting_types


def check_types(settings: Any) -> None:
    """Checks the settings of an evaluation, a dataclass with a `name`, by the types of its fields.

    A whole number may be written as 5.0, and becomes 5. A path may be any that Python has.

    Raises:
      UserError: a setting is of another type than its field, or a path that nothing here opens.
    """
    for field in dataclasses.fields(settings):
        config_key = f"config.evals.{settings.name}.{field.name}"
        value = getattr(settings, field.name)
        if (
            int in setting_types.alternatives(field.type)
            and isinstance(value, float)
            and value.is_integer()
        ):
            object.__setattr__(settings, field.name, int(value))
        else:
            check_type(config_key, value, field.type)
        check_located(config_key, value, field.type)


def check_type(config_key: str, value: Any, kind: Any) -> None:
    """Raises UserError, with the value's `config_key`, where a value is not of a type."""
    setting_types.check_type(config_key, value, kind, is_finite=True)


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
