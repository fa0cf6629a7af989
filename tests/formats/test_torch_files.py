"""Files of torch.save: honest ones are read bit for bit, hostile or broken ones are named."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import pytest
import torch
from test_pickles import GADGETS, Call, laughs, named, text
from torch import Tensor, nn

from asd_policy.errors import CheckpointError
from asd_policy.formats import torch_files
from asd_policy.formats.pickles import Symbol
from asd_policy.formats.torch_files import StoredTensor, TorchFile

FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures"
EXAMPLES = sorted((*FIXTURES.rglob("*.ckpt"), *FIXTURES.rglob("*.pth")))


def values(content):
    """The content with all tensors read."""
    if isinstance(content, StoredTensor):
        return content.read()
    if isinstance(content, dict):
        return {key: values(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(values(value) for value in content)
    return content


def load(path):
    with TorchFile(path) as file:
        return values(file.content())


def same(left, right):
    if isinstance(right, Tensor):
        assert (left.dtype, left.shape) == (right.dtype, right.shape) and left.is_contiguous()
        assert torch.equal(left.view(-1).view(torch.uint8), bits(right))
    elif isinstance(right, dict):
        assert list(left) == list(right)
        for key, value in right.items():
            same(left[key], value)
    elif isinstance(right, (list, tuple)):
        assert isinstance(left, (list, tuple)) and len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            same(one, other)
    else:
        assert type(left) is type(right) and left == right


def bits(tensor):
    return tensor.detach().clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8)


def honest():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 6, generator=generator)
    return OrderedDict(
        float32=base,
        float64=base.double(),
        float16=base.half(),
        bfloat16=base.bfloat16(),
        int64=torch.tensor([2**62, -1]),
        int8=torch.tensor([-128, 127], dtype=torch.int8),
        bool=torch.tensor([True, False, True]),
        odd=torch.tensor([float("nan"), float("inf"), -0.0]),
        shared=base,
        transposed=base.t(),
        part=base[1:3, ::2],
        one=torch.tensor(3.5),
        empty=torch.zeros(0, 3),
        parameter=nn.Parameter(torch.ones(2)),
        nested={"n": [1, -5, 3.5, None, True, "text", (1, 2)], 3: b"\x00\xff", "s": base.shape},
    )


@pytest.mark.parametrize("protocol", range(2, 6))
def test_what_torch_saves_is_read_bit_for_bit(tmp_path, protocol):
    torch.save(honest(), tmp_path / "a.pt", pickle_protocol=protocol)
    same(load(tmp_path / "a.pt"), honest())
    same(load(tmp_path / "a.pt"), torch.load(tmp_path / "a.pt", weights_only=protocol == 2))


def test_a_module_and_an_optimizer_are_read_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(3, 4, 3), nn.GroupNorm(2, 4), nn.BatchNorm1d(4), nn.GRU(4, 2))
    moments = [
        {"step": torch.tensor(3.0), "exp_avg": torch.randn(p.shape)} for p in net[0].parameters()
    ]
    groups = [{"lr": 1e-4, "betas": (0.95, 0.999), "fused": None, "params": [0, 1]}]
    content = {
        "model": net.state_dict(),
        "optimizer": {"state": dict(enumerate(moments)), "param_groups": groups},
        "epoch": 3,
    }
    torch.save(content, tmp_path / "a.pt")
    same(load(tmp_path / "a.pt"), content)


def test_tensors_are_known_before_they_are_read_and_own_their_memory(tmp_path):
    torch.save(honest(), tmp_path / "a.pt")
    with TorchFile(tmp_path / "a.pt") as file:
        content = file.content()
        assert content["transposed"].shape == (6, 4)
        assert repr(content["empty"]) == "StoredTensor(torch.float32, (0, 3))"
        first, second = content["float32"].read(), content["shared"].read()
        assert torch.equal(first, second) and first.data_ptr() != second.data_ptr()
        assert content["part"].read().untyped_storage().nbytes() == 24
    with pytest.raises(CheckpointError, match="data/0 is damaged: .*closed"):
        content["float32"].read()


def test_types_and_devices_are_names(tmp_path):
    content = {"a": defaultdict(list, x=1), "b": torch.device("cuda:1"), "c": torch.device("cpu")}
    torch.save({**content, "d": [int, str, dict]}, tmp_path / "a.pt")
    assert load(tmp_path / "a.pt") == {
        **{"a": {"x": 1}, "b": "cuda:1", "c": "cpu"},
        "d": [Symbol(f"__builtin__.{name}") for name in ("long", "unicode", "dict")],
    }


@pytest.mark.skipif(not EXAMPLES, reason="needs ../shared/fixtures")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_checkpoints_of_known_projects_are_read(path):
    with TorchFile(path) as file:
        assert all(name.split(".")[0] not in ("builtins", "os") for name in file.mentioned())
        content = values(file.content())
    assert isinstance(content, dict) and content
    if "cfg" not in content:  # without OmegaConf, torch reads it as well
        same(content, torch.load(path, weights_only=True, map_location="cpu"))
    else:
        assert isinstance(content["cfg"]["policy"]["_target_"], str)
        assert not any(t.isnan().any() for t in content["state_dicts"]["ema_model"].values())


# Hostile files


class Stored:
    """Pickles as a persistent identifier."""

    def __init__(self, *parts):
        self.parts = parts


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        return obj.parts if isinstance(obj, Stored) else None


def pickled(content):
    stream = io.BytesIO()
    _Pickler(stream, 2).dump(content)
    return stream.getvalue()


def archive(path, data, members=None, root="archive/", **options):
    """An archive of torch's form, with a storage of four float32."""
    members = {"data/0": struct.pack("<4f", 1, 2, 3, 4), **(members or {})}
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, content in {"data.pkl": data, "byteorder": b"little", **members}.items():
            file.writestr(root + name, content)
    return path


