"""What Python code calls and PyTorch's C++ would take to the driver: seen before it gets there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from tests.double.tensor import DeviceTensor, active, wrapped

Tensor = torch.Tensor

# Autocast's own lists for CUDA, as far as heads and trunks need them (aten/src/ATen/autocast_mode.h).
LOWER = {
    *(torch.conv1d, torch.conv2d, torch.conv3d, torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm),
    *(torch._C._nn.linear, torch._C._nn.scaled_dot_product_attention, Tensor.matmul, Tensor.__matmul__, Tensor.mm),
}
FLOAT32 = {
    *(torch.softmax, torch.log_softmax, Tensor.softmax, Tensor.log_softmax, torch.exp, torch.log, Tensor.exp),
    *(Tensor.log, Tensor.pow, Tensor.__pow__, torch.sum, Tensor.sum, torch.norm, Tensor.norm, torch.layer_norm),
    *(torch.group_norm, torch.nn.functional.cross_entropy, torch.nn.functional.softmax),
}


def is_device(place: Any) -> bool:
    """Whether this names the device."""
    if isinstance(place, (str, torch.device)):
        return torch.device(place).type == "cuda"
    return isinstance(place, int) and not isinstance(place, bool)


def numbered(place: Any) -> torch.device:
    """The device with its number."""
    found = torch.device("cuda", place) if isinstance(place, int) else torch.device(place)
    return found if found.index is not None else torch.device("cuda", torch.cuda.current_device())


class Calls(TorchFunctionMode):
    """Of a thread, while there is a double."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        own = OWN.get(func)
        if own is not None:
            return own(func, *args, **kwargs)
        placed = is_device(kwargs.get("device"))
        if placed or any(isinstance(x, DeviceTensor) for x in args):
            _refuse_generator(kwargs.get("generator"))
        if placed:
            return _created(func, args, kwargs)
        if kwargs.pop("pin_memory", False):
            return active().pinned.add(func(*args, **kwargs))
        if torch.is_autocast_enabled("cuda"):
            args, kwargs = _cast(func, args, kwargs)
        return func(*args, **kwargs)


def _refuse_generator(given: Any) -> None:
    """A generator of the host, for an operation on the device.

    Raises:
        RuntimeError: as CUDA's.
    """
    if given is not None and given.device.type != "cuda":
        raise RuntimeError(f"Expected a 'cuda' device type for generator but found '{given.device.type}'")


def _cast(func: Any, args: Any, kwargs: Any) -> Any:
    """Autocast: arguments of the device in the type that the operation is computed in."""
    if func in LOWER:
        dtype = torch.get_autocast_dtype("cuda")
    elif func in FLOAT32:
        dtype = torch.float32
    else:
        return args, kwargs

    def cast(x: Any) -> Any:
        lowered = isinstance(x, DeviceTensor) and x.is_floating_point() and x.dtype != torch.float64
        return x.to(dtype) if lowered else x

    return tree_map(cast, (args, kwargs))


