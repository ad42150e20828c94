"""CUDA tensors without memory or a device: they know shape, dtype and device, as operations do.

An operation on tensors of two devices, or of dtypes that a kernel refuses, fails as on a GPU.
"""

from __future__ import annotations

import re
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
needs_no_driver = pytest.mark.skipif(
    torch.version.cuda is not None
    and not torch.cuda.is_available()
    and not hasattr(torch._C, "_ensureCUDADeviceGuardSet"),
    reason="this PyTorch for CUDA asks its driver for the device of a fake tensor, too",
)
"""Mark of tests on fake CUDA tensors: PyTorch 2.9 for CUDA has them only beside a GPU."""


class _Indexing(TorchFunctionMode):
    """Indexing by operations, and memory that is not pinned: else both ask for a CUDA driver."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.tensor:
            return func(*args, **(kwargs or {}) | {"pin_memory": False})
        if func is torch.Tensor.__getitem__:
            return _index(*args)
        if func is torch.Tensor.__invert__:
            return torch.bitwise_not(*args)
        if func is torch.Tensor.__setitem__:
            target, index, value = args
            if not isinstance(value, Tensor):
                value = torch.full((), value, dtype=target.dtype, device=target.device)
            if isinstance(index, Tensor):
                return target.index_put_((index,), value)
            return torch.ops.aten.copy_(_index(target, index), value)
        return func(*args, **(kwargs or {}))


def _index(tensor: Tensor, index: Any) -> Tensor:
    index = index if isinstance(index, tuple) else (index,)
    if Ellipsis in [i for i in index if not isinstance(i, Tensor)]:
        place = next(n for n, i in enumerate(index) if i is Ellipsis)
        given = sum(i is not None for i in index) - 1
        index = index[:place] + (slice(None),) * (tensor.dim() - given) + index[place + 1 :]
    dim, numbers = 0, list[Tensor | None]()
    for own in index:
        if own is None:
            tensor = tensor.unsqueeze(dim)
        elif isinstance(own, int):
            tensor = tensor.select(dim, own)
            continue
        elif isinstance(own, slice):
            start, stop, step = own.indices(tensor.shape[dim])
            tensor = torch.ops.aten.slice(tensor, dim, start, stop, step)
        else:
            numbers += [None] * (dim - len(numbers)) + [own]
        dim += 1
    return torch.ops.aten.index(tensor, numbers) if numbers else tensor


_VIEWS = re.compile(
    "alias|as_strided|chunk|detach|expand|flatten|lift_fresh|permute|reshape|select|slice|split|split_with_sizes|"
    "t|transpose|unbind|unflatten|unsqueeze|squeeze|view|_unsafe_view"
)
"""Names of operations that run nothing."""


class Operations(TorchDispatchMode):
    """Counts operations that run something on the device, copies between devices, and memory."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        """Bytes on the device that this mode saw allocated, now and at most."""
        self._users = Counter[int]()
        self.on_device = Counter[str]()
        self.copies = Counter[str]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        found = out if isinstance(out, (tuple, list)) else [out]
        for own in found:
            if isinstance(own, Tensor) and own.device.type == "cuda":
                self._hold(own)
        devices = {o.device.type for o in found if isinstance(o, Tensor)}
        given = {a.device.type for a in args if isinstance(a, Tensor)}
        if name in ("_to_copy", "to", "copy_") and len(given | devices) > 1:
            self.copies[f"{min(given)} to {min(devices)}"] += 1
        elif "cuda" in devices | given and not _VIEWS.fullmatch(name):
            # Empty memory, and `to` of what is there already, run nothing.
            same = (
                name == "to" and not (kwargs or {}).get("copy") and found[0].dtype == args[0].dtype
            )
            self.on_device[name] += not same and "empty" not in name and name != "device"
        return out

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        self._users[key] += 1
        if self._users[key] == 1:
            self.held += size
            self.peak = max(self.peak, self.held)
        weakref.finalize(tensor, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._users[key] -= 1
        self.held -= size * (self._users[key] == 0)


@contextmanager
def fake_cuda(mode: FakeTensorMode) -> Iterator[Operations]:
    """Tensors that are made inside are fake; yields a count of what runs.

    Args:
        mode: that of all tensors that meet each other.
    """
    with mode, _Indexing(), Operations() as operations:
        yield operations


def to_fake_cuda(model: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Put a model of the meta device on the fake one; inside of `fake_cuda`.

    Args:
        dtype: dtype of the weights; buffers keep theirs.
    """
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                own = torch.empty(weight.shape, dtype=dtype or weight.dtype, device=CUDA)
                module._parameters[name] = nn.Parameter(own, weight.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=CUDA)


