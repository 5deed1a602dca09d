"""Reading the table of Chainlit's DynamoDB layer, with the right to Scan alone.

An item is a person, a thread, a step or an element, under its thread's key; a scan gives those of one key together.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from decimal import Decimal
from functools import partial
from typing import Any

from forebay.errors import SettingsError, StorageError
from forebay.primitives import threads
from forebay.transfer.chats import Chat

_KEYS = frozenset({"PK", "SK", "UserThreadPK", "UserThreadSK"})
_PEOPLE = {"FilterExpression": "SK = :sk", "ExpressionAttributeValues": {":sk": {"S": "USER"}}}
_REGION = "us-east-1"  # as Chainlit's layer has it


class DynamoTable:
    """See `chats.Chats`. Raises StorageError where the table can't be read, SettingsError without boto3."""

    def __init__(self, table: str) -> None:
        try:
            import boto3
            from boto3.dynamodb.types import TypeDeserializer
        except ImportError:
            raise SettingsError("to read DynamoDB, boto3 is needed: pip install boto3") from None
        self._client = boto3.client("dynamodb", region_name=os.environ.get("AWS_REGION", _REGION))
        self._read = TypeDeserializer().deserialize
        self._table = table
        self.whose = f"dynamodb {table}"
        self.left_out: Counter[str] = Counter()

    async def people(self) -> AsyncIterator[Mapping[str, Any]]:
        """Their ids are their login names."""
        async for item in self._items(_PEOPLE):
            yield item

    async def chats(self) -> AsyncIterator[Chat]:
        """A key's items at a time."""
        key, items = "", list[dict[str, Any]]()
        async for item in self._items({}):
            if item["PK"] != key:
                if (chat := self._chat(key, items)) is not None:
                    yield chat
                key, items = item["PK"], []
            items.append(item)
        if (chat := self._chat(key, items)) is not None:
            yield chat

    def _chat(self, key: str, items: list[dict[str, Any]]) -> Chat | None:
        if not key.startswith("THREAD#"):
            return None
        of = {kind: [one for one in items if one["SK"].startswith(kind)] for kind in ("STEP#", "ELEMENT#")}
        thread = next((one for one in items if one["SK"] == "THREAD"), None)
        if thread is None:
            self.left_out["items of threads that are not there"] += len(items)
            return None
        steps = sorted(map(_plain, of["STEP#"]), key=lambda step: str(step.get("createdAt")))
        elements = list(map(_plain, of["ELEMENT#"]))
        return {**_plain(thread), "id": key.removeprefix("THREAD#"), "steps": steps, "elements": elements}

    async def _items(self, narrowed: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        from botocore.exceptions import BotoCoreError, ClientError

        asked: dict[str, Any] = {"TableName": self._table, "ConsistentRead": True, **narrowed}
        while True:
            try:
                page = await threads.run(partial(self._client.scan, **asked))
            except ClientError as error:
                reason = error.response.get("Error", {}).get("Code", "refused")
                raise StorageError(f"DynamoDB does not give the table ({reason})") from None
            except BotoCoreError as error:
                raise StorageError(f"DynamoDB can't be asked ({type(error).__name__})") from None
            for item in page["Items"]:
                yield {name: _value(self._read(value)) for name, value in item.items()}
            if "LastEvaluatedKey" not in page:
                return
            asked["ExclusiveStartKey"] = page["LastEvaluatedKey"]

    async def close(self) -> None:
        """Close the client."""
        self._client.close()


def _plain(item: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name not in _KEYS}


def _value(value: Any) -> Any:
    """Numbers come as Decimal, sets as sets, bytes in a class of boto3's."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, dict):
        return {key: _value(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_value(inner) for inner in value]
    if isinstance(value, set):
        return sorted(map(_value, value))
    return value.value if hasattr(value, "value") else value
