"""Reads what ``torch.save`` wrote, safely: data alone, and tensors only when they are wanted.

The container is a zip archive whose members are stored, never compressed: a pickle, and beside it
the bytes of each tensor. Files from before PyTorch 1.6 are another format, which is not read.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeGuard

import torch
from torch import Tensor

from asd_policy.errors import CheckpointError
from asd_policy.formats import pickles
from asd_policy.formats.pickles import Node, Symbol, clipped, shown

MOST_BYTES = 8 << 30
"""Largest file that is opened."""
MOST_PICKLE_BYTES = 64 << 20
"""Of a large checkpoint it has one or two million; the tensors lie outside of it."""
_MOST_DIRECTORY_BYTES = 4 << 20
_MOST_VALUES = 1_000_000
_MOST_SHARED = 16
_LONGEST_NAME = 100
_CHARACTERS_A_VALUE = 100
_DEEPEST = 64
_MOST_DIMENSIONS = 64
_MOST_ELEMENTS = 1 << 40

_HEADER_BYTES = 30
_ENCRYPTED = 1
_UNREADABLE = (
    zipfile.BadZipFile,
    struct.error,
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    OverflowError,
)

_DTYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
_CONFIG_VALUES = frozenset(
    f"omegaconf.nodes.{kind}Node" for kind in "Any Integer Float Boolean String Bytes Path".split()
)
_NODES = _CONFIG_VALUES | {
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
}
_SYMBOLS = frozenset(_DTYPES) | {
    "typing.Any",
    *(
        f"{module}.{name}"
        for module in ("builtins", "__builtin__")  # as protocol 2 writes it, for Python 2
        for name in "dict list int long float bool str unicode bytes tuple object".split()
    ),
}


@dataclass(frozen=True)
class _Storage:
    """The bytes of one or several tensors, by their name in the archive."""

    key: str
    dtype: torch.dtype
    size: int

    @property
    def bytes(self) -> int:
        return self.size * self.dtype.itemsize


class StoredTensor:
    """A tensor that lies in a file, of which the shape is known and the values are not read yet.

    Attributes:
        shape: Its shape.
        dtype: Its type.
    """

    def __init__(
        self, file: TorchFile, storage: _Storage, offset: int, shape: tuple, stride: tuple
    ) -> None:
        dimensions = len(shape) if len(shape) == len(stride) else -1
        # Sums and products only of what is a small number.
        if not 0 <= dimensions <= _MOST_DIMENSIONS or not all(
            type(n) is int and 0 <= n <= _MOST_ELEMENTS for n in (offset, *shape, *stride)
        ):
            raise CheckpointError(
                f"a tensor of shape {shown(shape)}, strides {shown(stride)} and offset "
                f"{shown(offset)}"
            )
        extent = sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        # More elements than are stored, as an expanded tensor has, would be made from nothing.
        if 0 in shape:
            fits = math.prod(n for n in shape if n) <= _MOST_ELEMENTS
        else:
            fits = offset + extent < storage.size and math.prod(shape) <= storage.size
        if not fits:
            raise CheckpointError(
                f"a tensor of shape {shown(shape)} does not fit into its storage of "
                f"{storage.size} values"
            )
        self.shape = tuple(shape)
        self.dtype = storage.dtype
        self._file, self._storage, self._offset, self._stride = file, storage, offset, stride

    def __repr__(self) -> str:
        return f"StoredTensor({self.dtype}, {self.shape})"

    def read(self) -> Tensor:
        """The tensor, with memory of its own.

        Raises:
            CheckpointError: If the file does not hold it whole.
        """
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.dtype)
        flat = self._file.storage(self._storage)
        return flat.as_strided(self.shape, self._stride, self._offset).clone(
            memory_format=torch.contiguous_format
        )


class TorchFile(AbstractContextManager["TorchFile"]):
    """An open file of ``torch.save``.

    Args:
        path: The file.

    Raises:
        CheckpointError: If it is not such a file, is damaged, or is beyond all bounds.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            if not self.path.is_file():
                missing = "is no file" if self.path.exists() else "no such file"
                raise CheckpointError(f"{path}: {missing}")
            self._size = self.path.stat().st_size
            if self._size > MOST_BYTES:
                raise CheckpointError(f"{path}: {self._size} bytes; at most {MOST_BYTES} are read")
            self._file = _Archive(io.FileIO(self.path))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be opened: {clipped(error)}") from error
        try:
            self._members = self._checked_members()
        except BaseException:
            self._file.close()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file; tensors that were not read cannot be read any more."""
        self._zip.close()
        self._file.close()

    def _checked_members(self) -> dict[str, zipfile.ZipInfo]:
        """The members by their name inside the archive's one folder."""
        try:
            self._zip = zipfile.ZipFile(self._file)
        except _UNREADABLE as error:
            raise CheckpointError(
                f"{self.path}: not a file of torch.save (PyTorch 1.6 or newer), or cut short: "
                f"{clipped(error)}"
            ) from error
        self._file.most = None
        infos = self._zip.infolist()
        names = [info.filename for info in infos]
        if len(set(names)) != len(names):
            raise CheckpointError(f"{self.path}: an archive with repeated names")
        ends = 0
        for info in sorted(infos, key=lambda info: info.header_offset):
            packed = info.compress_type != zipfile.ZIP_STORED or info.flag_bits & _ENCRYPTED
            if packed or info.file_size != info.compress_size or info.header_offset < ends:
                raise CheckpointError(
                    f"{self.path}: an archive with compressed, encrypted or overlapping members, "
                    "which torch.save never writes"
                )
            ends = info.header_offset + _HEADER_BYTES + info.file_size
        if ends > self._size:
            raise CheckpointError(f"{self.path}: an archive with members beyond its end")
        members = {name.partition("/")[2]: info for name, info in zip(names, infos, strict=True)}
        roots = {name.partition("/")[0] if "/" in name else "" for name in names}
        if len(roots) != 1 or "" in roots or "data.pkl" not in members:
            raise CheckpointError(
                f"{self.path}: not a file of torch.save: the archive has no data.pkl in one folder"
            )
        return members

    def _bytes(self, name: str, most: int) -> bytes:
        info = self._members.get(name)
        if info is None:
            raise CheckpointError(f"{self.path}: {name} is missing from the archive")
        if info.file_size > most:
            raise CheckpointError(
                f"{self.path}: {name} has {info.file_size} bytes; at most {most} are read"
            )
        try:
            return self._zip.read(info)
        except _UNREADABLE as error:
            raise CheckpointError(f"{self.path}: {name} is damaged: {clipped(error)}") from error

    def mentioned(self) -> list[str]:
        """The names that the file's pickle mentions; the pickle is not followed."""
        data = self._bytes("data.pkl", MOST_PICKLE_BYTES)
        try:
            return pickles.mentioned(data)
        except CheckpointError as error:
            raise CheckpointError(f"{self.path}: {error}") from error

    def content(self) -> Any:
        """What was saved, as plain data: ``StoredTensor`` for tensors, containers, numbers.

        Configurations of OmegaConf are dictionaries and lists with their interpolations as text.

        Raises:
            CheckpointError: If the file is damaged, or asks for anything but data.
        """
        if "byteorder" in self._members and self._bytes("byteorder", 16) != b"little":
            raise CheckpointError(f"{self.path}: the tensors are not in little-endian order")
        data = self._bytes("data.pkl", MOST_PICKLE_BYTES)
        # What one call may make from little: each text is encoded once, and tensors share little.
        self._encodable, self._readable = len(data), _MOST_SHARED * (self._size + (16 << 20))
        constructors: dict[str, pickles.Constructor] = {
            "collections.OrderedDict": lambda: {},
            "collections.defaultdict": lambda *_: {},
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "torch.Size": _size,
            "torch.device": _device,
            "_codecs.encode": self._encoded,
            "dill._dill._load_type": _type,
        }
        try:
            found = pickles.read_pickle(data, constructors, _NODES, _SYMBOLS, self._persistent)
            return _plain(found, {}, 0)[0]
        except CheckpointError as error:
            raise CheckpointError(f"{self.path}: {error}") from error

    def storage(self, storage: _Storage) -> Tensor:
        """All values of a storage."""
        data = bytearray(self._bytes(f"data/{storage.key}", storage.bytes))
        if storage.dtype == torch.bool and data.translate(None, b"\0\1"):
            raise CheckpointError(f"{self.path}: data/{storage.key} holds more than 0 and 1")
        return torch.frombuffer(data, dtype=storage.dtype)

    def _persistent(self, identifier: Any) -> _Storage:
        parts = (
            identifier if isinstance(identifier, tuple) and len(identifier) == 5 else (None,) * 5
        )
        kind, dtype, key, _location, size = parts
        if kind != "storage" or not isinstance(dtype, Symbol) or dtype.name not in _DTYPES:
            raise CheckpointError(
                f"a stored object {shown(identifier)}, which is no tensor's storage"
            )
        if not _is_name(key) or type(size) is not int or not 0 <= size <= _MOST_ELEMENTS:
            raise CheckpointError(f"a storage {shown(key)} of size {shown(size)}")
        storage, member = _Storage(key, _DTYPES[dtype.name], size), self._members.get(f"data/{key}")
        if member is None or member.file_size != storage.bytes:
            held = "it is missing" if member is None else f"it has {member.file_size}"
            raise CheckpointError(f"data/{key}: expected {storage.bytes} bytes; {held}")
        return storage

    def _tensor(self, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> StoredTensor:
        if not isinstance(storage, _Storage):
            raise CheckpointError(f"a tensor of {shown(storage)}, which is no storage")
        if not isinstance(shape, tuple) or not isinstance(stride, tuple):
            raise CheckpointError(f"a tensor of shape {shown(shape)} and strides {shown(stride)}")
        self._readable -= storage.bytes
        if self._readable < 0:
            raise CheckpointError(
                f"tensors that share their values more than {_MOST_SHARED} times: a small file of "
                "endless tensors"
            )
        return StoredTensor(self, storage, offset, shape, stride)

    def _encoded(self, text: Any, encoding: Any = "latin1") -> bytes:
        if not isinstance(text, str) or encoding != "latin1":
            raise CheckpointError(f"bytes written as {shown(text)} in {shown(encoding)}")
        self._encodable -= len(text)
        if self._encodable < 0:
            raise CheckpointError("more bytes than the file has text for")
        return text.encode("latin1")


class _Archive(io.BufferedReader):
    """A file that gives few bytes at once: a directory of gigabytes is refused, not parsed."""

    most: int | None = _MOST_DIRECTORY_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        if self.most is not None and size is not None and size > self.most:
            raise OSError(f"a directory of {size} bytes; at most {self.most} are read")
        return super().read(size)


def _is_name(text: Any) -> TypeGuard[str]:
    return isinstance(text, str) and len(text) <= _LONGEST_NAME and text.isprintable()


def _size(sizes: Any = ()) -> tuple[Any, ...]:
    if not isinstance(sizes, (tuple, list)) or len(sizes) > _MOST_DIMENSIONS:
        raise CheckpointError(f"a torch.Size of {shown(sizes)}")
    return tuple(sizes)


def _device(kind: Any, index: Any = None) -> str:
    if not _is_name(kind) or index is not None and type(index) is not int:
        raise CheckpointError(f"a device {shown((kind, index))}")
    return kind if index is None else f"{kind}:{index}"


def _type(name: Any) -> Symbol:
    if not _is_name(name):
        raise CheckpointError(f"a type of the name {shown(name)}")
    return Symbol(f"types.{name}")


_Sized = tuple[Any, int]
_UNFINISHED: _Sized = (None, 0)


def _plain(value: Any, seen: dict[int, _Sized], depth: int) -> _Sized:
    """A copy without nodes, and how many values it has for who walks through it.

    What is shared stays shared, so that nothing multiplies here.
    """
    if depth > _DEEPEST:
        raise CheckpointError(f"data nested more than {_DEEPEST} deep")
    if isinstance(value, _Storage):
        raise CheckpointError(f"the storage data/{value.key} without a tensor")
    if isinstance(value, (str, bytes)):
        return value, 1 + len(value) // _CHARACTERS_A_VALUE
    if not isinstance(value, (dict, list, tuple, Node)):
        return value, 1
    made = seen.get(id(value))
    if made is _UNFINISHED:
        raise CheckpointError("data that contains itself")
    if made is None:
        seen[id(value)] = _UNFINISHED
        made = seen[id(value)] = _made(value, seen, depth + 1)
        if made[1] > _MOST_VALUES:
            raise CheckpointError(f"data that unfolds to more than {_MOST_VALUES} values")
    return made


def _made(value: Any, seen: dict[int, _Sized], depth: int) -> _Sized:
    if isinstance(value, dict):
        items = {key: _plain(item, seen, depth) for key, item in value.items()}
        sized = [*items.values(), *(_plain(key, seen, depth) for key in items)]
        return {key: item for key, (item, _) in items.items()}, _total(sized)
    if isinstance(value, (list, tuple)):
        parts = [_plain(item, seen, depth) for item in value]
        return type(value)(item for item, _ in parts), _total(parts)
    state = value.state
    # What OmegaConf notes of types and flags is of no account.
    if value.kind.startswith("omegaconf.base."):
        return None, 1
    field = "_val" if value.kind in _CONFIG_VALUES else "_content"
    if not isinstance(state, Mapping) or field not in state:
        raise CheckpointError(f"an object of {value.kind} without {field}")
    return _plain(state[field], seen, depth)


def _total(parts: Iterable[_Sized]) -> int:
    return 1 + sum(size for _, size in parts)
