"""The one exception that people are meant to see."""


class InputError(Exception):
    """Something the user gave is wrong.

    The message is one line: what is wrong, where, and what to do. The command line prints it and
    exits with code 2, without a traceback.
    """


def one_line(error: BaseException, length: int = 160) -> str:
    """An exception of any library in one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= length else text[: length - 3] + "…"
