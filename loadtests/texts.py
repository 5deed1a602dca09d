"""What the app says to a question, so that an audit knows what everybody has seen. Standard library only."""

from __future__ import annotations

TOOLS = ("search", "read")
# An answer of a chat model is some hundred characters long; what a tool has found, some more.
_SENTENCE = "It is said of {} that much depends on where one stands, and little on when. "
_FOUND = "In a document about {} there is a paragraph that answers in part. "


def found_by(tool: str, question: str) -> str:
    """What a tool step gives out."""
    return f"{tool}: {_FOUND.format(question) * 8}"


def beginning(question: str) -> str:
    """The answer as it is sent."""
    return f"Answer to {question}."


def answer(question: str) -> str:
    """The answer as it is after its update, at once."""
    return f"{beginning(question)} {_SENTENCE.format(question) * 6}That is all."


def file_content(name: str) -> bytes:
    """What is in a file that somebody uploads."""
    return f"{name} has lines.\n".encode() * 500
