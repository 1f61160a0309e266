"""One example as a source reads it, what a source is, and what counts as an example's own fault.

A bad example costs itself and never the run. Bugs have to show all the same. They are told apart by
the type of what is raised while an example is read, decoded or tokenised. The types of `bad_input`
are the example's fault: they are what Python and the libraries raise for input that they cannot
take. All others, such as AttributeError, NameError, KeyError, IndexError or AssertionError, and
UserError, are not caught and end the run. A reader that can say more raises Unreadable itself, at
the call that fails.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, TypeVarTuple

import numpy as np
from jaxtyping import Int

from cyclip_jax.errors import UserError, shortened
from cyclip_jax.files import file_errors

_Arguments = TypeVarTuple("_Arguments")
_Value = TypeVar("_Value")


class Unreadable(Exception):
    """An example that cannot be used.

    Attributes:
      reason: why it cannot be used, in words that many examples share: they are counted by it.
      detail: what else is known about this example.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        detail = shortened(detail)
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason: str = reason
        self.detail: str = detail


class Record(NamedTuple):
    """An example: the picture's file as bytes, its captions, and how often each is to be drawn.

    `negative` is a wrong caption, "" where there is none. `negative_image` is the file of a picture
    that it describes, b"" where there is none.
    """

    image: bytes
    captions: list[str]
    weights: list[float]
    negative: str = ""
    negative_image: bytes = b""


class Source(Protocol):
    """Pairs of a picture and captions, read by their number (see sources/__init__.py)."""

    def __len__(self) -> int:
        """The number of examples."""
        ...

    def read(self, index: int) -> Record:
        """The Record of an example; raises Unreadable. Many threads may call it."""
        ...

    def keys(self, indices: Iterable[int]) -> list[str]:
        """The names of these examples in a report."""
        ...

    def captions(self, first: int = 0, end: int | None = None) -> list[str]:
        """The first caption of each of these examples, by default of all of them."""
        ...

    @property
    def boundaries(self) -> Int[np.ndarray, "runs+1"]:
        """Where runs of neighbours begin, and the end, int64 [runs + 1]."""
        ...

    @property
    def mean_bytes(self) -> float:
        """Mean size of an example."""
        ...

    @property
    def faults(self) -> Sequence[tuple[str, str, str]]:
        """(key, reason, detail) of what is lost before it has a number."""
        ...


def part_of(boundaries: Int[np.ndarray, "parts+1"], index: int) -> int:
    """The number of the part in which an example lies.

    Args:
      boundaries: where each part's examples begin, and the end, int64 [parts + 1].
      index: the example's number among all parts.
    """
    return int(np.searchsorted(boundaries, index, side="right")) - 1


def bad_input() -> tuple[type[Exception], ...]:
    """The types of what bad input raises: Python's own, and those of the libraries in use."""
    arrow = sys.modules.get("pyarrow")
    of_arrow = () if arrow is None else (arrow.ArrowException,)
    builtin = (ArithmeticError, EOFError, RecursionError, TypeError, ValueError)
    return (*builtin, *of_arrow, *file_errors())


def told(reason: str, read: Callable[[*_Arguments], _Value], *arguments: *_Arguments) -> _Value:
    """read(*arguments), with what bad input raises as an example's fault.

    Args:
      reason: what to say of the example, in words that many examples share.
      read: function that reads, decodes or tokenises one example.
      *arguments: its arguments.

    Raises:
      Unreadable: `read` raises it, or one of the types of `bad_input`.
    """
    try:
        return read(*arguments)
    except UserError:  # a ValueError, and never of one example
        raise
    except bad_input() as error:
        raise Unreadable(reason, f"{type(error).__name__}: {error}") from error


def read_told(read: Callable[[*_Arguments], Record], *arguments: *_Arguments) -> Record:
    """The Record read(*arguments); raises Unreadable for whatever bad input raises there."""
    record = told("the example cannot be read", read, *arguments)
    for image in (record.image, record.negative_image):
        if not isinstance(image, bytes):
            raise Unreadable("the image is no file's bytes", type(image).__name__)
    return record


def first_caption(read: Callable[..., Record], *arguments: Any) -> str:
    """The first caption of the Record read(*arguments), or "" where it cannot be read."""
    try:
        return told("", read, *arguments).captions[0]
    except Unreadable:
        return ""
