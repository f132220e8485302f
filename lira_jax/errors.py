"""The one exception that people are meant to see."""


class InputError(Exception):
    """Something the user gave is wrong.

    The message is one line: what is wrong, where, and what to do. The command line prints it and
    exits with code 2, without a traceback.
    """
