"""Text that others wrote, made safe to look at: in a terminal, in a log file, in a line of a table."""

from __future__ import annotations


def visible(text: str) -> str:
    """One line that moves no cursor, turns no direction and hides nothing: what can't be seen is escaped.

    So are line breaks: who writes a name may not write a second line. A printable text is returned as it is.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def visible_lines(text: str) -> str:
    """The same for a text of lines that are the program's own: its line breaks stay."""
    return "\n".join(visible(line) for line in text.split("\n"))


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
