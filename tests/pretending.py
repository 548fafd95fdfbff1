"""A GPU where there is none: tensors compute on the CPU, but say that they are on "cuda", and
refuse to be mixed.

PyTorch's own fake tensors have no values, and cannot be differentiated where no GPU is. Here each
storage is either here or there, and operations follow CUDA's rules: all their tensors are in one
place, but a number without dimensions or the indices of x[...] may come from the CPU; random
numbers need a generator of the device; NumPy sees the CPU only.
"""

import contextlib
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ddpp.unrolling import compiled

aten = torch.ops.aten
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
BETWEEN = {aten.copy_, aten._to_copy}
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
WAITS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal}  # for the host
captures = []  # that are under way


class Storages:
    """Which storages are there. Weak references keep their addresses, so that no other gets the one
    of a storage that is gone.
    """

    def __init__(self):
        self.kept, self.most = {}, 1000
        # where an operation makes a tensor of its own, as the grid of a rotation
        self.ambient = False

    def __contains__(self, tensor: Tensor) -> bool:
        return _storage(tensor)._cdata in self.kept

    def place(self, tensor: Tensor, there: bool) -> Tensor:
        storage = _storage(tensor)
        if there:
            self.kept[storage._cdata] = StorageWeakRef(storage)
            self._sweep()
        else:
            self.kept.pop(storage._cdata, None)
        return tensor

    def _sweep(self) -> None:
        if len(self.kept) > self.most:
            self.kept = {place: ref for place, ref in self.kept.items() if not ref.expired()}
            self.most = 1000 + 2 * len(self.kept)

    def any(self, values) -> bool:
        return any(tensor in self for tensor in tensors(values))


class Functions(TorchFunctionMode):
    """What Python asks of PyTorch: devices as arguments and as answers."""

    def __init__(self, storages: Storages):
        super().__init__()
        self.storages = storages

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(function, "__name__", "")
        if function == Tensor.device.__get__:
            own = function(*args)
            return CUDA if own == CPU and args[0] in self.storages else own
        if function == Tensor.is_cuda.__get__:
            return args[0] in self.storages
        if function in (Tensor.numpy, Tensor.__array__) and args[0] in self.storages:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if name in ("to", "cpu", "cuda") and isinstance(args[0], Tensor):
            return self._moved(function, name, args, kwargs)
        before, self.storages.ambient = self.storages.ambient, self.storages.any((args, kwargs))
        try:
            device = kwargs.get("device")
            if device is None or torch.device(device).type not in ("cpu", "cuda"):
                return function(*args, **kwargs)
            self.storages.ambient = torch.device(device).type == "cuda"
            if self.storages.ambient and name in ("tensor", "as_tensor"):
                _refuse_in_capture(name)
            if self.storages.ambient and kwargs.get("generator") is not None:
                raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
            return self._made(function(*args, **kwargs | {"device": "cpu"}))
        finally:
            self.storages.ambient = before

    def _made(self, out):
        return self.storages.place(out, self.storages.ambient)

    def _moved(self, function, name, args, kwargs):
        """`to`, `cpu` and `cuda`: always a copy, where the device changes."""
        tensor, *rest = args
        there = was = tensor in self.storages
        if name != "to":
            there, rest, kwargs = name == "cuda", [], {}
        for value in (*rest, kwargs.get("device"), kwargs.get("other")):
            if isinstance(value, Tensor):
                there = value in self.storages
            elif isinstance(value, str | torch.device | int) and not isinstance(value, bool):
                there = torch.device(value).type == "cuda"
        plain = lambda v: (
            CPU if isinstance(v, str | torch.device | int) and not isinstance(v, bool) else v
        )
        out = Tensor.to(
            tensor, *map(plain, rest), **{key: plain(value) for key, value in kwargs.items()}
        )
        if there == was:
            return out
        _refuse_in_capture("a copy between devices")
        return self.storages.place(out.clone(), there)


