"""A tensor that says it is on the device, and holds its numbers on the CPU.

PyTorch's C++ takes it for one on ``meta``, whose backward pass needs no driver; Python is told ``cuda``.
"""

from __future__ import annotations

import bisect
from typing import Any, ClassVar

import torch
from torch.utils._pytree import tree_flatten, tree_map

from tests.double.streams import REFUSED, Queues

aten = torch.ops.aten

# What the host needs an answer of before it goes on.
ANSWERS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "equal",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
    "_linalg_check_errors",
    "_linalg_eigh",
    "_linalg_svd",
}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
# Besides pointwise operations: those that take a CPU tensor of no dimensions beside tensors of the device.
SCALARS = {"fill", "fill_", "masked_fill", "masked_fill_", "index_put", "index_put_", "_index_put_impl_"}


class Pinned:
    """Page-locked memory: the tensors that were pinned, and by their address what lies inside one of them.

    They are kept as long as the double is, so that no address comes to mean something else.
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._kept: list[torch.Tensor] = []

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        at = bisect.bisect(self._starts, tensor.data_ptr())
        self._starts.insert(at, tensor.data_ptr())
        self._kept.insert(at, tensor)
        return tensor

    def holds(self, tensor: torch.Tensor) -> bool:
        at = bisect.bisect(self._starts, tensor.data_ptr()) - 1
        if at < 0:
            return False
        storage = self._kept[at].untyped_storage()
        return tensor.data_ptr() < storage.data_ptr() + storage.nbytes()


class Device:
    """What is the device's own: its queues and the host memory that it knows."""

    def __init__(self, queues: Queues) -> None:
        self.queues, self.pinned = queues, Pinned()
        self.largest: int | None = None

    def allocate(self, tensor: torch.Tensor) -> None:
        """Have room for a new tensor.

        Raises:
            torch.OutOfMemoryError: it is larger than the largest that finds room.
        """
        if self.largest is not None and tensor.nbytes > self.largest:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {tensor.nbytes} bytes.")

    def up(self, source: torch.Tensor, device: torch.device, dtype: Any, non_blocking: bool) -> DeviceTensor:
        """A copy of a CPU tensor."""
        if source.requires_grad and torch.is_grad_enabled():
            raise NotImplementedError("a gradient that flows from the device to the host")
        out = wrapped(_like(source, dtype), device)
        self.allocate(out.inner)
        self.copy(out, source.detach(), non_blocking)
        return out

    def down(self, source: DeviceTensor, dtype: Any, non_blocking: bool) -> torch.Tensor:
        """A copy on the CPU, in page-locked memory where the host does not wait for it, as PyTorch has it."""
        out = _like(source.inner, dtype)
        self.copy(self.pinned.add(out) if non_blocking else out, source, non_blocking)
        return out

    def copy(self, to: torch.Tensor, source: torch.Tensor, non_blocking: bool) -> None:
        """``to.copy_(source)``, where one of the two or both are on the device."""
        into, of = inner(to), inner(source)
        host = [t for t in (to, source) if not isinstance(t, DeviceTensor)]
        # Others go by way of memory that is not page-locked (copy_requires_temporaries in ATen/native/cuda/Copy.cu).
        direct = into.dtype == of.dtype and into.shape == of.shape and into.stride() == of.stride()
        at_once = into.numel() == 0 or (non_blocking and direct and bool(host) and self.pinned.holds(host[0]))
        waits = bool(host) and not at_once
        if waits and self.queues.capturing is not None:
            raise RuntimeError(REFUSED)
        self.queues.launch(_written(lambda: into.copy_(of)))
        if waits:
            self.queues.synchronise(self.queues.current)


device: Device | None = None  # while there is a double


def active() -> Device:
    assert device is not None, "a tensor of a device double that is gone"
    return device


class DeviceTensor(torch.Tensor):
    """``inner`` are its numbers."""

    inner: torch.Tensor
    where: torch.device
    __torch_function__: ClassVar[Any] = torch._C._disabled_torch_function_impl

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.where

    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_meta = property(lambda self: False)  # type: ignore[assignment]

    def get_device(self) -> int:
        return self.where.index

    def __repr__(self) -> str:  # type: ignore[override]
        return f"tensor(..., device='{self.where}', size={tuple(self.shape)}, dtype={self.dtype})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            memo[id(self)] = self.detach().clone().requires_grad_(self.requires_grad)
            memo[id(self)]._is_param = getattr(self, "_is_param", False)
        return memo[id(self)]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            return func.decompose(*args, **(kwargs or {}))  # of several steps, seen one by one
        with torch.inference_mode(False), torch.no_grad():
            return _dispatched(func, args, dict(kwargs or {}))


def wrapped(tensor: torch.Tensor, where: torch.device) -> DeviceTensor:
    """The device's tensor with these numbers."""
    with torch.inference_mode(False):
        out = torch.Tensor._make_wrapper_subclass(
            DeviceTensor, tensor.size(), strides=tensor.stride(), dtype=tensor.dtype, device="meta"
        )
    out.inner, out.where = tensor, where
    return out


def inner(x: Any) -> Any:
    """The numbers of a tensor of the device; anything else as it is."""
    return x.inner if isinstance(x, DeviceTensor) else x


