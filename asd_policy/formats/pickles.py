"""Reads pickles as data: nothing that they name is imported, and nothing that they ask for is run.

A pickle is a program for a small stack machine, and two of its instructions call what the program
names. This machine has no callables at all: a name is a ``Symbol``, and a call is looked up in a
table of the few constructors that the files of known projects use, each of which makes plain data
here. Whatever is not in the table is an error that names it.

A file may be made to exhaust its reader as well, so that all work here is linear in the pickle, and
nothing of it is turned into text, hashed or compared before its size is known.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from asd_policy.errors import CheckpointError

MOST_INSTRUCTIONS = 1_000_000
"""Some twenty times what a large checkpoint has: its tensors lie outside of its pickle."""
LONGEST_KEY = 1000
"""Characters of a dictionary's key, or of a name."""
_MOST_ARGUMENTS = 16
_MOST_SHOWN = 100


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

_CONSTANTS: Mapping[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: Mapping[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
# Of protocols 2 to 5, torch's being 2. Those before write numbers as decimal text of any length.
_LITERALS = frozenset(
    "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES "
    "SHORT_BINBYTES BINBYTES8".split()
)
_PUTS = frozenset("BINPUT LONG_BINPUT PUT MEMOIZE".split())
_GETS = frozenset("BINGET LONG_BINGET GET".split())
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def shown(value: Any) -> str:
    """A few words for a message, however large or tangled what a file holds may be."""
    if isinstance(value, Symbol):
        name = value.name
        return name if len(name) <= _MOST_SHOWN and name.isprintable() else shown(name)
    if isinstance(value, (str, bytes)):
        return repr(value[:_MOST_SHOWN]) + ("…" if len(value) > _MOST_SHOWN else "")
    if isinstance(value, tuple):
        # One level: ten thousand of them can hold each other in more ways than can be printed.
        items = ["(…)" if isinstance(item, tuple) else shown(item) for item in value[:8]]
        return f"({', '.join(items)}{', …' if len(value) > 8 else ''})"
    if isinstance(value, int) and value.bit_length() > 64:
        return "an endless number"
    if isinstance(value, (int, float, type(None))):
        return repr(value)
    return f"a {type(value).__name__}"


def clipped(error: Exception) -> str:
    """An error's text, which may quote the file."""
    return str(error)[: 2 * _MOST_SHOWN]


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
        raise CheckpointError(
            f"damaged pickle: {type(error).__name__}: {clipped(error)}"
        ) from error


def mentioned(data: bytes) -> list[str]:
    """The names that a pickle mentions, sorted, as ``module.name``; the pickle is not followed.

    Raises:
        CheckpointError: If it is not a pickle.
    """
    names: set[str] = set()
    memo: dict[int, str | None] = {}
    # What the last two instructions gave, where it is text.
    before: str | None = None
    last: str | None = None
    for name, argument in _instructions(data):
        if name in _PUTS:
            # An index is of 32 bits but for text, of which larger ones could be made to collide.
            index = len(memo) if argument is None else int(argument)
            if not 0 <= index < 1 << 32:
                raise CheckpointError("damaged pickle: a place that no pickle has")
            memo[index] = last
        elif name not in ("PROTO", "FRAME"):
            given = None
            if name in ("GLOBAL", "INST"):
                names.add(argument.replace(" ", ".", 1))
            elif name == "STACK_GLOBAL":
                known = before is not None and last is not None
                names.add(f"{before}.{last}" if known else "(a computed name)")
            elif name in _GETS:
                given = memo.get(int(argument))
            elif isinstance(argument, str) and name != "PERSID":
                given = argument[: 2 * _MOST_SHOWN]
            before, last = last, given
    return sorted(names)


class _Stream(io.BytesIO):
    """Bytes of which a line is short, because what reads a number's digits is quadratic."""

    def readline(self, size: int | None = -1, /) -> bytes:
        return super().readline(LONGEST_KEY)


def _instructions(data: bytes) -> Iterator[tuple[str, Any]]:
    instructions = pickletools.genops(_Stream(data))
    for _ in range(MOST_INSTRUCTIONS):
        try:
            opcode, argument, _position = next(instructions)
        except Exception as error:  # whatever Python's own reader makes of it
            raise CheckpointError(f"damaged pickle: {clipped(error)}") from error
        yield opcode.name, argument
        if opcode.name == "STOP":
            return
    raise CheckpointError(
        f"a pickle of more than {MOST_INSTRUCTIONS} instructions: no checkpoint has as many"
    )


def _entries(items: list[Any]) -> Iterable[tuple[Any, Any]]:
    """Pairs of keys and values; the keys such that finding one among them is quick.

    Equal hashes can be had at will from large numbers and from tuples of numbers, and comparing
    texts takes their length.
    """
    for key in items[::2]:
        texts = key if type(key) is tuple and len(key) <= 8 else (key,)
        short = all(type(text) is str and len(text) <= LONGEST_KEY for text in texts)
        if not short and not (isinstance(key, int) and key.bit_length() < 32):
            raise CheckpointError(
                f"a dictionary with the key {shown(key)}, which is no short text or small number"
            )
    return zip(items[::2], items[1::2], strict=True)


class _Machine:
    """The stack, what lies below its marks, and the memo of a pickle that is being read."""

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
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for name, argument in _instructions(data):
            if name == "STOP":
                if self.below:
                    raise ValueError("a mark is left over")
                (result,) = self.stack
                return result
            self.step(name, argument)
        raise CheckpointError("damaged pickle: it has no end")

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "MARK":
            self.below.append(stack)
            self.stack = []
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            count = _TUPLES[name]
            if len(stack) < count:
                raise IndexError("too few values for a tuple")
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            items = self.pop_to_mark()
            self.stack.append(tuple(items))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self.pop_to_mark()
            self.top(list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            if name == "SETITEM":
                value, key = stack.pop(), stack.pop()
                items = [key, value]
            else:
                items = self.pop_to_mark()
            self.top(dict).update(_entries(items))
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
            of = f" of {shown(Symbol(argument.replace(' ', '.', 1)))}" if name == "INST" else ""
            raise CheckpointError(
                f"a pickle with the instruction {name}{of}, which no checkpoint needs"
            )

    def symbol(self, module: Any, name: Any) -> Symbol:
        if type(module) is not str or type(name) is not str:
            raise CheckpointError(f"the file asks for a name made of {shown((module, name))}")
        symbol = Symbol(f"{module}.{name}")
        known = symbol.name in self.constructors or symbol.name in self.nodes
        if not known and symbol.name not in self.symbols:
            raise CheckpointError(
                f"the file asks for {shown(symbol)}, which is not among what a checkpoint may "
                "hold; nothing was run"
            )
        return symbol

    def call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Symbol) or function.name not in self.constructors:
            raise CheckpointError(
                f"the file calls {shown(function)}, which is nothing to be called"
            )
        try:
            if isinstance(arguments, tuple) and len(arguments) <= _MOST_ARGUMENTS:
                return self.constructors[function.name](*arguments)
        except TypeError:
            pass  # of their number
        raise CheckpointError(f"the file calls {function.name} with {shown(arguments)}")

    def new(self, kind: Any, arguments: Any) -> Any:
        if isinstance(kind, Symbol) and kind.name in self.constructors:
            return self.call(kind, arguments)
        if not isinstance(kind, Symbol) or kind.name not in self.nodes or arguments != ():
            raise CheckpointError(
                f"the file makes an object of {shown(kind)}, which is no known class"
            )
        return Node(kind.name)

    def top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise TypeError(f"expected a {kind.__name__}, found {shown(self.stack[-1])}")
        return self.stack[-1]

    def pop_to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items