class Operations(TorchDispatchMode):
    """What happens below autograd: each operation on tensors in one place, its results in the
    same.
    """

    def __init__(self, storages: Storages):
        super().__init__()
        self.storages = storages

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, packet = kwargs or {}, function.overloadpacket
        given = tensors((args, kwargs))
        there = [tensor for tensor in given if tensor in self.storages]
        here = [
            tensor
            for tensor in given
            if tensor not in self.storages and tensor.dim() and tensor.device == CPU
        ]
        place = bool(there) or (not given and self.storages.ambient)
        mixed = [t for t in given if t not in self.storages and t.device == CPU]
        if packet in INDEXED:
            place = args[0] in self.storages
            if place and mixed:
                _refuse_in_capture("an index from the CPU")
            here = [] if place else here
        elif there and mixed and packet not in BETWEEN:
            # a number on the CPU may be read in operations by element, but not written
            written = function._schema.is_mutable and any(args[0] is tensor for tensor in mixed)
            here = mixed if written or packet in (aten.cat, aten.stack) else here
        if there and here and packet not in BETWEEN:
            raise RuntimeError(
                f"Expected all tensors to be on the same device: {packet} has some on cuda:0 and "
                "cpu"
            )
        if there and packet in WAITS:
            _refuse_in_capture(str(packet))
        known = {_storage(tensor)._cdata for tensor in given}
        out = function(*args, **kwargs)
        for tensor in tensors(out):
            if _storage(tensor)._cdata not in known:  # else it is in place, or a view
                self.storages.place(tensor, place)
        return out


def _refuse_in_capture(what: str) -> None:
    """Nothing in a CUDA graph may wait for the host."""
    if captures:
        raise RuntimeError(f"operation not permitted when stream is capturing: {what}")


def tensors(values) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _storage(tensor: Tensor):
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.untyped_storage()


class Tape(TorchDispatchMode):
    """A CUDA graph on paper: the operations made under it, made again on the same memory by
    `replay`.
    """

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = aliases((args, kwargs or {}))
        out = function(*args, **kwargs or {})
        self.calls.append((function, given, aliases(out)))
        return out

    def replay(self):
        with torch.no_grad():
            for function, given, out in self.calls:
                args, kwargs = aliases(given)
                again = function(*args, **kwargs)
                for old, new in zip(
                    *(x if isinstance(x, tuple | list) else [x] for x in (out, again)), strict=True
                ):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


def aliases(values):
    """The same memory in other tensors, whose shapes no squeeze_ of the ones given changes."""
    return tree_map(lambda value: value.detach() if isinstance(value, Tensor) else value, values)


@contextlib.contextmanager
def tapes(monkeypatch):
    """In the block CUDA graphs are tapes, and torch.compile has done its work. Yields the tapes."""
    made, wait = [], SimpleNamespace(wait_stream=lambda other: None)

    @contextlib.contextmanager
    def record(tape, pool, stream):
        made.append(tape)
        captures.append(tape)
        try:
            with tape:
                yield
        finally:
            captures.pop()

    for name, stand_in in {
        "CUDAGraph": Tape,
        "graph": record,
        "Stream": lambda *_: wait,
        "current_stream": lambda: wait,
        "set_stream": lambda stream: None,
        "stream": contextlib.nullcontext,
        "device": contextlib.nullcontext,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    compiled.student.cache_clear()
    yield made
    compiled.student.cache_clear()


@contextlib.contextmanager
def gpu(monkeypatch):
    """In the block there is one GPU."""
    for name, answer in {
        **{"is_available": True, "device_count": 1, "get_device_name": "a pretended GPU"},
        **{
            "graph_pool_handle": "a pool",
            "mem_get_info": (2**34, 2**34),
            **{"memory_reserved": 0, "memory_allocated": 0, "synchronize": None},
        },
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    # an optimizer asks it whether a graph is being captured
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    storages = Storages()
    with Operations(storages), Functions(storages):
        yield storages