def storage(size=4, key="0", kind=torch.FloatStorage, name="storage"):
    return Stored(name, kind, key, "cpu", size)


def tensor(offset=0, shape=(2, 2), stride=(2, 1), stored=None):
    arguments = (storage() if stored is None else stored, offset, shape, stride)
    return Call(torch._utils._rebuild_tensor_v2, *arguments, False, OrderedDict())


def test_the_archive_of_these_tests_is_read(tmp_path):
    path = archive(tmp_path / "a.pt", pickled({"x": tensor(), "y": tensor(1, (3,), (1,))}))
    same(load(path), {"x": torch.tensor([[1.0, 2], [3, 4]]), "y": torch.tensor([2.0, 3, 4])})


@pytest.mark.parametrize("gadget", GADGETS)
def test_a_file_that_would_run_something_is_named_and_not_run(gadget, tmp_path):
    make, name = GADGETS[gadget]
    marker = tmp_path / "marker"
    content = {"state_dict": {"w": torch.ones(2)}, "x": make(str(marker))}
    torch.save(content, tmp_path / "a.pt", pickle_protocol=4)
    with TorchFile(tmp_path / "a.pt") as file:
        assert name in file.mentioned()
        with pytest.raises(CheckpointError, match=r"a\.pt: the file asks for .*nothing was run"):
            file.content()
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a\.pt: the file asks for .*nothing was run"):
        load(tmp_path / "a.pt")
    assert not marker.exists()


def ordered(*arguments):
    return Call(OrderedDict, *arguments)


def encoded(*arguments):
    return Call(__import__("_codecs").encode, *arguments)


