"""Run torch code on tensors without values and record every allocation and every operation.

``Recorder`` is a dispatch mode: autograd, autocast and checkpointing run above it as they always do, and it sees what
they ask of the device. Whatever derives from a tensor without values (parameters, pixels; torch's ``FakeTensor``) has a
shape, a type and a device, but no memory. Everything else, such as indices that are drawn on the CPU, is computed for
real: the shapes of masked tensors depend on those, and tables that networks cache stay valid.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager
from torch.nn.modules import module as hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

ATTENTION = "attention matrices"
GRADIENTS = "gradients of the weights"
IN_FLIGHT = "gradients in flight"
RECOMPUTED = "recomputed activations"
LOSS = "loss"
OPTIMIZER = "optimizer state"

aten = torch.ops.aten
ATTRIBUTES = (torch.dtype, torch.device, torch.layout, torch.memory_format)
TRUE = (aten.mul.Tensor, aten.bitwise_and.Tensor, aten.logical_and.default, aten.all.default, aten.eq.Tensor)
"""Conditions without values hold where everything must be as it should (``isfinite``, ``all``). Others, such as
``isnan``, ``any`` and ``>``, do not."""
LARGE = 2**16
"""Uninitialised tensors of this many elements have no memory: weights before their first value, buffers for results."""


@dataclass(slots=True, eq=False)
class Block:
    """Memory of one tensor storage.

    Parameters
    ----------
    size : int
        In bytes.
    label : str
        What it holds.
    backward : bool
        Allocated by autograd in the backward pass, and not by a recomputed forward pass.
    recomputed : bool
        Allocated by a recomputed forward pass.
    is_sum : bool
        The sum of two gradients, which autograd computes in place where no dispatch mode watches.
    """

    size: int
    label: str
    backward: bool = False
    recomputed: bool = False
    is_sum: bool = False


Event = tuple[Block, bool]
"""A block, and whether it is allocated (True) or freed (False)."""


def _attention_forward(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    batch, heads, rows, width = query.shape
    return 2 * batch * heads * rows * key.shape[2] * (width + value.shape[3])


def _attention_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    # The scores once more, and four gradients, as torch counts it on a GPU.
    return _attention_forward(query, key, value) * 5 // 2


FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    # torch counts no fused attention on the CPU.
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_forward,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def _flops(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    count = FLOPS.get(func._overloadpacket)
    return 0 if count is None else count(*args, **kwargs, out_val=out)


@dataclass(frozen=True)
class _Output:
    """One result of an operation: input number ``same`` itself, a view of input ``base``, or a new tensor."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    offset: int
    same: int | None
    base: int | None

    @classmethod
    def of(cls, out: FakeTensor, inputs: Sequence[FakeTensor]) -> _Output:
        storage = out.untyped_storage()._cdata
        same = next((i for i, x in enumerate(inputs) if x is out), None)
        base = next((i for i, x in enumerate(inputs) if x.untyped_storage()._cdata == storage), None)
        return cls(out.shape, out.stride(), out.dtype, out.fake_device, int(out.storage_offset()), same, base)

    def tensor(self, inputs: Sequence[FakeTensor], mode: FakeTensorMode) -> Tensor:
        if self.same is not None:
            return inputs[self.same]
        bare = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")
        if self.base is not None:
            storage = inputs[self.base].untyped_storage()
            with in_kernel_invocation_manager(mode):
                bare.set_(storage, self.offset, self.shape, self.stride)
        return FakeTensor(mode, bare, self.device)


@dataclass(frozen=True)
class _Known:
    """The result of an operation for inputs of known shapes: the layers of a network repeat themselves, and torch's
    own propagation of shapes is slow."""

    outputs: tuple[_Output | None, ...]
    container: type | None
    flops: int

    @classmethod
    def of(cls, out: Any, inputs: Sequence[FakeTensor], flops: int) -> _Known | None:
        """None where the results are not tensors alone."""
        several = isinstance(out, (tuple, list))
        parts = tuple(out) if several else (out,)
        if not all(part is None or isinstance(part, FakeTensor) for part in parts):
            return None
        outputs = tuple(None if part is None else _Output.of(part, inputs) for part in parts)
        return cls(outputs, type(out) if several else None, flops)

    def result(self, inputs: Sequence[FakeTensor], mode: FakeTensorMode) -> Any:
        parts = [None if out is None else out.tensor(inputs, mode) for out in self.outputs]
        return parts[0] if self.container is None else self.container(parts)


