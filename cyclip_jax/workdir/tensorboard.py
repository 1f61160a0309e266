"""Numbers and pictures as TensorBoard shows them."""

from collections.abc import Mapping

import numpy as np


class Summaries:
    """A new file of events.

    TensorFlow is used as it is: clu's writer would import Keras with it, which takes seconds.

    Args:
      directory: local or remote.
    """

    def __init__(self, directory: str):
        import tensorflow as tf  # slow to import, and needless until something is shown

        self._summary = tf.summary
        self._file = tf.summary.create_file_writer(directory)

    def write_scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        """Adds {name: number}."""
        with self._file.as_default():
            for name, value in numbers.items():
                self._summary.scalar(name, value, step=step)

    def write_image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Adds a picture, uint8 [h, w, 3]."""
        with self._file.as_default():
            self._summary.image(name, pixels[None], step=step)

    def flush(self) -> None:
        """Writes what waits in memory."""
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