P = b"\x80\x02"
CONFIG = named("omegaconf.dictconfig", "DictConfig") + b")\x81"
LIST = named("omegaconf.listconfig", "ListConfig") + b")\x81"
LOAD_TYPE = named("dill._dill", "_load_type")
DEVICE, SIZE = named("torch", "device"), named("torch", "Size")
DEEP = b"]" * 80 + b"a" * 79
ENCODE = named("_codecs", "encode") + b"q\x01" + text("x" * 1000) + text("latin1") + b"\x86q\x02R"
LIES = {
    # Tensors
    "more than is stored": (tensor(shape=(3, 2)), r"shape \(3, 2\) does not fit .* of 4 values"),
    "beyond what is stored": (tensor(offset=1), "does not fit"),
    "far beyond what is stored": (tensor(offset=1 << 39), "does not fit"),
    "strides beyond what is stored": (tensor(stride=(3, 1)), "does not fit"),
    "expanded without an end": (tensor(shape=(1 << 40,), stride=(0,)), "does not fit"),
    "expanded a little": (tensor(shape=(5,), stride=(0,)), "does not fit"),
    "expanded in all ways": (tensor(shape=(2,) * 64, stride=(0,) * 64), "does not fit"),
    "a negative size": (tensor(shape=(-2, -2)), r"shape \(-2, -2\), strides"),
    "a negative stride": (tensor(offset=3, shape=(4,), stride=(-1,)), r"strides \(-1\)"),
    "a negative offset": (tensor(offset=-1), "offset -1"),
    "a size that is true": (tensor(shape=(True, 4)), r"shape \(True, 4\)"),
    "a size that is a fraction": (tensor(shape=(2.0, 2)), r"shape \(2\.0, 2\)"),
    "a size that is text": (tensor(shape=("2", 2)), r"shape \('2', 2\)"),
    "an offset that is text": (tensor(offset="0"), "offset '0'"),
    "sizes in a list": (tensor(shape=[2, 2]), "shape a list"),
    "strides that are nothing": (tensor(stride=None), "strides None"),
    "fewer strides than sizes": (tensor(stride=(1,)), r"strides \(1\)"),
    "too many sizes": (tensor(shape=(1,) * 65, stride=(1,) * 65), r"shape \(1, 1, .*…\)"),
    "an empty tensor of all memory": (tensor(shape=(0, 1 << 62), stride=(1, 1)), "shape .0, 46"),
    "an empty tensor of all": (
        tensor(shape=(0, 1 << 39, 1 << 39), stride=(1, 1, 1)),
        "does not fit",
    ),
    "a size of 600 digits": (tensor(shape=(10**600, 2)), r"shape \(an endless number, 2\)"),
    "a size of 6000 digits": (tensor(shape=(10**6000, 2)), "instruction LONG4"),
    "a tensor without a storage": (tensor(stored={}), "a tensor of a dict, which is no storage"),
    "a tensor of a tensor": (tensor(stored=tensor()), "a tensor of a StoredTensor"),
    "a tensor of a type": (tensor(stored=dict), "a tensor of __builtin__.dict"),
    "a tensor of nothing": (Call(torch._utils._rebuild_tensor_v2), "_rebuild_tensor_v2 with ()"),
    "a parameter of nothing": (Call(torch._utils._rebuild_parameter), "_rebuild_parameter with"),
    # Storages
    "more values than bytes": (
        tensor(stored=storage(5)),
        "data/0: expected 20 bytes; it has 16",
    ),
    "fewer values than bytes": (tensor(stored=storage(3)), "expected 12 bytes; it has 16"),
    "wider values than bytes": (
        tensor(stored=storage(kind=torch.DoubleStorage)),
        "expected 32 bytes; it has 16",
    ),
    "a storage of all memory": (tensor(stored=storage(1 << 62)), "of size 4611686018427387904"),
    "a storage of a negative size": (tensor(stored=storage(-4)), "storage '0' of size -4"),
    "a storage of true": (tensor(stored=storage(True)), "of size True"),
    "a storage that is missing": (tensor(stored=storage(key="7")), "data/7: .* it is missing"),
    "a storage above": (tensor(stored=storage(key="../data.pkl")), "data/../data.pkl: .* missing"),
    "a storage from elsewhere": (tensor(stored=storage(key="/etc/passwd")), "it is missing"),
    "a storage of a number": (tensor(stored=storage(key=0)), "a storage 0 of size 4"),
    "a storage of an endless name": (tensor(stored=storage(key="0" * 10**6)), "'0{100}'…"),
    "a storage on two lines": (tensor(stored=storage(key="0\n")), r"a storage '0\\n'"),
    "a storage of complex numbers": (
        tensor(stored=storage(kind=torch.ComplexFloatStorage)),
        "asks for torch.ComplexFloatStorage",
    ),
    "a storage of bytes": (
        tensor(stored=storage(kind=torch.UntypedStorage)),
        "asks for torch.storage.UntypedStorage",
    ),
    "a storage of a type": (tensor(stored=storage(kind=dict)), "which is no tensor's storage"),
    "a storage of text": (tensor(stored=storage(kind="FloatStorage")), "no tensor's storage"),
    "a stored module": (Stored("module", nn.Linear, "a.py", "x"), "asks for torch.nn"),
    "a stored thing": (storage(name="thing"), r"object \('thing', torch.FloatStorage, '0', "),
    "a stored four": (Stored("storage", torch.FloatStorage, "0", "cpu"), "no tensor's storage"),
    "a storage without a tensor": ([storage()], "the storage data/0 without a tensor"),
    # Constructors
    "ordered items": (ordered([("a", 1)]), "calls collections.OrderedDict with .a list"),
    "ordered text": (ordered("ab"), "calls collections.OrderedDict with .'ab'"),
    "an ordered pair": (ordered([], []), "calls collections.OrderedDict with"),
    "another codec": (encoded("abc", "rot13"), "bytes written as 'abc' in 'rot13'"),
    "a codec that unpacks": (encoded("abc", "zip"), "in 'zip'"),
    "a codec that escapes": (encoded("abc", "unicode_escape"), "in 'unicode_escape'"),
    "a codec out of a list": (encoded("abc", ["latin1"]), "in a list"),
    "bytes of bytes": (encoded(("abc",), "latin1"), r"written as \('abc'\)"),
    "bytes of what is no byte": (encoded("\u20ac", "latin1"), "UnicodeEncodeError"),
    "a size of text": (Call(torch.Size, "ab"), "torch.Size of 'ab'"),
    "a size of many": (Call(torch.Size, list(range(99))), "torch.Size of a list"),
    "a device of a list": (Call(torch.device, ["cpu"]), "a device .a list, None"),
    "a device of much": (Call(torch.device, "c" * 101), "a device .'c{100}'…"),
    "a device with text": (Call(torch.device, "cuda", "1"), "a device .'cuda', '1'"),
    "the device of all": (Call(torch.device, "a", 1, 2), "calls torch.device with"),
    # Data that is no tree
    "data in data": (P + DEEP + b".", "nested more than 64 deep"),
    "data in itself": (P + b"]q\x00h\x00a.", "data that contains itself"),
    "a pair in itself": (P + b"]q\x00h\x00N\x86a.", "data that contains itself"),
    "a configuration in itself": (
        P + CONFIG + b"q\x00}" + text("_content") + b"h\x00sb.",
        "data that contains itself",
    ),
    "lists of two lists": (P + laughs() + b".", "unfolds to more than 1000000 values"),
    "one text for all": (
        P + b"](" + text("x" * 10**6) + b"q\x00" + b"h\x00" * 200 + b"e.",
        "unfolds to more than",
    ),
    "a configuration of nothing": (P + CONFIG + b".", "DictConfig without _content"),
    "a configuration of a list": (P + LIST + b"]b.", "ListConfig without _content"),
    "a configuration as a key": (P + b"}" + CONFIG + b"Ns.", "the key a Node"),
    "a configuration with arguments": (
        P + named("omegaconf.dictconfig", "DictConfig") + b"N\x85\x81.",
        "an object of omegaconf.dictconfig.DictConfig",
    ),
    # Names that are made from data
    "a type that is called": (
        P + LOAD_TYPE + text("FunctionType") + b"\x85R)R.",
        "calls types.FunctionType, which is nothing to be called",
    ),
    "a type that is made": (P + LOAD_TYPE + text("CodeType") + b"\x85R)\x81.", "types.CodeType"),
    "a type of two to the sixty": (P + LOAD_TYPE + laughs() + b"\x85R.", "of the name a list"),
    "a type of much": (P + LOAD_TYPE + text("x" * 101) + b"\x85R.", "a type of the name 'x{100}'…"),
    "bytes again and again": (P + b"](" + ENCODE + b"h\x01h\x02R" * 9 + b"e.", "more bytes than"),
    "a list that is measured": (P + SIZE + b"](" + b"N" * 999 + b"e\x85R.", "torch.Size of a list"),
}


