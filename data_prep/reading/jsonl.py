"""The document in a line of JSON."""

import json
from typing import Any

from data_prep.errors import DataError

# "\u0061" is six bytes for one: a shorter line may still hold a document that is not too long.
LONGEST_ESCAPE = 6
OTHER_COLUMNS = 2**20  # bytes


def longest_line(max_document_bytes: int) -> int:
    """Bytes of a line beyond which its document is taken for too long without a look at it."""
    return LONGEST_ESCAPE * max_document_bytes + OTHER_COLUMNS


def parse_line(line: bytes) -> Any:
    """The value of a line.

    Raises: DataError with the reason if it has none, or strings without a UTF-8 form.
    """
    import orjson

    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return _parse_leniently(line)


def line_text(line: bytes, column: str) -> str:
    """The document in a line.

    Raises: DataError with the reason if there is none, or none that has a UTF-8 form.
    """
    value = parse_line(line)
    if not isinstance(value, dict):
        raise DataError(f"not a JSON object, but {_kind(value)}")
    if column not in value:
        raise DataError(f"no column {column!r}")
    text = value[column]
    if text is None:
        raise DataError(f"{column} is null")
    if not isinstance(text, str):
        raise DataError(f"{column} is {_kind(text)}, not a string")
    return text


def _parse_leniently(line: bytes) -> Any:
    """What the strict parser refuses and others write: NaN, integers of any length, a byte order mark."""
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"invalid UTF-8 (byte {error.start} of the line: {error.reason})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON ({str(error).splitlines()[0]})") from error
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"a lone surrogate, {error.object[error.start]!a}, has no UTF-8 form") from error
    return value


def _kind(value: object) -> str:
    return {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}.get(
        type(value), "a number"
    )
