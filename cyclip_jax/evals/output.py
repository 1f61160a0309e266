"""Where an evaluation puts what is more than a number: tables, matrices, pictures."""

import dataclasses
import io

import numpy as np
from etils import epath

from cyclip_jax.files import write_atomically, write_json


@dataclasses.dataclass(frozen=True)
class Output:
    """The directory of one evaluation's details, which the report reads.

    Attributes:
      directory: `<workdir>/evals/<evaluation>`; None writes nothing.
      enabled: true on process 0 alone.
    """

    directory: epath.Path | None = None
    enabled: bool = True

    @property
    def is_wanted(self):
        """Whether anything is written: what is dear to compute need not be."""
        return self.enabled and self.directory is not None

    def json(self, name, content):
        """Writes `<name>.json`."""
        if self.is_wanted:
            write_json(self.directory / f"{name}.json", content)

    def arrays(self, name, **arrays):
        """Writes `<name>.npz`."""
        if self.is_wanted:
            file = io.BytesIO()
            np.savez_compressed(file, **arrays)
            write_atomically(self.directory / f"{name}.npz", file.getvalue())
