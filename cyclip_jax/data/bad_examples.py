"""Counts the examples that cannot be used, and names them in a file."""

import json
import os
from collections import Counter
from typing import Protocol

from etils import epath

from cyclip_jax.data.order import Position
from cyclip_jax.errors import UserError
from cyclip_jax.files import Appender, parse_json, write_atomically


class NamesBadExamples(Protocol):
    """What is told of examples that cannot be used."""

    def __contains__(self, key_and_index: tuple[str, int]) -> bool:
        """Whether an example was told of already."""
        ...

    def add(
        self,
        key: str,
        index: int,
        reason: str,
        detail: str = "",
        position: Position | None = None,
    ) -> None:
        """Takes an example's name and number, and why it cannot be used."""
        ...


class BadExamples:
    """Counts the examples that cannot be read, and names each of them once.

    An example is bad if its image is missing or cannot be decoded, or if it has no caption. Each
    process counts the bad examples that it meets itself, and so needs a file of its own. Lines that
    a full disk does not take wait in memory.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        limit_share: float,
        dataset_size: int,
        position: Position | None = None,
    ) -> None:
        """Begins with the examples that the file names from before a position.

        Args:
          path: the file, which has one JSON object a line, {"key", "index", "reason", "detail"}. An
            example that was met in a training batch also has the position after that batch, as
            "epoch" and "examples". The file is made only when there is a bad example.
          limit_share: share of the data set that may be bad.
          dataset_size: number of examples in the data set.
          position: the `Position` that training starts from, or None for the beginning. Examples
            that were met later leave the file, as they are met again.

        Raises:
          UserError: the file already names more than the limit.
        """
        self._path = epath.Path(path)
        self._limit_share = limit_share
        self._dataset_size = dataset_size
        self._known: dict[tuple[str, int], str] = {}
        self._file: Appender | None = None
        if self._path.exists():
            self._take_up_file((0, 0) if position is None else (position.epoch, position.examples))
            self._check_limit()

    @property
    def count(self) -> int:
        """Number of distinct bad examples."""
        return len(self._known)

    @property
    def by_reason(self) -> dict[str, int]:
        """{reason: number of distinct bad examples}, the commonest first."""
        return dict(Counter(self._known.values()).most_common())

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} × {reason}" for reason, count in self.by_reason.items())
        return f"{self.count} of {self._dataset_size} ({reasons}), named in {self._path}"

    def __contains__(self, key_and_index: tuple[str, int]) -> bool:
        return tuple(key_and_index) in self._known

    def add(
        self,
        key: str,
        index: int,
        reason: str,
        detail: str = "",
        position: Position | None = None,
    ) -> None:
        """Counts and writes down an example, unless it is already known.

        Args:
          key: the example's name.
          index: the example's number.
          reason: why it cannot be used, in words that many examples share.
          detail: what else is known about this example.
          position: the `Position` after the training batch in which it was met, or None.

        Raises:
          UserError: there are now more bad examples than the limit allows.
        """
        if (key, index) in self:
            return
        self._known[key, index] = reason
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = Appender(self._path)
        line = {"key": key, "index": index, "reason": reason, "detail": detail}
        if position is not None:
            line |= {"epoch": position.epoch, "examples": position.examples}
        self._file.write(json.dumps(line) + "\n")
        self._check_limit()

    def flush(self) -> Exception | None:
        """Tries once more to write the lines that wait; returns what prevents it, or None."""
        if self._file is None:
            return None
        self._file.flush()
        return self._file.failure

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _take_up_file(self, start):
        text, kept = self._path.read_text(), []
        for line in text.splitlines(keepends=True):
            if not line.endswith("\n"):
                break  # a process that was killed while writing may have left half a line
            try:
                example = parse_json(line)
                if (example.get("epoch", 0), example.get("examples", 0)) <= start:
                    self._known[example["key"], example["index"]] = example["reason"]
                    kept.append(line)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                named = f"{self._path} has a line that names no bad example ({error!r}); remove it"
                raise UserError(f"{named}: {line[:200]}") from error
        kept = "".join(kept)
        if kept != text:
            write_atomically(self._path, kept)

    def _check_limit(self):
        if self.count > self._limit_share * self._dataset_size:
            raise UserError(
                f"{self.count / self._dataset_size:.2%} of the examples cannot be read, more than "
                f"the allowed {self._limit_share:.2%}: {self}; mend them, or raise "
                "config.data.max_bad_share"
            )
