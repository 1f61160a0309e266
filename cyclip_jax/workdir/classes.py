"""The classes that a fine-tuned model's head scores, as the run's folder keeps them."""

from collections.abc import Sequence

from etils import epath

from cyclip_jax.errors import UserError
from cyclip_jax.files import file_errors, parse_json, write_json
from cyclip_jax.workdir.layout import CLASSES


def classes_of(folder: epath.Path) -> list[str] | None:
    """The names in the order of the head's rows; None where the folder names none.

    Raises:
      UserError: the file is damaged.
    """
    path = folder / CLASSES
    if not path.exists():
        return None
    try:
        return [str(name) for name in parse_json(path.read_text())["classes"]]
    except (KeyError, TypeError, ValueError, *file_errors()) as error:
        raise UserError(f"{path} cannot be read ({error}); bring back the file") from error


def keep_classes(folder: epath.Path, classes: Sequence[str], templates: Sequence[str]) -> None:
    """Writes them, with what was said of them, where they are not there yet."""
    if classes_of(folder) != list(classes):
        write_json(folder / CLASSES, {"classes": list(classes), "templates": list(templates)})
