"""Reads the variables of a TensorFlow checkpoint or SavedModel, a "tensor bundle", with numpy alone.

A bundle is two files. `NAME.index` is a table of sorted keys: blocks of entries, each `shared, unshared, length` as
varints, then the rest of the key and the value; a footer of 48 bytes points to the block that lists the others. A
value is a protocol buffer: the tensor's type, shape, offset and size in `NAME.data-00000-of-00001`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from evenkeel.errors import EvenkeelError

MAGIC = 0xDB4775248B80FB57
FOOTER, TRAILER = 48, 5  # bytes; a block's trailer is its compression and a checksum
TYPES = {1: np.float32, 2: np.float64, 3: np.int32, 9: np.int64, 10: np.bool_}
TYPE, SHAPE, OFFSET, SIZE = 1, 2, 4, 5  # fields of an entry


def read_bundle(prefix: Path) -> dict[str, np.ndarray[Any, Any]]:
    """All tensors of a bundle by name; entries of other types, such as strings, are left out.

    Raises:
        EvenkeelError: a file is missing, or is no bundle of one shard without compression.
    """
    index, data = prefix.with_name(prefix.name + ".index"), prefix.with_name(prefix.name + ".data-00000-of-00001")
    for path in (index, data):
        if not path.is_file():
            raise EvenkeelError(f"{path} is missing: a bundle is an .index file and one .data-00000-of-00001 beside it")
    table, values = index.read_bytes(), data.read_bytes()
    if len(table) < FOOTER or struct.unpack("<Q", table[-8:])[0] != MAGIC:
        raise EvenkeelError(f"{index} is no index of a tensor bundle: its last eight bytes say something else")
    try:
        return dict(tensors(table, values))
    except (IndexError, ValueError, struct.error) as error:
        raise EvenkeelError(f"{index} cannot be read as a tensor bundle: {error}") from error


def tensors(table: bytes, values: bytes) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    numbers = varints(table[-FOOTER:-8])
    start, size = [next(numbers) for _ in range(4)][2:]  # after the handle of the block about blocks
    for _, handle in entries(block(table, start, size)):
        for key, value in entries(block(table, *list(varints(handle))[:2])):
            entry = fields(value)
            kind = entry.get(TYPE, [0])[0]
            if key and kind in TYPES:
                shape = [fields(size).get(1, [0])[0] for size in fields(entry.get(SHAPE, [b""])[0]).get(2, [])]
                offset = entry.get(OFFSET, [0])[0]
                raw = values[offset : offset + entry.get(SIZE, [0])[0]]
                yield key.decode(), np.frombuffer(raw, TYPES[kind]).reshape(shape)


def block(table: bytes, start: int, size: int) -> bytes:
    """A block without its list of restarts."""
    if table[start + size] != 0:
        raise ValueError("its blocks are compressed, which is not supported")
    content = table[start : start + size]
    restarts = struct.unpack("<I", content[-4:])[0]
    return content[: len(content) - 4 - 4 * restarts]


def entries(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    at, key = 0, b""
    while at < len(content):
        shared, at = varint(content, at)
        unshared, at = varint(content, at)
        length, at = varint(content, at)
        key = key[:shared] + content[at : at + unshared]
        at += unshared
        yield key, content[at : at + length]
        at += length


def fields(message: bytes) -> dict[int, list[Any]]:
    """A protocol buffer's values by field number."""
    at, found = 0, dict[int, list[Any]]()
    while at < len(message):
        tag, at = varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = varint(message, at)
        elif wire in (1, 5):  # eight or four bytes
            size = 8 if wire == 1 else 4
            value, at = message[at : at + size], at + size
        elif wire == 2:
            size, at = varint(message, at)
            value, at = message[at : at + size], at + size
        else:
            raise ValueError(f"a field of wire type {wire}")
        found.setdefault(number, []).append(value)
    return found


def varints(content: bytes) -> Iterator[int]:
    at = 0
    while at < len(content):
        value, at = varint(content, at)
        yield value


def varint(content: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where the next one begins."""
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
