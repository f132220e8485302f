"""The one exception that people are meant to see, and how text is made fit to be seen."""

import re


class InputError(Exception):
    """Something the user gave is wrong.

    The message is one line: what is wrong, where, and what to do. The command line prints it and
    exits with code 2, without a traceback.
    """


def one_line(error: BaseException, length: int = 160) -> str:
    """An exception of any library in one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= length else text[: length - 3] + "…"


# Controls of both sets, escape sequences among them; marks that change the direction of text, or
# show nothing; other ends of a line.
_STEERING = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]"
)


def visible(text: str, keep: str = "") -> str:
    r"""Text in which nothing steers a terminal: such characters are shown as escapes.

    Examples:
        >>> visible("a\x1b[2Jb\u202e")
        'a\\x1b[2Jb\\u202e'

    Args:
        keep: characters that stay as they are.
    """

    def escape(match: re.Match[str]) -> str:
        letter = match[0]
        return letter if letter in keep else letter.encode("unicode_escape").decode()

    return _STEERING.sub(escape, text)
