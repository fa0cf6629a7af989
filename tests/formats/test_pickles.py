"""Pickles as data: honest ones read as Python reads them, hostile ones are named and never run."""

from __future__ import annotations

import cProfile
import importlib
import io
import operator
import os
import pathlib
import pickle
import runpy
import shutil
import struct
import subprocess
import timeit

import pytest
import torch

from asd_policy.errors import CheckpointError
from asd_policy.formats import pickles
from asd_policy.formats.pickles import Node, Symbol, mentioned, read_pickle

CONSTRUCTORS = {"collections.OrderedDict": lambda: {}, "a.pair": lambda left, right: (left, right)}
NODES = frozenset({"a.Node"})
SYMBOLS = frozenset({"builtins.list", "builtins.dict"})


def read(data):
    return read_pickle(
        data, CONSTRUCTORS, NODES, SYMBOLS, lambda identifier: ("stored", identifier)
    )


class Call:
    """Pickles as the call of a function, as a hostile object does with ``__reduce__``."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __call__(self):
        raise AssertionError("pickle wants what it calls to be callable")

    def __reduce__(self):
        return self.function, self.arguments


def text(value):
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def named(module, name):
    return f"c{module}\n{name}\n".encode()


def script(marker):
    path = pathlib.Path(marker).with_name("script.py")
    path.write_text(f"open({marker!r}, 'w').close()")
    return str(path)


# What each would do is to make a file. Python's own reader is shown to do it where it takes no
# more than a call.
GADGETS = {
    "a shell": (lambda m: Call(os.system, f"touch {m}"), f"{os.system.__module__}.system"),
    "a process": (lambda m: Call(subprocess.call, ["touch", m]), "subprocess.call"),
    "eval": (lambda m: Call(eval, f"open({m!r}, 'w').close()"), "builtins.eval"),
    "exec": (lambda m: Call(exec, f"open({m!r}, 'w').close()"), "builtins.exec"),
    "open": (lambda m: Call(open, m, "w"), f"{open.__module__}.open"),
    "getattr": (
        lambda m: Call(Call(getattr, Call(importlib.import_module, "os"), "system"), f"touch {m}"),
        "builtins.getattr",
    ),
    "__import__": (
        lambda m: Call(Call(getattr, Call(__import__, "os"), "system"), f"touch {m}"),
        "builtins.__import__",
    ),
    "import_module": (
        lambda m: Call(
            Call(operator.attrgetter("system"), Call(importlib.import_module, "os")), f"touch {m}"
        ),
        "importlib.import_module",
    ),
    "attrgetter": (
        lambda m: Call(Call(operator.attrgetter("mkdir"), Call(__import__, "os")), m),
        "operator.attrgetter",
    ),
    "methodcaller": (
        lambda m: Call(operator.methodcaller("touch"), pathlib.Path(m)),
        "operator.methodcaller",
    ),
    "map": (
        lambda m: Call(list, Call(map, eval, [f"open({m!r}, 'w').close()"])),
        "builtins.map",
    ),
    "a script": (lambda m: Call(runpy.run_path, script(m)), "runpy.run_path"),
    "a copy": (lambda m: Call(shutil.copy, script(m), m), "shutil.copy"),
    "a timer": (lambda m: Call(timeit.timeit, f"open({m!r}, 'w').close()"), "timeit.timeit"),
    "a profiler": (lambda m: Call(cProfile.run, f"open({m!r}, 'w').close()"), "cProfile.run"),
    "a pickle in bytes": (
        lambda m: Call(pickle.loads, pickle.dumps(Call(os.system, f"touch {m}"))),
        "_pickle.loads",
    ),
    "a pickle in a storage": (
        lambda m: Call(
            torch.storage._load_from_bytes,
            pickle.dumps(Call(os.system, f"touch {m}")),
        ),
        "torch.storage._load_from_bytes",
    ),
    "torch.load": (lambda m: Call(torch.load, m), "torch.serialization.load"),
    "a process that stays": (lambda m: Call(subprocess.Popen, ["touch", m]), "subprocess.Popen"),
}
RUNS = [
    *("a shell", "a process", "eval", "exec", "open", "getattr", "__import__", "import_module"),
    *("attrgetter", "methodcaller", "map", "a script", "a copy", "a profiler", "a pickle in bytes"),
]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("gadget", GADGETS)
def test_what_would_run_is_named_and_not_run(gadget, protocol, tmp_path):
    make, name = GADGETS[gadget]
    marker = tmp_path / "marker"
    # Python 3 writes the names of Python 2 otherwise: __builtin__ for builtins.
    data = pickle.dumps({"weights": [1], "x": make(str(marker))}, protocol, fix_imports=False)
    assert name in mentioned(data)
    with pytest.raises(CheckpointError) as caught:
        read(data)
    # Before protocol 2, what carries the numbers is refused first.
    assert protocol < 2 or "asks for" in str(caught.value)
    with pytest.raises(CheckpointError, match="asks for .*nothing was run"):
        read(pickle.dumps(make(str(marker)), protocol))
    assert not marker.exists()


@pytest.mark.parametrize("gadget", GADGETS)
def test_the_first_name_of_a_gadget_is_in_the_message(gadget, tmp_path):
    data = pickle.dumps(GADGETS[gadget][0](str(tmp_path / "marker")), 2)
    with pytest.raises(CheckpointError) as caught:
        read(data)
    assert any(f"asks for {name}," in str(caught.value) for name in mentioned(data))


@pytest.mark.parametrize("gadget", RUNS)
def test_python_itself_would_have_run_it(gadget, tmp_path):
    marker = tmp_path / "marker"
    data = pickle.dumps(GADGETS[gadget][0](str(marker)))
    made = pickle.loads(data)
    if isinstance(made, io.IOBase):
        made.close()
    assert marker.exists()


def laughs(steps=60):
    """A list of two lists of two lists …, 2^60 in all; every level in the memo."""
    levels = (b"0](h%ch%ceq%c" % (level, level, level + 1) for level in range(steps))
    return b"]q\x00" + b"".join(levels)


P = b"\x80\x02"
NODE = named("a", "Node") + b")\x81"
PAIR = named("a", "pair")
MERSENNE = (2**61 - 1).to_bytes(8, "little")
SPOILED = {
    # Names
    "a name with dots": (b"\x80\x04" + text("a") + text("Node.__class__") + b"\x93.", "__class__,"),
    "a name in another place": (
        b"\x80\x04" + text("collections") + text("OrderedDict\n") + b"\x93.",
        r"asks for 'collections.OrderedDict\\n'",
    ),
    "a name that clears the screen": (
        b"\x80\x04" + text("os") + text("\x1b[2J") + b"\x93.",
        r"asks for 'os.\\x1b\[2J'",
    ),
    "a name of half a character": (
        b"\x80\x04" + text("os") + text("\udc80") + b"\x93.",
        r"asks for 'os.\\udc80'",
    ),
    "a name of a million characters": (
        b"\x80\x04" + text("os") + text("x" * 10**6) + b"\x93.",
        r"asks for 'os.x{97}'…, ",
    ),
    "a name out of data": (b"\x80\x04]" + text("system") + b"\x93.", "made of .a list, 'system'"),
    "a name out of a call": (
        b"\x80\x04" + named("collections", "OrderedDict") + b")R" + text("x") + b"\x93.",
        "made of .a dict, 'x'",
    ),
    "a name of bytes": (b"\x80\x04C\x02osC\x06system\x93.", "made of .b'os', b'system'"),
    "a name of two to the sixty": (P + laughs() + b"q\x7fh\x7f\x93.", "made of .a list, a list"),
    "an empty name": (P + named("", "") + b".", r"asks for \.,"),
    "a name that is not ASCII": (P + "cös\nsystem\n.".encode(), "damaged pickle: 'ascii'"),
    # Calls
    "a symbol that is called": (P + named("builtins", "list") + b")R.", "calls builtins.list,"),
    "a node's class that is called": (P + named("a", "Node") + b")R.", "calls a.Node,"),
    "data that is called": (P + b"})R.", "calls a dict,"),
    "what is called is two to the sixty": (P + laughs() + b")R.", "calls a list,"),
    "a call with data for arguments": (P + PAIR + b"]R.", r"calls a\.pair with a list"),
    "a call with too few arguments": (P + PAIR + b")R.", r"calls a\.pair with \(\)"),
    "a call with too many": (P + PAIR + b"(" + b"N" * 9999 + b"tR.", "with .None, None, .*, …"),
    "a call with arguments in arguments": (P + PAIR + b")\x85\x85R.", r"with \(\(…\)\)"),
    "an object of a symbol": (P + named("builtins", "dict") + b")\x81.", "of builtins.dict,"),
    "an object of data": (P + b"])\x81.", "object of a list,"),
    "an object with arguments": (P + named("a", "Node") + b"N\x85\x81.", "object of a.Node"),
    "INST": (P + b"(" + text("touch x") + b"ios\nsystem\n.", "INST of os.system,"),
    "INST of a known name": (P + b"(icollections\nOrderedDict\n.", "the instruction INST"),
    "OBJ": (P + b"(" + named("os", "system") + text("touch x") + b"o.", "asks for os.system,"),
    "OBJ of a known name": (P + b"(" + named("a", "Node") + b"o.", "the instruction OBJ"),
    "NEWOBJ_EX": (P + named("a", "Node") + b")}\x92.", "the instruction NEWOBJ_EX"),
    "EXT1": (P + b"\x82\x01.", "the instruction EXT1"),
    "EXT2": (P + b"\x83\x01\x01.", "the instruction EXT2"),
    "EXT4": (P + b"\x84\x01\x01\x01\x01.", "the instruction EXT4"),
    "PERSID": (P + b"Px\n.", "the instruction PERSID"),
    "a buffer": (b"\x80\x05\x97.", "the instruction NEXT_BUFFER"),
    "an array of bytes": (b"\x80\x05\x96" + bytes(8) + b".", "the instruction BYTEARRAY8"),
    "DUP": (P + b"N2\x86.", "the instruction DUP"),
    # State
    "the state of a class": (P + named("a", "Node") + b"}b.", "expected a Node, found a.Node"),
    "the state of a function": (PAIR + b"}b.", "expected a Node, found a.pair"),
    "the state of a list": (P + b"]}b.", "expected a Node, found a list"),
    "the state of nothing": (P + b"}b.", "IndexError"),
    # Containers
    "an item for a dictionary": (P + b"}Na.", "expected a list, found a dict"),
    "a key for a list": (P + b"]NNs.", "expected a dict, found a list"),
    "a key for a node": (P + NODE + b"NNs.", "expected a dict"),
    "items for a symbol": (P + named("builtins", "list") + b"(Ne.", "expected a list, found built"),
    "a key without a value": (P + b"}(K\x01u.", "damaged pickle: ValueError"),
    "a list as a key": (P + b"}]Ns.", "the key a list"),
    "a node as a key": (P + b"}" + NODE + b"Ns.", "the key a Node"),
    "a symbol as a key": (P + b"}" + named("builtins", "list") + b"Ns.", "the key builtins.list"),
    # A tuple's hash is computed by recursion without a bound: the process would be gone.
    "a key that is 200,000 deep": (P + b"})" + b"\x85" * 200_000 + b"Ns.", r"the key \(\(…\)\)"),
    "keys of equal hash": (P + b"}(\x8a\x08" + MERSENNE + b"Nu.", "the key 2305843009213693951"),
    "tuples of equal hash": (P + b"}K\x01K\x02\x86Ns.", r"the key \(1, 2\)"),
    "a long key": (P + b"}" + text("x" * 1001) + b"Ns.", "the key 'x{100}'…"),
    "a key of many": (P + b"}(" + text("x") * 9 + b"tNs.", "the key .'x', 'x', .* …"),
    "sets": (b"\x80\x04\x8f.", "the instruction EMPTY_SET"),
    "frozen sets": (b"\x80\x04(\x91.", "the instruction FROZENSET"),
    # The stack and the memo
    "nothing": (b"", "damaged pickle: pickle exhausted"),
    "no end": (P + b"N", "damaged pickle: pickle exhausted"),
    "an end alone": (P + b".", "damaged pickle: ValueError"),
    "two results": (P + b"NN.", "damaged pickle: ValueError"),
    "a mark left over": (P + b"N(N.", "a mark is left over"),
    "a mark as data": (P + b"(\x85.", "too few values"),
    "a mark in the memo": (P + b"(q\x00.", "IndexError"),
    "a call from nothing": (P + b"R.", "IndexError"),
    "a pair of one": (P + b"N\x86.", "too few values"),
    "a tuple without a mark": (P + b"Nt.", "IndexError"),
    "items without a mark": (P + b"]Ne.", "IndexError"),
    "pop of nothing": (P + b"0.", "IndexError"),
    "what was never memoised": (P + b"h\x05.", "KeyError: 5"),
    "an unknown instruction": (P + b"\xff.", "opcode b'.xff' unknown"),
    # Literals
    "text that is cut": (P + b"X\x09\x00\x00\x00abc.", "expected 9 bytes"),
    "text that is no text": (P + b"X\x02\x00\x00\x00\xff\xff.", "'utf-8' codec"),
    "bytes of an exabyte": (
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b".",
        "1152921504606846976",
    ),
    "text of more than there can be": (b"\x80\x04\x8d" + b"\xff" * 8 + b".", "unicodestring8"),
    "a number of a million digits": (P + b"I" + b"9" * 10**6 + b"\n.", "no newline"),
    "a number of a megabyte": (
        P + b"\x8b" + struct.pack("<i", 10**6) + b"9" * 10**6 + b".",
        "LONG4",
    ),
    "a number of a negative length": (P + b"\x8b\xff\xff\xff\xff.", "byte count < 0"),
    "a number in words": (P + b"Ione\n.", "invalid literal"),
    "a place of a million digits": (P + b"Np" + b"9" * 10**6 + b"\n.", "no newline"),
    "a text that is never closed": (P + b"S'abc\n.", "damaged pickle"),
    "evil in text of protocol 0": (b"S'x'\np0\n0cos\nsystem\n(g0\ntR.", "the instruction STRING"),
}


@pytest.mark.parametrize(("data", "message"), SPOILED.values(), ids=SPOILED)
def test_a_spoiled_pickle_is_named(data, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        read(data)
    assert len(str(caught.value)) < 500
    try:
        assert all(len(name) < 500 for name in mentioned(data))
    except CheckpointError as error:
        assert len(str(error)) < 500


def test_too_many_instructions(monkeypatch):
    data = pickle.dumps(list(range(1000)))
    assert read(data) == list(range(1000))
    monkeypatch.setattr(pickles, "MOST_INSTRUCTIONS", 1000)
    for reader in (read, mentioned):
        with pytest.raises(CheckpointError, match="more than 1000 instructions"):
            reader(data)


def test_deep_data_is_made_and_unmade_without_recursion():
    for data in (
        P + b")" + b"\x85" * 60_000 + b".",
        P + b"]" * 60_000 + b"a" * 59_999 + b".",
        P + b"}" + b"K\x01}" * 60_000 + b"s" * 60_000 + b".",
        P + NODE + (named("a", "Node") + b")\x81") * 20_000 + b"b" * 20_000 + b".",
    ):
        assert read(data) is not None


HONEST = {
    "text": ["", "plain", "ünï", "\U0001f916", "x" * 300, "x" * 70_000],
    "numbers": [0, 1, 255, 256, -1, 65536, 2**31, -(2**31), 2**63, 10**100, -(10**100)],
    "floats": [0.0, -0.0, 1.5, float("inf"), 5e-324],
    "constants": (None, True, False),
    "containers": {"a": {}, "b": [], "c": (), 1: (1,), -2: (1, 2), ("d", "e"): (1, 2, 3, (4,))},
}


@pytest.mark.parametrize("protocol", range(2, 6))
def test_honest_data_is_read_as_python_reads_it(protocol):
    data = pickle.dumps(HONEST, protocol)
    assert read(data) == HONEST == pickle.loads(data)
    assert str(read(data)) == str(HONEST)
    assert mentioned(data) == []


@pytest.mark.parametrize("protocol", range(3, 6))
@pytest.mark.parametrize("length", [0, 3, 300])
def test_honest_bytes(protocol, length):
    assert read(pickle.dumps(bytes(length), protocol)) == bytes(length)


def test_what_is_shared_stays_shared():
    shared = ["x"]
    left, right = read(pickle.dumps((shared, shared)))
    assert left is right and left == shared


def test_data_that_holds_itself():
    made = read(b"\x80\x02]q\x00h\x00a.")
    assert made[0] is made


def test_names_calls_and_objects_are_data():
    assert read(P + named("builtins", "list") + b".") == Symbol("builtins.list")
    assert read(P + named("collections", "OrderedDict") + b")R.") == {}
    assert read(P + PAIR + b"K\x01K\x02\x86R.") == (1, 2)
    assert read(P + text("key") + b"Q.") == ("stored", "key")
    node = read(P + NODE + b"}" + text("__setstate__") + named("builtins", "list") + b"sb.")
    assert isinstance(node, Node) and node.kind == "a.Node"
    assert node.state == {"__setstate__": Symbol("builtins.list")}


def test_a_dictionary_keeps_its_items_whatever_state_it_is_given():
    assert read(P + b"}K\x01K\x02s}" + text("items") + b"Nsb.") == {1: 2}


def test_names_out_of_the_memo_are_told():
    memoised = text("os") + b"\x94" + text("innocent") + b"\x94000"
    assert mentioned(b"\x80\x04" + text("x") + b"0" + memoised[:-3] + b"\x93.") == ["os.innocent"]
    assert mentioned(b"\x80\x04" + memoised[:-1] + b"h\x00" + text("system") + b"\x93.") == [
        "os.system"
    ]
    assert mentioned(b"\x80\x04" + text("a") + text("b") + b"N0\x93.") == ["(a computed name)"]
    assert mentioned(b"\x80\x04h\x07" + text("b") + b"\x93.") == ["(a computed name)"]
    assert mentioned(b"\x80\x04\x93.") == ["(a computed name)"]


def test_every_beginning_of_a_pickle_is_an_error():
    data = pickle.dumps({"weights": [1.5, (2, "three")], "x": b"four"}, 4)
    for length in range(len(data)):
        with pytest.raises(CheckpointError, match="damaged pickle"):
            read(data[:length])