LOWER = {"bmm", "linear", "matmul", "__matmul__", "mm", "scaled_dot_product_attention"}
SINGLE = {"cumsum", "exp", "log", "log_softmax", "norm", "pow", "prod", "rsqrt", "softmax", "sum"}
"""Functions that autocast runs in bfloat16 and in float32 on CUDA; the rest of its list is unused
here."""
_CASTS = dict.fromkeys(LOWER, torch.bfloat16) | dict.fromkeys(SINGLE, torch.float32)


class _Autocast(TorchFunctionMode):
    """torch.autocast on CUDA. Its own asks for devices below Python, where these have none."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        dtype = _CASTS.get(func.__name__)

        def cast(value: Any) -> Any:
            narrow = (torch.float32, torch.bfloat16)
            return value.to(dtype) if isinstance(value, Tensor) and value.dtype in narrow else value

        if dtype is not None:
            args, kwargs = tree_map(cast, (args, kwargs))
        return func(*args, **(kwargs or {}))


@contextmanager
def cuda_autocast() -> Iterator[None]:
    """torch.autocast for CUDA to bfloat16, which refuses to start without CUDA."""
    dtype = torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", dtype)


@contextmanager
def autocast() -> Iterator[None]:
    """The same for tensors of `fake_training`."""
    with cuda_autocast(), _Autocast():
        yield


class _FakeMode(FakeTensorMode):
    """What is made like another tensor below Python, where that is meta, is on the fake device."""

    def dispatch(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == torch.device("meta"):
            kwargs["device"] = CUDA
        return super().dispatch(func, types, args, kwargs)


class _Values(TorchDispatchMode):
    """Computes on the CPU what fake tensors hold: training asks how many loss tokens there are."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        with _disable_current_modes():
            values = func(*tree_map(value_of, args), **tree_map(value_of, kwargs))
        try:
            out = func(*args, **kwargs)
        except DataDependentOutputException:
            return values
        except DynamicOutputShapeException:
            [device] = {a.device for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)}
            out = tree_map(lambda value: torch.empty_like(value, device=device), values)
        for own, value in zip(tree_leaves(out), tree_leaves(values), strict=True):
            if isinstance(own, FakeTensor):
                assert (own.shape, own.dtype) == (value.shape, value.dtype), func
                own.value = value  # type: ignore[attr-defined]
        return out


def value_of(given: Any) -> Any:
    """What a fake tensor of `fake_training` holds; a device is the CPU."""
    if isinstance(given, torch.device):
        return torch.device("cpu")
    return given.value if isinstance(given, FakeTensor) else given  # type: ignore[attr-defined]


@contextmanager
def fake_training() -> Iterator[None]:
    """Context in which `tensor.to(CUDA)` is fake and has gradients.

    Autograd knows the device of a tensor from below Python, where a PyTorch without CUDA fails for
    any but a meta tensor. Fake ones are meta there, as long as they are not asked.
    """
    make = torch.Tensor._make_subclass

    def unasked(*args: Any, dispatch_device: bool = False, **options: Any) -> Tensor:
        return make(*args, **options)

    with (
        patch.object(torch.Tensor, "_make_subclass", staticmethod(unasked)),
        _FakeMode(allow_non_fake_inputs=True),
        _Values(),
    ):
        yield


def train_on_fake_cuda(model: nn.Module) -> None:
    """Put a model of the CPU on the fake device; inside of `fake_training`."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                moved = weight.detach().to(CUDA)
                module._parameters[name] = nn.Parameter(moved, weight.requires_grad)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(CUDA)
