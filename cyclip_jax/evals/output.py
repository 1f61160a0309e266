"""Where an evaluation puts what is more than a number: tables, matrices, pictures, outcomes."""

import dataclasses
import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8
from numpy.typing import ArrayLike

from cyclip_jax.errors import UserError
from cyclip_jax.evals.clip_benchmark import FOLDER as CLIP_BENCHMARK
from cyclip_jax.evals.metric import About, Better, Metric, Unit
from cyclip_jax.files import entries, parse_json, write_atomically, write_json

_BETTER: dict[Any, Better] = {"more": "more", "less": "less", None: None}
_ABOUT, _OUTCOMES = "metrics", "outcomes"


Show = Callable[[str, UInt8[np.ndarray, "h w 3"]], object]


@dataclasses.dataclass(frozen=True)
class Output:
    """The directory of one evaluation's details, which the report reads.

    Two files are of every evaluation. `metrics.json` says what its metrics mean. `outcomes.npz` has
    what became of each item that was scored, which is what a paired comparison of two runs needs;
    its arrays are called `<items>/<name>`:

        <items>/index       int [N]: the items' numbers in the data set, the same in every
                            run on these data, whatever a run could not read
        <items>/<metric>    what became of each item, [N] or [N, …]; its mean is the metric
        <items>/cluster     int [N], where the metric's interval draws several items together: those
                            with the same number
        <items>/…           what else tells of the item: its label, its rank, its category

    Attributes:
      directory: `<workdir>/evals/<evaluation>`; None writes nothing.
      enabled: true on process 0 alone.
      show: takes pictures by their names, for whoever follows a run; None takes none.
    """

    directory: epath.Path | None = None
    enabled: bool = True
    show: Show | None = None

    @property
    def is_wanted(self) -> bool:
        """Whether anything is written: what is dear to compute need not be."""
        return self.enabled and self.directory is not None

    @property
    def is_shown(self) -> bool:
        """Whether anybody looks at pictures, which need not be drawn otherwise."""
        return self.enabled and self.show is not None

    def picture(self, name: str, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
        """Shows a picture; it is no file."""
        if self.enabled and self.show is not None:
            self.show(name, pixels)

    def json(self, name: str, content: Any) -> None:
        """Writes `<name>.json` with content that JSON can hold."""
        if self.enabled and self.directory is not None:
            write_json(self.directory / f"{name}.json", content)

    def arrays(self, name: str, **arrays: ArrayLike) -> None:
        """Writes `<name>.npz`."""
        if self.enabled and self.directory is not None:
            file = io.BytesIO()
            np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
            write_atomically(self.directory / f"{name}.npz", file.getvalue())

    def outcomes(self, items: Mapping[str, Mapping[str, ArrayLike]]) -> None:
        """Writes `outcomes.npz` of {items: {name: array}}, as the class describes them."""
        arrays = {
            f"{kind}/{name}": array for kind, own in items.items() for name, array in own.items()
        }
        self.arrays(_OUTCOMES, **arrays)

    def about(self, metrics: Mapping[str, Metric]) -> None:
        """Writes `metrics.json`: what the metrics say of themselves."""
        self.json(_ABOUT, {name: dataclasses.asdict(m.about) for name, m in metrics.items()})


def read_abouts(directory: epath.Path) -> dict[str, dict[str, About]]:
    """{evaluation: {metric: About}} of all evaluations that wrote a `metrics.json`.

    Args:
      directory: `<workdir>/evals`, or the --output of `python -m cyclip_jax.evaluate`.

    Raises:
      UserError: such a file is not what it should be.
    """
    files = [folder / f"{_ABOUT}.json" for folder in entries(directory)]
    return {
        file.parent.name: _read_about(file)
        for file in files
        # CLIP_benchmark's folder has numbers of an evaluation called "metrics".
        if file.exists() and file.parent.name != CLIP_BENCHMARK
    }


def _read_about(file):
    try:
        abouts = parse_json(file.read_text()).items()
        return {
            name: About(Unit(about["unit"]), _BETTER[about["better"]], bool(about["is_headline"]))
            for name, about in abouts
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{file} does not say what metrics mean ({error!r}); remove it: the names tell, too"
        ) from error
