"""A safetensors file that is written while its tensors come in: none has to wait in memory until all are there."""

import hashlib
import json
import os
from pathlib import Path

import torch
from torch import Tensor

from model_surgery.weights import DTYPES

_CHUNK = 4 << 20
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class TensorFile:
    """An open safetensors file. A place is reserved for every tensor, then places are filled in any order.

    The header comes first in the file and is known last: `header_bytes` are left for it, and filled up with spaces, as
    the format allows (https://huggingface.co/docs/safetensors).
    """

    def __init__(self, path: Path, header_bytes: int) -> None:
        self._header: dict[str, dict[str, object]] = {}
        self._start = 8 + header_bytes
        self._size = 0
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)

    def reserve(self, name: str, tensor: Tensor) -> int:
        """Makes a place for a tensor behind all others; returns where it begins in the file, in bytes.

        Raises: ValueError if there is one of that name.
        """
        if name in self._header:
            raise ValueError(f"tensor {name} twice")
        begin, self._size = self._size, self._size + tensor.nbytes
        self._header[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, self._size],
        }
        return self._start + begin

    def fill(self, offset: int, tensor: Tensor) -> str:
        """Writes a tensor into its place; returns the sha256 of its bytes. May run in several threads at once."""
        digest = hashlib.sha256()
        data = tensor_bytes(tensor)
        for begin in range(0, len(data), _CHUNK):
            chunk = data[begin : begin + _CHUNK]
            digest.update(chunk)
            self._write(chunk, offset + begin)
        return digest.hexdigest()

    def write_header(self) -> None:
        """Call it when all places are filled.

        Raises: ValueError if the header is longer than what was left for it.
        """
        header = json.dumps(self._header, separators=(",", ":")).encode()
        if 8 + len(header) > self._start:
            raise ValueError(f"a header of {len(header)} bytes, {self._start - 8} were left for it")
        header = header.ljust(self._start - 8)
        self._write(memoryview(len(header).to_bytes(8, "little") + header), 0)

    def close(self) -> None:
        """Closes the file, whole or not."""
        os.close(self._descriptor)

    def _write(self, data: memoryview, offset: int) -> None:
        while data:
            written = os.pwrite(self._descriptor, data, offset)
            data, offset = data[written:], offset + written


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in C order, in one dimension; they share its memory where they can."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
