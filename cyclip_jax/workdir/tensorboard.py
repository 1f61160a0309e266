"""Numbers, pictures and settings as TensorBoard shows them."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8


class Summaries:
    """A new file of events.

    TensorFlow is used as it is: clu's writer would import Keras with it, which takes seconds.

    Args:
      directory: local or remote.
      settings: the run's settings by their full names, for the table of hyperparameters; {} makes
        none.
    """

    def __init__(self, directory: str, settings: Mapping[str, Any] | None = None):
        import tensorflow as tf  # slow to import, and needless until something is shown

        self._summary = tf.summary
        self._file = tf.summary.create_file_writer(directory)
        if settings:
            # The plugin's own summary; the writer in its api.py is made for Keras.
            from tensorboard.plugins.hparams.summary_v2 import hparams_pb

            summary = hparams_pb(_as_hyperparameters(settings), trial_id=directory)
            with self._file.as_default():
                tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step=0)

    def write_scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        """Adds {name: number}."""
        with self._file.as_default():
            for name, value in numbers.items():
                self._summary.scalar(name, value, step=step)

    def write_image(self, step: int, name: str, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
        """Adds a picture."""
        with self._file.as_default():
            self._summary.image(name, pixels[None], step=step)

    def flush(self) -> None:
        """Writes what waits in memory."""
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _as_hyperparameters(settings):
    """Settings as the table takes them: truth, numbers and texts; what is not set is left out."""
    return {
        name: value
        if isinstance(value, bool | int | float | str)
        else json.dumps(value, default=str)
        for name, value in settings.items()
        if value is not None
    }
