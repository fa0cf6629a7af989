"""Configurations that hydra wrote, as plain data: interpolations are followed, never computed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from asd_policy.errors import CheckpointError

_DEEPEST = 16


class Config:
    """A configuration whose interpolations are followed where they only name another value.

    Args:
        tree: The configuration as plain data.
        where: The file, for messages.
    """

    def __init__(self, tree: Mapping[str, Any], where: str) -> None:
        self.tree, self.where = tree, where

    def get(self, path: str, default: Any = None) -> Any:
        """The value at a dotted path, or the default where there is none.

        Raises:
            CheckpointError: If it is an interpolation that would have to be computed.
        """
        value = self._at(path)
        for _ in range(_DEEPEST):
            reference = isinstance(value, str) and re.fullmatch(r"\$\{([\w.]+)\}", value)
            if not reference:
                break
            value = self._at(reference[1])
        if isinstance(value, str) and "${" in value:
            raise CheckpointError(
                f"{self.where}: cfg.{path} is {value!r}, which is not evaluated here"
            )
        return default if value is None else value

    def integer(self, path: str) -> int:
        """A positive integer that must be there.

        Raises:
            CheckpointError: If it is not.
        """
        value = self.get(path)
        if type(value) is not int or value < 1:
            raise CheckpointError(f"{self.where}: cfg.{path}: expected an integer, got {value!r}")
        return value

    def _at(self, path: str) -> Any:
        value: Any = self.tree
        for name in path.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return value