@pytest.mark.parametrize(("content", "message"), LIES.values(), ids=LIES)
def test_a_file_that_lies_is_named(tmp_path, content, message):
    data = content if isinstance(content, bytes) else pickled(content)
    path = archive(tmp_path / "a.pt", data)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 500


def test_a_truth_that_is_neither_true_nor_false(tmp_path):
    lie = tensor(stored=storage(16, kind=torch.BoolStorage), shape=(16,), stride=(1,))
    with pytest.raises(CheckpointError, match="data/0 holds more than 0 and 1"):
        load(archive(tmp_path / "a.pt", pickled(lie)))


def test_a_small_file_of_endless_tensors(tmp_path):
    base = torch.zeros(1 << 20)
    torch.save([base[i : i + 1] for i in range(20)], tmp_path / "a.pt")
    assert len(load(tmp_path / "a.pt")) == 20
    torch.save([base[i:] for i in range(100)], tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="share their values more than 16 times"):
        load(tmp_path / "a.pt")


def rewrite(change, **options):
    """The archive with its members changed, and all checksums right."""

    def spoil(path):
        with zipfile.ZipFile(path) as file:
            members = {name: file.read(name) for name in file.namelist()}
        change(members)
        with zipfile.ZipFile(path, "w", **options) as file:
            for name, content in members.items():
                file.writestr(name, content)

    return spoil


