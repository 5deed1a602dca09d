"""What a storage client takes."""

from __future__ import annotations

from forebay.attachments.delivery import _takes
from tests.support.storage import MemoryStorage


def test_a_client_that_does_not_tell_its_parameters_gets_none_that_it_need_not_have() -> None:
    """As one in compiled code."""

    def unreadable(key: str) -> None:
        raise AssertionError(key)

    unreadable.__signature__ = "not one"  # type: ignore[attr-defined]
    assert not _takes(unreadable, "key")
    assert not _takes(dict.fromkeys, "content_disposition")
    assert _takes(MemoryStorage().upload_file, "content_disposition")
