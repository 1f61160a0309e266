"""The one exception whose message is all that its reader needs."""


class UserError(ValueError):
    """Something the user can mend: the message says what is wrong, where, and what to do.

    The command lines print it as one sentence, without a traceback.
    """