def edit(change):
    """The bytes of the file changed."""

    def spoil(path):
        path.write_bytes(change(bytearray(path.read_bytes())))

    return spoil


def patch(find, replacement, last=False):
    def change(data):
        at = data.rfind(find) if last else data.find(find)
        assert at >= 0
        data[at : at + len(replacement)] = replacement
        return data

    return edit(change)


def directory(offset, replacement, member=b"a/data/0", last=True):
    """The entry of a member in the archive's directory changed, from a byte of it on."""

    def change(data):
        at = data.rfind(member) - 46 + offset
        assert at > 0
        data[at : at + len(replacement)] = replacement
        return data

    return edit(change)


def end(offset, replacement):
    """The archive's end changed, the 22 bytes that say where its directory is."""

    def change(data):
        at = len(data) - 22 + offset
        data[at : at + len(replacement)] = replacement
        return data

    def spoil(path):
        rewrite(lambda members: None)(path)  # torch writes a second end, of 64 bits
        edit(change)(path)

    return spoil


def twice(path):
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate name"):
        file.writestr("a/data.pkl", P + b"N.")


def hidden_twice(path):
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("a/data.pklX", P + b"N.")
    edit(lambda data: data.replace(b"a/data.pklX", b"a/data.pkl\0"))(path)


def a_device(path):
    path.unlink()
    os.mkfifo(path)


def a_folder(path):
    path.unlink()
    path.mkdir()


def legacy(path):
    torch.save(honest(), path, _use_new_zipfile_serialization=False)


def named_pickle(data):
    return lambda path: path.write_bytes(data)


