"""Data that installed packages carry, found without importing them."""

import importlib.util
from pathlib import Path

from cyclip_jax.errors import UserError


def installed_path(package: str, path: str) -> Path | None:
    """A file or folder inside an installed package; None where there is none.

    Args:
      package: name under which it would be imported. It is not: that may load all that it has.
      path: inside the package.
    """
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (found := Path(folder, path)).exists():
            return found
    return None


def package_folder(package: str, folder: str, *, install: str) -> Path:
    """A folder inside an installed package.

    Args:
      package, folder: as in `installed_path`.
      install: the argument of pip that installs the package, for the message.

    Raises:
      UserError: the package is not installed, or lacks the folder.
    """
    found = installed_path(package, folder)
    if found is None:
        raise UserError(
            f"the package {package} has no folder {folder}; install the version that has it by "
            f"pip install {install}"
        )
    return found
