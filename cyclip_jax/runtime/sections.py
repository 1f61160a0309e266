"""What becomes of the sections of a config: constructed, completed, flattened, with their paths."""

import difflib
import inspect
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import ml_collections

from cyclip_jax.errors import UserError
from cyclip_jax.files import check_located
from cyclip_jax.runtime.setting_types import check_type

_Constructed = TypeVar("_Constructed")


def constructed(
    constructor: Callable[..., _Constructed], section: Mapping[str, Any], where: str
) -> _Constructed:
    """What the constructor of a section makes of it.

    Args:
      constructor: its keyword arguments are the section's fields.
      section: {field: value}.
      where: full name of the section, for messages ("config.data").

    Raises:
      UserError: the section has a field that the constructor does not take, or lacks one, or a
        value is of another type, or a path that nothing here opens, or what the constructor itself
        refuses.
    """
    check_type(where, section, Mapping)
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(constructor).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    }
    for field in section:
        if field not in parameters:
            near = difflib.get_close_matches(field, parameters, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(parameters)}"
            raise UserError(f"{where} has no field {field!r}; {hint}")
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and name not in section
    ]
    if missing:
        raise UserError(
            f"{where} lacks the field {missing[0]!r}; let the config begin with "
            "cyclip_jax.defaults.get_config()"
        )
    for field, value in section.items():
        check_type(f"{where}.{field}", value, parameters[field].annotation)
        check_located(f"{where}.{field}", value, parameters[field].annotation)
    return constructor(**section)


def resolve_paths(config: Any, workdir: str | os.PathLike[str]) -> Any:
    """A locked copy of the config in which {workdir} in any string is the run's directory."""

    def resolve(value):
        if isinstance(value, dict):
            return {key: resolve(inner) for key, inner in value.items()}
        if isinstance(value, tuple):
            return tuple(map(resolve, value))
        if isinstance(value, str) and "{workdir}" in value:
            # Remote file systems know no "..", and local ones only of directories that exist.
            return re.sub(r"/[^/]+/\.\.(?=/|$)", "", value.replace("{workdir}", str(workdir)))
        return value

    resolved: Any = resolve(config.to_dict())
    return ml_collections.ConfigDict(resolved).lock()


def completed(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict `config` with the fields of `defaults` that it lacks, but for evaluations."""
    missing = {key: value for key, value in defaults.items() if key not in config}
    return missing | {
        key: completed(value, defaults[key])
        if isinstance(defaults.get(key), dict) and key != "evals"
        else value
        for key, value in config.items()
    }


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"data.train": …} of a nested config."""
    settings = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            settings |= flat(value, f"{prefix}{key}.")
        else:
            settings[f"{prefix}{key}"] = value
    return settings
