"""What a person sees of a run: lines, a progress bar, the log."""

import contextlib
import logging
import os
import sys
from collections.abc import Mapping

import tqdm
from etils import epath

from cyclip_jax.files import Appender
from cyclip_jax.workdir.layout import LOG


class Console:
    """Tells a person how the run goes: a bar on a terminal, plain lines elsewhere and in a log.

    Args:
      workdir: the run's directory.
      enabled: true on process 0 alone.
    """

    def __init__(self, workdir: str | os.PathLike[str], *, enabled: bool) -> None:
        self._enabled = enabled
        self._bar = None
        if enabled:
            self._log = Appender(epath.Path(workdir) / LOG)
            self._warnings = logging.StreamHandler(self._log)
            self._warnings.setLevel(logging.WARNING)
            logging.getLogger().addHandler(self._warnings)

    def say(self, text: str) -> None:
        """Prints text, above the bar where there is one, and logs it."""
        if not self._enabled:
            return
        self._show(text)
        self.log(text)

    def log(self, text: str) -> None:
        """Writes text to the log alone."""
        if self._enabled:
            self._log.write(text + "\n")

    def _show(self, text):
        with contextlib.suppress(OSError):  # a full disk or a closed pipe; the log has it too
            if self._bar is None:
                print(text, flush=True)
            else:
                self._bar.write(text)

    def start(self, step: int, total_steps: int) -> None:
        """Starts the bar, where there is a terminal."""
        if self._enabled and sys.stderr.isatty():
            self._bar = tqdm.tqdm(initial=step, total=total_steps, unit="step", smoothing=0.05)

    def step(self) -> None:
        """Moves the bar by a step, which has just been dispatched."""
        if self._bar is not None:
            self._bar.update()

    def report(
        self, step: int, total_steps: int, metrics: Mapping[str, float], seconds_left: float
    ) -> None:
        """Shows the metrics of a step in the bar, or as a line where there is none.

        Args:
          step: the number of steps done.
          total_steps: the length of the run.
          metrics: {name: number}, with "loss" and "images_per_second" or "sentences_per_second".
          seconds_left: how long the rest of the run will take.
        """
        if not self._enabled:
            return
        loss, what = metrics["loss"], "images"
        if f"{what}_per_second" not in metrics:
            what = "sentences"
        speed = f"{metrics[f'{what}_per_second']:.0f} {what}/s"
        minutes, seconds = divmod(int(seconds_left), 60)
        line = f"step {step}/{total_steps}  loss {loss:.4f}  {speed}  {minutes}:{seconds:02d} left"
        if self._bar is None:
            self._show(line)
        else:
            self._bar.set_postfix_str(f"loss {loss:.4f}, {speed}")
        self.log(line)

    def close(self) -> None:
        """Ends the bar and the log."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._enabled:
            logging.getLogger().removeHandler(self._warnings)
            self._log.close()
            self._enabled = False
