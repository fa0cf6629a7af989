"""Reads pickles as data: nothing that they name is imported, and nothing that they ask for is run.

A pickle is a program for a small stack machine, and two of its instructions call what the program
names. This machine has no callables at all: a name is a ``Symbol``, and a call is looked up in a
table of the few constructors that the files of known projects use, each of which makes plain data
here. Whatever is not in the table is an error that names it.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asd_policy.errors import CheckpointError

MOST_INSTRUCTIONS = 5_000_000
"""Some hundred times what a large checkpoint has: its tensors lie outside of its pickle."""


@dataclass(frozen=True)
class Symbol:
    """A name that a pickle mentions, ``module.name``; never what it stands for."""

    name: str


@dataclass(eq=False)
class Node:
    """An object of a class that a pickle names, as data.

    Attributes:
        kind: The class, as ``module.name``.
        state: What the pickle says of it, usually a dictionary of attributes.
    """

    kind: str
    state: Any = field(default=None, repr=False)


Constructor = Callable[..., Any]

_MARK = object()
_CONSTANTS: Mapping[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: Mapping[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
}
_LITERALS = frozenset(
    "BININT BININT1 BININT2 INT LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BINSTRING "
    "SHORT_BINSTRING".split()
)
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_pickle(
    data: bytes,
    constructors: Mapping[str, Constructor],
    nodes: frozenset[str],
    symbols: frozenset[str],
    persistent: Callable[[Any], Any],
) -> Any:
    """The data that a pickle describes.

    Args:
        data: The pickle.
        constructors: What calls of a name give, by ``module.name``: functions of plain data.
        nodes: Classes whose objects are taken as ``Node``.
        symbols: Further names that may be mentioned, as a type is; they cannot be called.
        persistent: What a persistent identifier stands for.

    Raises:
        CheckpointError: Naming what the pickle asks for that is not in these tables, or what of it
            is damaged.
    """
    machine = _Machine(constructors, nodes, symbols, persistent)
    try:
        return machine.run(data)
    except CheckpointError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"damaged pickle: {type(error).__name__}: {error}") from error


def mentioned(data: bytes) -> list[str]:
    """The names that a pickle mentions, sorted, as ``module.name``; the pickle is not followed.

    Raises:
        CheckpointError: If it is not a pickle.
    """
    names, texts = set(), []
    for name, argument in _instructions(data):
        if name in ("GLOBAL", "INST"):
            names.add(".".join(str(argument).split(" ", 1)))
        elif name == "STACK_GLOBAL":
            # Exactly the last two texts, unless they came out of the memo.
            names.add(".".join(texts[-2:]) if len(texts) >= 2 else "(a computed name)")
        elif isinstance(argument, str):
            texts.append(argument)
    return sorted(names)


def _instructions(data: bytes) -> Sequence[tuple[str, Any]]:
    found = []
    try:
        for opcode, argument, _ in pickletools.genops(io.BytesIO(data)):
            found.append((opcode.name, argument))
            if len(found) > MOST_INSTRUCTIONS:
                raise CheckpointError(
                    f"a pickle of more than {MOST_INSTRUCTIONS} instructions: no checkpoint has as "
                    "many"
                )
    except (ValueError, IndexError, OverflowError, UnicodeDecodeError) as error:
        raise CheckpointError(f"damaged pickle: {error}") from error
    return found


class _Machine:
    """The stack, the marks and the memo of a pickle that is being read."""

    def __init__(
        self,
        constructors: Mapping[str, Constructor],
        nodes: frozenset[str],
        symbols: frozenset[str],
        persistent: Callable[[Any], Any],
    ) -> None:
        self.constructors, self.nodes, self.symbols = constructors, nodes, symbols
        self.persistent = persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for name, argument in _instructions(data):
            if name == "STOP":
                (result,) = self.stack
                return result
            self.step(name, argument)
        raise CheckpointError("damaged pickle: it has no end")

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memo[int(argument)])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            count = _TUPLES[name]
            if len(stack) < count:
                raise IndexError("too few values for a tuple")
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("TUPLE", "LIST"):
            items = self.pop_to_mark()
            stack.append(tuple(items) if name == "TUPLE" else items)
        elif name == "DICT":
            items = self.pop_to_mark()
            stack.append(dict(zip(items[::2], items[1::2], strict=True)))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self.pop_to_mark()
            self.top(list).extend(items)
        elif name == "ADDITEMS":
            items = self.pop_to_mark()
            self.top(set).update(items)
        elif name in ("SETITEM", "SETITEMS"):
            if name == "SETITEM":
                value, key = stack.pop(), stack.pop()
                items = [key, value]
            else:
                items = self.pop_to_mark()
            self.top(dict).update(zip(items[::2], items[1::2], strict=True))
        elif name == "GLOBAL":
            stack.append(self.symbol(*str(argument).split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(self.symbol(module, attribute))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(self.call(function, arguments))
        elif name == "NEWOBJ":
            arguments, kind = stack.pop(), stack.pop()
            stack.append(self.new(kind, arguments))
        elif name == "BUILD":
            state = stack.pop()
            # Attributes of a dictionary (torch's versions of modules) say nothing of its content.
            if not isinstance(stack[-1], dict):
                self.top(Node).state = state
        elif name == "BINPERSID":
            stack.append(self.persistent(stack.pop()))
        elif name == "POP":
            stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise CheckpointError(
                f"a pickle with the instruction {name}, which no checkpoint needs"
            )

    def symbol(self, module: Any, name: Any) -> Symbol:
        symbol = Symbol(f"{module}.{name}")
        known = symbol.name in self.constructors or symbol.name in self.nodes
        if not known and symbol.name not in self.symbols:
            raise CheckpointError(
                f"the file asks for {symbol.name}, which is not among what a checkpoint may hold; "
                "nothing was run"
            )
        return symbol

    def call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Symbol) or function.name not in self.constructors:
            raise CheckpointError(f"the file calls {function!r}, which is nothing to be called")
        if not isinstance(arguments, tuple):
            raise TypeError(f"the arguments of {function.name} are no tuple")
        return self.constructors[function.name](*arguments)

    def new(self, kind: Any, arguments: Any) -> Any:
        if isinstance(kind, Symbol) and kind.name in self.constructors:
            return self.call(kind, arguments)
        if not isinstance(kind, Symbol) or kind.name not in self.nodes or arguments != ():
            raise CheckpointError(f"the file makes an object of {kind!r}, which is no known class")
        return Node(kind.name)

    def top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise TypeError(f"expected a {kind.__name__}, found {type(self.stack[-1]).__name__}")
        return self.stack[-1]

    def pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]