def wide(path):
    """An end of the archive that has 64 bits, and says that its directory is endless."""
    data = path.read_bytes()
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 9, 9, 1 << 62, 1 << 62)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(data) - 22, 1)
    path.write_bytes(data[:-22] + record + locator + data[-22:])


def large_directory(path):
    data = path.read_bytes()
    padding = bytes(5 << 20)
    path.write_bytes(data[:-22] + padding + data[-22:-10] + struct.pack("<2LH", 5 << 20, 0, 0))


NOT = "not a file of torch.save"
ODD = "compressed, encrypted or overlapping"
BROKEN = {
    "nothing": (lambda path: path.unlink(), "no such file"),
    "a folder": (a_folder, "is no file"),
    "a pipe": (a_device, "is no file"),
    "an empty file": (named_pickle(b""), NOT),
    "a text": (named_pickle(b"<html>404</html>" * 99), NOT),
    "a bare pickle": (named_pickle(pickle.dumps(Call(os.system, "touch marker"))), NOT),
    "a file of before 1.6": (legacy, r"PyTorch 1\.6 or newer"),
    "an archive of nothing": (rewrite(dict.clear), "no data.pkl in one folder"),
    "half a file": (edit(lambda data: data[: len(data) // 2]), NOT),
    "all but a byte": (edit(lambda data: data[:-1]), NOT),
    "all but the first byte": (edit(lambda data: data[1:]), ODD),
    "no pickle": (rewrite(lambda m: m.pop("a/data.pkl")), "no data.pkl in one folder"),
    "two folders": (rewrite(lambda m: m.update({"b/data.pkl": b""})), "no data.pkl in one folder"),
    "no folder": (
        rewrite(lambda m: [m.update({n[2:]: m.pop(n)}) for n in list(m)]),
        "no data.pkl in one folder",
    ),
    "a file beside the folder": (rewrite(lambda m: m.update({"a": b""})), "in one folder"),
    "names from the root": (
        rewrite(lambda m: [m.update({n[1:]: m.pop(n)}) for n in list(m)]),
        "no data.pkl in one folder",
    ),
    "a deflated bomb": (
        rewrite(lambda m: m.update({"a/data/0": bytes(1 << 26)}), compression=zipfile.ZIP_DEFLATED),
        ODD,
    ),
    "a packed archive": (rewrite(lambda m: None, compression=zipfile.ZIP_LZMA), ODD),
    "a compression that nobody knows": (directory(10, b"\x63\x00"), ODD),
    "an encrypted member": (directory(8, b"\x01\x08"), ODD),
    "a patched member": (directory(8, b"\x20\x08", b"a/data.pkl"), "data.pkl is damaged"),
    "a member of another size unpacked": (directory(24, struct.pack("<L", 1 << 31)), ODD),
    "a member of all": (directory(20, struct.pack("<2L", 1 << 31, 1 << 31)), ODD + "|beyond"),
    "a member in another": (directory(42, struct.pack("<L", 10)), ODD),
    "members in one place": (directory(42, struct.pack("<L", 0)), ODD),
    "a member beyond the end": (directory(42, struct.pack("<L", 1 << 31)), "beyond its end"),
    "a member before the beginning": (end(16, struct.pack("<L", 1 << 20)), ODD),
    "names twice": (twice, "repeated names"),
    "names twice, one with a zero": (hidden_twice, "repeated names"),
    "a name that differs inside": (patch(b"a/data.pkl", b"a/data.pkX"), "data.pkl is damaged"),
    "a name that is no text": (patch(b"a/data/0", b"a/dat\xff/0", last=True), "'utf-8' codec"),
    "a directory of gigabytes": (end(12, struct.pack("<L", 1 << 31)), NOT),
    "a directory of megabytes": (large_directory, "a directory of 5242880 bytes"),
    "a directory of exabytes": (wide, NOT),
    "an archive of many discs": (
        edit(lambda d: d[:-22] + struct.pack("<4sLQL", b"PK\x06\x07", 1, 0, 2) + d[-22:]),
        "multiple disks",
    ),
    "a newer archive": (directory(6, b"\xff\x00"), "zip file version"),
    "a directory that is cut": (end(12, struct.pack("<L", 50)), NOT),
    "a flipped byte in the pickle": (patch(b"float32", b"floaT32"), "data.pkl is damaged: Bad CRC"),
    "a flipped byte in a tensor": (
        patch(struct.pack("<2q", 2**62, -1), struct.pack("<2q", 2**62, -2)),
        r"data/\d is damaged: Bad CRC",
    ),
    "another byte order": (rewrite(lambda m: m.update({"a/byteorder": b"big"})), "little-endian"),
    "a long byte order": (
        rewrite(lambda m: m.update({"a/byteorder": b"little" * 9})),
        "byteorder has 54 bytes; at most 16",
    ),
    "a tensor is missing": (rewrite(lambda m: m.pop("a/data/0")), "data/0: .* it is missing"),
    "a tensor is short": (
        rewrite(lambda m: m.update({"a/data/0": m["a/data/0"][:-4]})),
        "data/0: expected 96 bytes; it has 92",
    ),
    "a tensor is long": (
        rewrite(lambda m: m.update({"a/data/0": m["a/data/0"] + bytes(4)})),
        "data/0: expected 96 bytes; it has 100",
    ),
    "a pickle that is cut": (
        rewrite(lambda m: m.update({"a/data.pkl": m["a/data.pkl"][:-9]})),
        "damaged pickle",
    ),
    "a pickle that is empty": (rewrite(lambda m: m.update({"a/data.pkl": b""})), "damaged pickle"),
}


@pytest.mark.parametrize(("spoil", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_named(tmp_path, monkeypatch, spoil, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.pt"
    torch.save(honest(), path)
    spoil(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 500
    assert not (tmp_path / "marker").exists()


def test_limits(tmp_path, monkeypatch):
    torch.save(honest(), tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as file:
        pickle_bytes = file.getinfo("a/data.pkl").file_size
    monkeypatch.setattr(torch_files, "MOST_PICKLE_BYTES", pickle_bytes)
    load(tmp_path / "a.pt")
    monkeypatch.setattr(torch_files, "MOST_PICKLE_BYTES", pickle_bytes - 1)
    with TorchFile(tmp_path / "a.pt") as file:
        for read in (file.content, file.mentioned):
            with pytest.raises(CheckpointError, match=f"data.pkl has {pickle_bytes} bytes; at m"):
                read()
    monkeypatch.undo()
    monkeypatch.setattr("asd_policy.formats.pickles.MOST_INSTRUCTIONS", 100)
    with TorchFile(tmp_path / "a.pt") as file:
        for read in (file.content, file.mentioned):
            with pytest.raises(CheckpointError, match=r"a\.pt: .* more than 100 instructions"):
                read()
    monkeypatch.setattr(torch_files, "MOST_BYTES", 1000)
    with pytest.raises(CheckpointError, match="bytes; at most 1000 are read"):
        TorchFile(tmp_path / "a.pt")


def test_a_sparse_file_of_terabytes(tmp_path):
    with (tmp_path / "a.pt").open("wb") as file:
        file.truncate(1 << 42)
    with pytest.raises(CheckpointError, match="4398046511104 bytes; at most 8589934592 are read"):
        TorchFile(tmp_path / "a.pt")


def test_every_cut_and_every_flipped_bit_ends_in_the_same_error(tmp_path):
    data = archive(tmp_path / "a.pt", pickled({"x": tensor(), "y": (1.5, "text")})).read_bytes()
    whole = load(tmp_path / "a.pt")
    path = tmp_path / "b.pt"
    for length in range(0, len(data), 3):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            load(path)
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        try:
            found = load(path)
        except CheckpointError:
            continue
        same(found, whole)  # where nothing reads it, as in a date
