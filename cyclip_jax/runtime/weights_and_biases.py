"""Sends the metrics of a run to Weights & Biases as well, for those who keep their runs there."""

import contextlib
import dataclasses
import importlib.util
import os
import secrets
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

from cyclip_jax.errors import UserError
from cyclip_jax.files import write_atomically
from cyclip_jax.runtime.sections import flat

_ID = "wandb_id"
_MODES = (None, "online", "offline", "disabled")
_FINISH_SECONDS = 60.0  # a network that is gone must not hold a run that is done


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsAndBiases:
    """config.wandb.

    Attributes:
      project: the project that also gets every metric; None sends nothing.
      entity: the user or team; None is the one that is logged in.
      name: the name of the run; None is the name of its workdir.
      mode: "online", "offline" or "disabled"; None is $WANDB_MODE, or else "online".

    Raises:
      UserError: these settings do not fit each other, or wandb is not installed.
    """

    project: str | None
    entity: str | None
    name: str | None
    mode: str | None

    def __post_init__(self) -> None:
        if self.project is None:
            for key in ("entity", "name"):
                if getattr(self, key) is not None:
                    raise UserError(
                        f"config.wandb.{key} is set, but not config.wandb.project; set both or none"
                    )
        elif importlib.util.find_spec("wandb") is None:
            raise UserError(
                f"config.wandb.project is {self.project!r}, but wandb is not installed: "
                "pip install 'cyclip_jax[wandb]'"
            )
        if self.mode not in _MODES:
            raise UserError(
                f"config.wandb.mode {self.mode!r} is unknown; set it to online, offline or disabled"
            )


class WandbMirror:
    """Sends what TensorBoard gets to a run of Weights & Biases, the same one after a restart.

    If anything goes wrong there, this is said once, and training goes on without it.

    Args:
      config: the run's config, resolved, with `wandb`; nothing is done where its project is None.
        It is shown by full names, such as optimizer.learning_rate.
      workdir: the run's directory, which keeps the id.
      say: function that shows a line of text to a person.
      enabled: true on process 0 alone.
    """

    def __init__(
        self,
        config: Any,
        workdir: str | os.PathLike[str],
        *,
        say: Callable[[str], object],
        enabled: bool,
    ) -> None:
        self._say, self._run = say, None
        settings = config.wandb
        if not enabled or settings.project is None:
            return
        with self._forgiving():
            import wandb

            self._run = wandb.init(
                project=settings.project,
                entity=settings.entity,
                name=settings.name or epath.Path(workdir).name,
                mode=settings.mode,
                id=_run_id(epath.Path(workdir)),
                resume="allow",
                dir=None if "://" in str(workdir) else str(workdir),
                config=flat(config.to_dict()),
                allow_val_change=True,  # as --allow_changes lets a run go on
                settings=wandb.Settings(console="off", finish_timeout=_FINISH_SECONDS),
            )

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Sends named numbers of a step."""
        self._log(step, lambda wandb: numbers)

    def write_image(self, step: int, name: str, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
        """Sends a picture of a step."""
        self._log(step, lambda wandb: {name: wandb.Image(pixels)})

    def _log(self, step, content_by):
        # What is there cannot be written again; what a restart does again is the same.
        if self._run is not None and step >= self._run.step:
            with self._forgiving():
                import wandb

                self._run.log(content_by(wandb), step=step)

    def close(self) -> None:
        """Sends what is left."""
        if self._run is not None:
            with self._forgiving():
                self._run.finish()

    @contextlib.contextmanager
    def _forgiving(self):
        try:
            yield
        except Exception as error:  # of many types; training is worth more
            self._run = None
            self._say(
                f"Weights & Biases gets nothing from here on: {error}; metrics.jsonl has everything"
            )


def _run_id(workdir):
    """The id of the workdir's run at Weights & Biases, which its first process draws."""
    path = workdir / _ID
    if not path.exists():
        write_atomically(path, secrets.token_hex(8))
    return path.read_text()