def _describe(value: Any, key: list[Any], tensors: list[FakeTensor]) -> bool:
    """Append what decides the shapes of the result to ``key``; False where a value decides, too."""
    if isinstance(value, FakeTensor):
        key.append((value.shape, value.stride(), value.dtype, value.storage_offset(), value.fake_device))
        tensors.append(value)
    elif value is None or isinstance(value, (int, float, str, *ATTRIBUTES)):
        key.append((type(value), value))
    elif isinstance(value, (tuple, list)):
        key.append(len(value))
        return all(_describe(item, key, tensors) for item in value)
    elif isinstance(value, dict):
        key.append(tuple(value))
        return all(_describe(item, key, tensors) for item in value.values())
    else:
        return False
    return True


class Recorder(TorchDispatchMode):
    """Records allocations (``events``) and floating-point operations (``flops``, by label).

    Two floating-point operations for each multiply-add of matrix products, convolutions and attention, as torch's
    ``FlopCounterMode`` counts; everything else is not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.events: list[Event] = []
        self.flops: Counter[str] = Counter()
        self.label: str | None = None
        """Overrides the label of what is allocated."""
        self._blocks: dict[int, Block] = {}
        self._finalizers: dict[int, weakref.ref[Any]] = {}
        self._modules: list[nn.Module] = []
        self._attention_elements = 0
        self._made_by: dict[int, Any] = {}
        self._known: dict[tuple[Any, ...], _Known | None] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; torch's guard against it would cost a third of the time."""
        return False

    # --- tensors without values -----------------------------------------------------------------

    def empty(self, shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor without values, recorded under ``self.label``."""
        with self.fake:
            out = torch.empty(tuple(shape), dtype=dtype, device=device)
        self._record(out)
        return out

    def adopt(self, module: nn.Module, device: torch.device) -> None:
        """Replace the parameters and buffers of a module by tensors without values on ``device``, which exist before
        the recording."""
        replaced: dict[int, Tensor] = {}
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None and id(parameter) not in replaced:
                    bare = self._without_values(parameter.detach(), device)
                    replaced[id(parameter)] = nn.Parameter(bare, requires_grad=parameter.requires_grad)
                if parameter is not None:
                    part._parameters[name] = replaced[id(parameter)]  # type: ignore[assignment]
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = self._without_values(buffer, device)
        self._finalizers.clear()
        self._blocks = {t.untyped_storage()._cdata: Block(0, "") for t in (*module.parameters(), *module.buffers())}
        self.events, self.flops = [], Counter()

    def _without_values(self, tensor: Tensor, device: torch.device) -> Tensor:
        bare = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        return FakeTensor(self.fake, bare, device)

    # --- recording ------------------------------------------------------------------------------

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record what runs inside, in this thread."""
        before = hooks.register_module_forward_pre_hook(self._enter_module)
        after = hooks.register_module_forward_hook(self._leave_module, always_call=True)
        with ExitStack() as stack:
            stack.callback(before.remove)
            stack.callback(after.remove)
            stack.enter_context(torch.autograd.set_multithreading_enabled(False))
            stack.enter_context(self)
            yield

    def _enter_module(self, module: nn.Module, _: Any) -> None:
        self._modules.append(module)

    def _leave_module(self, module: nn.Module, *_: Any) -> None:
        while self._modules and self._modules.pop() is not module:
            pass  # left by an exception, as checkpointing ends a forward pass

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return args[0].fake_device
        kwargs = kwargs or {}
        if any(issubclass(kind, FakeTensor) for kind in types):
            out, flops = self._call(func, args, kwargs)
        elif func is aten.empty.memory_format and math.prod(args[0]) >= LARGE:
            with self.fake:
                out, flops = func(*args, **kwargs), 0
        else:
            out = func(*args, **kwargs)
            flops = _flops(func, args, kwargs, out)
        if flops:
            self.flops[self._place()] += flops
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self._record(tensor, func)
        return out

    def _call(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, int]:
        """The result without values, and the floating-point operations."""
        if func is aten._local_scalar_dense.default:
            kind = args[0].dtype
            if kind is torch.bool:
                return self._made_by.get(args[0].untyped_storage()._cdata) in TRUE, 0
            return 1.0 if kind.is_floating_point else 1, 0
        if func is aten.nonzero.default:  # how many are not 0 is unknown: all
            mask = args[0]
            with self.fake:
                return mask.new_zeros((mask.numel(), mask.ndim), dtype=torch.long), 0
        if func is aten.index.Tensor:
            args = (args[0], list(_without_masks(args[1])))
        key: list[Any] = [func]
        tensors: list[FakeTensor] = []
        repeatable = _describe((args, kwargs), key, tensors) and torch.Tag.inplace_view not in func.tags
        recorded = self._known.get(tuple(key)) if repeatable else None
        if recorded is not None:
            return recorded.result(tensors, self.fake), recorded.flops
        with self.fake:
            out = func(*args, **kwargs)
        flops = _flops(func, args, kwargs, out)
        if repeatable:
            self._known[tuple(key)] = _Known.of(out, tensors, flops)
        return out, flops

    def _record(self, tensor: Tensor, func: Any = None) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._blocks or not size:
            return
        backward, grad = torch._C._current_graph_task_id() != -1, torch.is_grad_enabled()
        label = self.label or self._label(func, tensor)
        if tensor.dtype is torch.bool and not tensor.ndim:
            self._made_by[key] = func
        block = Block(size, label, backward and not grad, backward and grad)
        block.is_sum = block.backward and func is aten.add.Tensor
        self._blocks[key] = block
        self.events.append((block, True))
        self._finalizers[key] = weakref.ref(storage, lambda _: self._free(key))

    def _free(self, key: int) -> None:
        del self._finalizers[key]
        self._made_by.pop(key, None)
        self.events.append((self._blocks.pop(key), False))

    def take_events(self) -> list[Event]:
        """What was recorded since the last call; blocks that are freed together, the oldest first.

        Autocast frees its copies of the weights in the order of their addresses, which is another one every time.
        """
        events, self.events = self.events, []
        age = {block: number for number, (block, allocated) in enumerate(events) if allocated}
        result: list[Event] = []
        for allocated, group in itertools.groupby(events, key=itemgetter(1)):
            together = list(group)
            if not allocated:
                together.sort(key=lambda event: age.get(event[0], -1))
            result += together
        return result

    def _place(self) -> str:
        """Where the code runs that is recorded now: the innermost module that is not one of torch's own."""
        if torch._C._current_graph_task_id() != -1:
            return RECOMPUTED if torch.is_grad_enabled() else IN_FLIGHT
        for module in reversed(self._modules):
            if not type(module).__module__.startswith("torch."):
                return f"activations of {type(module).__name__}"
        return LOSS

    def _label(self, func: Any, tensor: Tensor) -> str:
        label = self._place()
        if label == IN_FLIGHT:
            return label
        if func is aten._softmax.default and tensor.ndim > 2:
            self._attention_elements = tensor.numel()
            return ATTENTION
        # Matrices in another number type.
        same = func is aten._to_copy.default and tensor.ndim > 2 and tensor.numel() == self._attention_elements
        return ATTENTION if same else label


def _without_masks(indices: Iterable[Tensor | None]) -> Iterator[Tensor | None]:
    """Numbers in place of boolean masks: those of a mask with values; all, where it has none."""
    for index in indices:
        if index is None or index.dtype is not torch.bool:
            yield index
        elif isinstance(index, FakeTensor):
            yield from (torch.zeros(index.numel(), dtype=torch.long) for _ in range(index.ndim))
        else:
            yield from index.nonzero().unbind(1)
