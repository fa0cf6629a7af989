"""Reads what ``torch.save`` wrote, safely: data alone, and tensors only when they are wanted.

The container is a zip archive whose members are stored, never compressed: a pickle, and beside it
the bytes of each tensor. Files from before PyTorch 1.6 are another format, which is not read.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from asd_policy.errors import CheckpointError
from asd_policy.formats import pickles
from asd_policy.formats.pickles import Node, Symbol

MOST_BYTES = 8 << 30
"""Largest file that is opened."""
MOST_PICKLE_BYTES = 64 << 20
_MOST_MEMBERS = 100_000
_DEEPEST = 64

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
    *(f"builtins.{name}" for name in "dict list int float bool str bytes tuple object".split()),
}


@dataclass(frozen=True)
class _Storage:
    """The bytes of one or several tensors, by their name in the archive."""

    key: str
    dtype: torch.dtype
    size: int


class StoredTensor:
    """A tensor that lies in a file, of which the shape is known and the values are not read yet.

    Attributes:
        shape: Its shape.
        dtype: Its type.
    """

    def __init__(
        self, file: TorchFile, storage: _Storage, offset: int, shape: tuple, stride: tuple
    ) -> None:
        numbers = (offset, *shape, *stride)
        if len(shape) != len(stride) or any(type(n) is not int or n < 0 for n in numbers):
            raise CheckpointError(f"a tensor of shape {shape!r} and strides {stride!r}")
        extent = sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        empty = 0 in shape
        # More elements than are stored, as an expanded tensor has, would be made from nothing.
        if not empty and (offset + extent >= storage.size or math.prod(shape) > storage.size):
            raise CheckpointError(
                f"a tensor of shape {shape} does not fit into its storage of {storage.size} values"
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
            size = self.path.stat().st_size
            if size > MOST_BYTES:
                raise CheckpointError(f"{path}: {size} bytes; at most {MOST_BYTES} are opened")
            self._zip = zipfile.ZipFile(self.path)
        except FileNotFoundError as error:
            raise CheckpointError(f"{path}: no such file") from error
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise CheckpointError(
                f"{path}: not a file of torch.save (PyTorch 1.6 or newer), or cut short: {error}"
            ) from error
        try:
            self._members = self._checked_members(size)
        except BaseException:
            self._zip.close()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file; tensors that were not read cannot be read any more."""
        self._zip.close()

    def _checked_members(self, size: int) -> dict[str, zipfile.ZipInfo]:
        """The members by their name inside the archive's one folder."""
        infos = self._zip.infolist()
        names = [info.filename for info in infos]
        if len(infos) > _MOST_MEMBERS or len(set(names)) != len(names):
            raise CheckpointError(f"{self.path}: an archive with too many or repeated names")
        packed = [i.filename for i in infos if i.compress_type != zipfile.ZIP_STORED]
        if packed or sum(info.file_size for info in infos) > size:
            raise CheckpointError(
                f"{self.path}: an archive with compressed or overlapping members, which torch.save "
                "never writes"
            )
        roots = {name.split("/", 1)[0] for name in names}
        members = {i.filename.split("/", 1)[-1]: i for i in infos}
        if len(roots) != 1 or "data.pkl" not in members:
            raise CheckpointError(
                f"{self.path}: not a file of torch.save: the archive has no data.pkl in one folder"
            )
        return members

    def _bytes(self, name: str, most: int) -> bytes:
        info = self._members.get(name)
        if info is None:
            raise CheckpointError(f"{self.path}: {name} is missing from the archive")
        if info.file_size > most:
            raise CheckpointError(f"{self.path}: {name} has {info.file_size} bytes, not {most}")
        try:
            return self._zip.read(info)
        except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{self.path}: {name} is damaged: {error}") from error

    def mentioned(self) -> list[str]:
        """The names that the file's pickle mentions; the pickle is not followed."""
        return pickles.mentioned(self._bytes("data.pkl", MOST_PICKLE_BYTES))

    def content(self) -> Any:
        """What was saved, as plain data: ``StoredTensor`` for tensors, containers, numbers.

        Configurations of OmegaConf are dictionaries and lists with their interpolations as text.

        Raises:
            CheckpointError: If the file is damaged, or asks for anything but data.
        """
        if "byteorder" in self._members and self._bytes("byteorder", 16) != b"little":
            raise CheckpointError(f"{self.path}: the tensors are not in little-endian order")
        constructors = {
            "collections.OrderedDict": _ordered,
            "collections.defaultdict": lambda *_: {},
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "torch.Size": lambda sizes=(): tuple(sizes),
            "torch.device": lambda *place: ":".join(map(str, place)),
            "_codecs.encode": _encoded,
            "dill._dill._load_type": lambda name: Symbol(f"types.{name}"),
        }
        data = self._bytes("data.pkl", MOST_PICKLE_BYTES)
        try:
            found = pickles.read_pickle(data, constructors, _NODES, _SYMBOLS, self._persistent)
            return _plain(found, {}, 0)
        except CheckpointError as error:
            raise CheckpointError(f"{self.path}: {error}") from error

    def storage(self, storage: _Storage) -> Tensor:
        """All values of a storage."""
        expected = storage.size * storage.dtype.itemsize
        data = self._bytes(f"data/{storage.key}", expected)
        if len(data) != expected:
            raise CheckpointError(
                f"{self.path}: data/{storage.key} has {len(data)} bytes instead of {expected}"
            )
        return torch.frombuffer(bytearray(data), dtype=storage.dtype)

    def _persistent(self, identifier: Any) -> _Storage:
        kind, dtype, key, _location, size = identifier
        if kind != "storage" or not isinstance(dtype, Symbol) or dtype.name not in _DTYPES:
            raise CheckpointError(f"a stored object {identifier!r}, which is no tensor's storage")
        if not isinstance(key, str) or type(size) is not int or size < 0:
            raise CheckpointError(f"a storage {key!r} of size {size!r}")
        return _Storage(key, _DTYPES[dtype.name], size)

    def _tensor(self, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> StoredTensor:
        if not isinstance(storage, _Storage):
            raise CheckpointError(f"a tensor of {storage!r}, which is no storage")
        if not isinstance(shape, tuple) or not isinstance(stride, tuple):
            raise CheckpointError(f"a tensor of shape {shape!r} and strides {stride!r}")
        return StoredTensor(self, storage, offset, shape, stride)


def _ordered(items: Any = ()) -> dict[Any, Any]:
    return {key: value for key, value in items}


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise CheckpointError(f"bytes written as {type(text).__name__} in {encoding!r}")
    return text.encode("latin1")


def _plain(value: Any, seen: dict[int, Any], depth: int) -> Any:
    """A copy without nodes; what is shared stays shared, so that nothing can multiply."""
    if depth > _DEEPEST:
        raise CheckpointError(f"data nested more than {_DEEPEST} deep")
    if not isinstance(value, (dict, list, tuple, Node)):
        return value
    if id(value) in seen:
        if seen[id(value)] is _UNFINISHED:
            raise CheckpointError("data that contains itself")
        return seen[id(value)]
    seen[id(value)] = _UNFINISHED
    made = _made(value, seen, depth + 1)
    seen[id(value)] = made
    return made


_UNFINISHED = object()


def _made(value: Any, seen: dict[int, Any], depth: int) -> Any:
    if isinstance(value, dict):
        return {_key(key): _plain(item, seen, depth) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item, seen, depth) for item in value)
    state = value.state
    # What OmegaConf notes of types and flags is of no account.
    if value.kind.startswith("omegaconf.base."):
        return None
    field = "_val" if value.kind in _CONFIG_VALUES else "_content"
    if not isinstance(state, Mapping) or field not in state:
        raise CheckpointError(f"a {value.kind} without {field}")
    return _plain(state[field], seen, depth)


def _key(key: Any) -> Any:
    return _plain(key, {}, 0) if isinstance(key, Node) else key
