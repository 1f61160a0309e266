"""The one exception whose message is all that its reader needs."""

from collections.abc import Collection

LONGEST_MESSAGE = 1_400  # characters: with what a command adds, a message stays below 1,500
_LONGEST_END = 300  # of these, which say what to do


class UserError(ValueError):
    """Something the user can mend: the message says what is wrong, where, and what to do.

    The command lines print it as one sentence, without a traceback. A longer message loses its
    middle.
    """

    def __init__(self, message: str) -> None:
        super().__init__(shortened(message))


def shortened(message: str) -> str:
    """A message of at most LONGEST_MESSAGE characters: what is longer loses its middle."""
    if len(message) <= LONGEST_MESSAGE:
        return message
    return f"{message[: LONGEST_MESSAGE - _LONGEST_END - 3]} … {message[-_LONGEST_END:]}"


def check_known(what: str, name: str, known: Collection[str]) -> None:
    """Raises UserError unless a name, of `what` in the message, is one of those known."""
    if name not in known:
        raise UserError(f"unknown {what} {name!r}; choose one of {', '.join(known)}")