def _created(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """A tensor that is made on the device; of numbers of the host it is a copy, for which the host waits."""
    place = numbered(kwargs.pop("device"))
    copies = func in (torch.tensor, torch.as_tensor, torch.asarray)
    if copies and args and isinstance(args[0], DeviceTensor):
        return _to(Tensor.to, args[0], **kwargs)
    if args and isinstance(args[0], DeviceTensor):  # like one that is there
        return func(*args, **kwargs)
    learns = kwargs.pop("requires_grad", False)
    with torch.inference_mode(False):
        found = func(*args, **kwargs)
    if copies:
        return active().up(found, place, None, non_blocking=False).requires_grad_(learns)
    queues = active().queues
    active().allocate(found)
    again = (lambda: found.copy_(func(*args, **kwargs))) if queues.capturing else (lambda: None)
    queues.launch(again)
    return wrapped(found, place).requires_grad_(learns)


def _parsed_to(args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of ``Tensor.to`` in all its forms, by name."""
    names = ["device", "dtype", "non_blocking", "copy"]
    if args and isinstance(args[0], torch.Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    elif args and isinstance(args[0], torch.dtype):
        names = names[1:]
    found = {**dict(zip(names, args, strict=False)), **kwargs}
    if isinstance(other := found.pop("other", None), torch.Tensor):
        found |= {"device": other.device, "dtype": other.dtype}
    return {name: value for name, value in found.items() if value is not None}


def _to(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    asked = _parsed_to(args, kwargs)
    place = asked.pop("device", None)
    here = isinstance(x, DeviceTensor)
    if place is not None and not is_device(place) and not (here and torch.device(place).type == "meta"):
        return func(x, device=place, **asked)
    if here and place is not None and is_device(place) and numbered(place) != x.where:
        raise NotImplementedError("from one device to another")
    if here or place is None:
        return func(x, **asked) if asked else x
    form = asked.get("memory_format", torch.preserve_format)
    x = x.contiguous(memory_format=form) if form != torch.preserve_format else x
    return active().up(x, numbered(place), asked.get("dtype"), asked.get("non_blocking", False))


def _pinned(func: Any, x: Tensor, device: Any = None) -> Tensor:
    if isinstance(x, DeviceTensor):
        raise RuntimeError(f"cannot pin '{x.dtype}' of {x.where}: only dense CPU tensors can be pinned")
    return x if active().pinned.holds(x) else active().pinned.add(x.clone())


def _indexed(func: Any, x: Tensor, index: Any, *value: Any) -> Any:
    """Lists and arrays among the indices of a tensor of the device as tensors of the host, which they are."""

    def as_tensor(i: Any) -> Any:
        return torch.as_tensor(np.asarray(i)) if isinstance(i, (list, np.ndarray)) else i

    if isinstance(x, DeviceTensor):
        index = tuple(as_tensor(i) for i in index) if isinstance(index, tuple) else as_tensor(index)
        if isinstance(index, Tensor) and index.numel() == 0 and index.dtype == torch.float64:
            index = index.long()  # an empty list
    return func(x, index, *(_scalar(v, x) for v in value))


def _scalar(value: Any, beside: Tensor) -> Any:
    """A number beside a tensor of the device as a tensor there, which C++ would make on ``meta``."""
    if not isinstance(value, (bool, int, float)) or not isinstance(beside, DeviceTensor):
        return value
    active().queues.launch(lambda: None)
    return wrapped(torch.tensor(value, dtype=beside.dtype), beside.where)


def _where(func: Any, condition: Tensor, *values: Any, **kwargs: Any) -> Tensor:
    found: Tensor = func(condition, *(_scalar(v, w) for v, w in zip(values, values[::-1], strict=True)), **kwargs)
    return found


def _set_data(func: Any, x: Tensor, value: Tensor) -> None:
    func(x, value)
    if isinstance(x, DeviceTensor):
        x.inner = value.inner


OWN: dict[Any, Callable[..., Any]] = {
    Tensor.to: _to,
    Tensor.cuda: lambda _, x, device="cuda", non_blocking=False: _to(Tensor.to, x, device, non_blocking=non_blocking),
    Tensor.type_as: lambda _, x, other: _to(Tensor.to, x, other),
    Tensor.pin_memory: _pinned,
    Tensor.is_pinned: lambda _, x, device=None: not isinstance(x, DeviceTensor) and active().pinned.holds(x),
    Tensor.tolist: lambda func, x: func(x.cpu() if isinstance(x, DeviceTensor) else x),
    torch.where: _where,
    Tensor.record_stream: lambda *_: None,
    Tensor.__getitem__: _indexed,
    Tensor.__setitem__: _indexed,
    Tensor.data.__set__: _set_data,  # type: ignore[attr-defined]
}


class Generator(torch.Generator):
    """A generator of the device; its numbers are the CPU's."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        return super().__new__(cls, "cpu")

    def __init__(self, device: Any = "cpu") -> None:
        self.where = numbered(device) if is_device(device) else torch.device("cpu")

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.where