def _like(tensor: torch.Tensor, dtype: Any = None) -> torch.Tensor:
    """Memory for a copy, with numbers in it that nobody wants."""
    with torch.inference_mode(False):
        return _spoiled(torch.empty_like(tensor, dtype=dtype))


def _spoiled(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.zero_()


def _written(task: Any) -> Any:
    """The task, which writes into what is there, in the mode that may write into anything."""

    def run() -> None:
        with torch.inference_mode():
            task()

    return run


def _dispatched(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation with a tensor of the device among its arguments."""
    name = func.overloadpacket.__name__
    if name == "copy_":
        active().copy(args[0], args[1], kwargs.get("non_blocking", args[2] if len(args) > 2 else False))
        return args[0]
    asked = kwargs.pop("device", None)
    to_host = asked is not None and torch.device(asked).type == "cpu"
    if name == "_to_copy" and to_host:
        x = args[0]
        found = active().down(x, kwargs.get("dtype"), kwargs.get("non_blocking", False))
        form = kwargs.get("memory_format")
        return found if form in (None, torch.preserve_format) else found.contiguous(memory_format=form)
    flat = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    where = next(x.where for x in flat if isinstance(x, DeviceTensor))
    _refuse_mixes(func, name, args, flat, where)
    if kwargs.pop("pin_memory", False):
        raise NotImplementedError("page-locked memory like a tensor of the device")
    if to_host:
        return func(*tree_map(inner, args), **tree_map(inner, kwargs), device="cpu")
    if asked is not None:
        kwargs["device"] = "cpu"
    queues = active().queues
    if name in INDEXED:
        found = [x for x in args[1] if x is not None]
        if any(not isinstance(x, DeviceTensor) or x.dtype in (torch.bool, torch.uint8) for x in found):
            queues.synchronise(queues.current)  # indices are copied; places of a mask are counted
    if name in ANSWERS:
        queues.launches += 1
        queues.synchronise(queues.current)
        return _out(func(*tree_map(inner, args), **tree_map(inner, kwargs)), flat, where)
    return _out(_computed(func, tree_map(inner, args), tree_map(inner, kwargs)), flat, where)


def _out(found: Any, given: list[torch.Tensor], where: torch.device) -> Any:
    """What an operation gave, on the device; what it wrote into is what it was given."""
    known = {id(x.inner): x for x in given if isinstance(x, DeviceTensor)}

    def placed(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        return known[id(x)] if id(x) in known else wrapped(x, where)

    return tree_map(placed, found)


def _computed(func: Any, args: Any, kwargs: Any) -> Any:
    """The operation on the CPU: now, or where work is deferred, now for the shapes and later for the numbers."""
    queues, schema = active().queues, func._schema
    if not schema.is_mutable and any(r.alias_info is not None for r in schema.returns):
        return func(*args, **kwargs)  # a view: nothing is computed
    if not queues.deferred:
        found: list[Any] = []
        queues.launch(lambda: found.append(func(*args, **kwargs)))
        for x in tree_flatten(found)[0]:
            if isinstance(x, torch.Tensor) and not schema.is_mutable:
                active().allocate(x)
        return found[0]
    if schema.is_mutable:
        queues.launch(_written(lambda: func(*args, **kwargs)))
        written = [
            kwargs[a.name] if a.kwarg_only else args[i]
            for i, a in enumerate(schema.arguments)
            if a.alias_info is not None and a.alias_info.is_write
        ]
        return written[0] if len(schema.returns) == 1 else tuple(written[: len(schema.returns)]) or None
    with torch.random.fork_rng(devices=[]):  # of copies: some write statistics without a word of it
        out = func(*tree_map(_copy, args), **tree_map(_copy, kwargs))
    into = [_spoiled(x) for x in tree_flatten(out)[0] if isinstance(x, torch.Tensor)]

    def later() -> None:
        again = [x for x in tree_flatten(func(*args, **kwargs))[0] if isinstance(x, torch.Tensor)]
        for to, x in zip(into, again, strict=True):
            to.copy_(x)

    queues.launch(_written(later))
    return out


def _copy(x: Any) -> Any:
    return x.clone() if isinstance(x, torch.Tensor) else x


def _refuse_mixes(func: Any, name: str, args: Any, flat: list[torch.Tensor], where: torch.device) -> None:
    """Tensors of two devices, but where CUDA takes them.

    Raises:
        RuntimeError: as CUDA's, with the name of the operation.
    """
    may_be_scalar = torch.Tag.pointwise in func.tags or name.startswith("_foreach_") or name in SCALARS
    indices = {id(x) for x in args[1] if x is not None} if name in INDEXED else set()
    written = {id(args[i]) for i, a in enumerate(func._schema.arguments[: len(args)]) if _is_written(a)}
    for x in flat:
        if isinstance(x, DeviceTensor) and x.where == where:
            continue
        elsewhere = x.device
        if elsewhere.type == "cpu" and ((id(x) in indices) or (may_be_scalar and x.ndim == 0 and id(x) not in written)):
            continue
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {where} and {elsewhere}! "
            f"(in {func.name()})"
        )


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and bool(argument.alias_info.is_write)
