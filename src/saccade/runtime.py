"""Where a run runs: device, precision, processes. The only file that touches torch.distributed."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import importlib
import os
import platform
from collections.abc import Iterator
from contextvars import ContextVar
from importlib import metadata
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import constants

from saccade.base.random import seed_number
from saccade.errors import UsageError, first_line

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # numbers of glibc's malloc.h


def pick_device(name: str | None = None) -> torch.device:
    """The named device, or the best there is: CUDA (this process's own card), Apple MPS, CPU."""
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"device {name!r} cannot be used here",
            got=first_line(error),
            hint="saccade doctor lists devices",
        ) from error
    return device


def gains_from_bf16(device: torch.device) -> bool:
    """True where bf16 products run on hardware: Ampere or newer, or a CPU with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    flags = torch.backends.cpu.get_cpu_capability()
    return flags.startswith("AVX512") and torch.ops.mkldnn._is_mkldnn_bf16_supported() and _cpu_has("avx512_bf16")


def usual_precision(device: torch.device) -> Literal["bf16", "fp32"]:
    """The precision used where none is named."""
    return "bf16" if gains_from_bf16(device) else "fp32"


def _cpu_has(flag: str) -> bool:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            return any(flag in line for line in file if line.startswith("flags"))
    except OSError:
        return False


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """bf16 autocast for ``precision="bf16"``, nothing for ``"fp32"``."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def keep_freed_memory() -> None:
    """Let this process keep memory that tensors gave back, instead of returning it to the system (glibc only).

    Otherwise every large activation of every step is new memory, which the system fills with zeros page by page:
    a sixth of the time of a ViT-Ti step on the CPU.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def torch_generator(*words: int | str) -> torch.Generator:
    """A CPU generator for a stream named by words (see ``base.random``).

    Draw on the CPU and move the numbers to the device: then they are the same on every device.

    Examples
    --------
    >>> draws = [torch.rand(2, generator=torch_generator(0, "views", 3)) for _ in range(2)]
    >>> torch.equal(*draws)
    True
    """
    return torch.Generator().manual_seed(seed_number(*words))


# --- processes ---------------------------------------------------------------------------------


VARIABLES = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")
"""By which torchrun tells a process of its group."""
RENDEZVOUS_S = {"torchrun": 600, "alone": 60}
"""Seconds that a process waits for the others."""

_single: ContextVar[bool] = ContextVar("single_process", default=False)


@contextlib.contextmanager
def single_process() -> Iterator[None]:
    """Inside, this process computes as if it were the only one: nothing is exchanged with the others."""
    token = _single.set(True)
    try:
        yield
    finally:
        _single.reset(token)


def _distributed() -> bool:
    return dist.is_initialized() and not _single.get()


def rank() -> int:
    return dist.get_rank() if _distributed() else 0


def launched_rank() -> int:
    """This process's number as torchrun gave it, also before and after the group exists."""
    number = os.environ.get("RANK", "0")
    return int(number) if number.isdecimal() else 0  # ``processes`` refuses other values


def world_size() -> int:
    return dist.get_world_size() if _distributed() else 1


def _launched_size() -> int:
    """WORLD_SIZE; UsageError where it or RANK was left over from another program."""
    numbers = {}
    for name, default in (("WORLD_SIZE", "1"), ("RANK", "0")):
        value = os.environ.get(name, default)
        if not value.isdecimal():
            raise UsageError(f"the environment variable {name} is not a number", got=repr(value), hint=f"unset {name}")
        numbers[name] = int(value)
    size, number = numbers["WORLD_SIZE"], numbers["RANK"]
    if number >= max(1, size):
        raise UsageError(
            "the environment variable RANK does not fit WORLD_SIZE",
            got=f"RANK={number}, WORLD_SIZE={os.environ.get('WORLD_SIZE', 'not set')}",
            hint="for a single process: unset RANK WORLD_SIZE; for several: torchrun sets both",
        )
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if size > 1 and missing:
        raise UsageError(
            f"the environment variable WORLD_SIZE={size} asks for {size} processes",
            got=f"{', '.join(missing)} not set",
            hint="for a single process: unset WORLD_SIZE; for several: start them with torchrun",
        )
    return size


def _meet() -> dist.Store:
    """The store of the group, once all processes are there. Raises UsageError, naming the variables.

    Processes that torchrun starts may come minutes apart, on several machines; without torchrun all four variables may
    be left over from another program, and the other processes never come.
    """
    seconds = RENDEZVOUS_S["torchrun" if "TORCHELASTIC_RUN_ID" in os.environ else "alone"]
    store: dist.Store
    try:
        store, _, _ = next(iter(dist.rendezvous("env://", timeout=datetime.timedelta(seconds=seconds))))
    except (RuntimeError, ValueError, OSError) as error:  # torch.distributed raises several kinds of RuntimeError
        variables = ", ".join(f"{name}={os.environ.get(name)}" for name in VARIABLES)
        raise UsageError(
            "the other processes of this run did not come",
            got=f"{variables}; {first_line(error)}",
            expected=f"{os.environ['WORLD_SIZE']} processes within {seconds} s",
            hint=f"for a single process: unset {' '.join(VARIABLES)}; for several: start them with torchrun",
        ) from error
    store.set_timeout(constants.default_pg_timeout)
    return store


@contextlib.contextmanager
def processes(device: torch.device) -> Iterator[None]:
    """Join the group that ``torchrun`` describes in the environment; a single process needs no port."""
    if _launched_size() <= 1 or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Its functions take the group as a default argument: imported later (by the optimiser), they would hold the group
    # past its end, and its threads could abort the process on the way out.
    importlib.import_module("torch.distributed.nn.functional")
    # Numbers for people are averaged on the CPU, gradients where they are.
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=_meet(),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean of a tensor over all processes (no gradient); the tensor itself for one process."""
    if world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x / world_size()


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of a tensor over all processes (no gradient); the tensor itself for one process."""
    if world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x


def gather_over_ranks(x: Tensor) -> Tensor:
    """[W B ...] the rows of all processes (no gradient), this process's own from ``rank() * B`` on."""
    if world_size() == 1:
        return x.detach()
    found = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(found, x.detach().contiguous())
    return torch.cat(found)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return gather_over_ranks(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = sum_over_ranks(grad)
        return grad.view(world_size(), -1, *grad.shape[1:])[rank()]


def gather_with_gradient(x: Tensor) -> Tensor:
    """[W B ...] the rows of all processes, each gradient back to the process that its rows came from."""
    return x if world_size() == 1 else _Gather.apply(x)


def max_over_ranks(value: float) -> float:
    """The largest of a number over all processes: a plan must fit the slowest."""
    if world_size() == 1:
        return value
    x = torch.tensor(value)
    dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return float(x)


def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Average gradients over processes in one flat message, after the last micro-batch (DDP's result)."""
    if world_size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    flat = torch._utils._flatten_dense_tensors(gradients)
    dist.all_reduce(flat)
    flat /= world_size()
    torch._foreach_copy_(gradients, list(torch._utils._unflatten_dense_tensors(flat, gradients)))


def any_rank(flag: bool) -> bool:
    """True on every process if it is true on any: stop decisions must be taken together."""
    return bool(max_over_ranks(float(flag)))


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


# --- what to write down about this machine -----------------------------------------------------


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, for env.json. No user or host name, no path."""
    packages = ("saccade", "torch", "torchvision", "timm", "numpy", "scikit-learn", "pillow")
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "bf16": gains_from_bf16(device),
        "processes": world_size(),
        "versions": {name: metadata.version(name) for name in packages},
    }
