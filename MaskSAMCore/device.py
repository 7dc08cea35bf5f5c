"""Choice of the device and precision, and the memory that is free."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from MaskSAMCore.errors import InputError, ResourceError

if TYPE_CHECKING:
    import torch

GIB = 1 << 30
BF16_CAPABILITY = (8, 0)
"""Least CUDA compute capability that computes in bf16."""
_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


def choose_device(name: str = "auto") -> torch.device:
    """The device called `name`: auto (a CUDA GPU if one works, else the CPU), cpu, cuda or cuda:N.

    Apple's mps is not offered, as its 3-D operators have not been tested.

    Raises:
        InputError: The name is unknown, or the GPU cannot be used.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, colon, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (colon and not (kind == "cuda" and index.isdecimal())):
        raise InputError("unknown device", where=name, remedy="Use auto, cpu, cuda or cuda:N.")
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        why = "no GPU or no driver" if torch.version.cuda else "this PyTorch was built without CUDA"
        raise InputError("no CUDA GPU can be used", where=name, why=why, remedy="Use --device cpu, or auto.")
    count = torch.cuda.device_count()
    if index and int(index) >= count:
        raise InputError("no such GPU", where=name, why=f"this computer has {count}")
    return torch.device(name)


def describe(device: torch.device) -> str:
    """One line about a device, its free memory included, for the user."""
    import torch

    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        name = torch.cuda.get_device_name(device)
        return f"GPU {name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
    free_ram = available_ram()
    memory = f", {free_ram / GIB:.1f} GiB of memory free" if free_ram is not None else ""
    return f"CPU, {torch.get_num_threads()} thread(s){memory}; no GPU is used, so this is slower"


def autocast_dtype(device: torch.device, precision: str = "auto") -> torch.dtype | None:
    """The number type for `torch.autocast`; None for plain float32.

    Args:
        device: Where the network runs.
        precision: "fp32", "bf16", "fp16", or "auto": bf16 on GPUs that have it, fp16 on older ones, float32 on the CPU.

    Raises:
        InputError: The precision is unknown, or the device cannot compute in it.
    """
    import torch

    types = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision == "auto":
        if device.type != "cuda":
            return None
        native = torch.cuda.get_device_capability(device) >= BF16_CAPABILITY
        return torch.bfloat16 if native else torch.float16
    if precision not in types:
        raise InputError("unknown precision", where=precision, remedy="Use auto, fp32, bf16 or fp16.")
    if precision == "fp16" and device.type != "cuda":
        raise InputError("fp16 needs a GPU", where=precision, remedy="Use auto, fp32 or bf16 on the CPU.")
    if precision == "bf16" and not trains_in_bf16(device):
        raise InputError(
            "bf16 is not safe on this CPU",
            where=precision,
            why="with AMX, the backward pass of PyTorch's 3-D convolutions may never end",
            remedy="Use auto or fp32.",
        )
    return types[precision]


def inference_dtype(device: torch.device) -> torch.dtype | None:
    """The number type in which the click model answers: the fastest that the device computes in; None for float32.

    On a CPU that is bf16 where it has instructions for it (0.45 of float32's time), else float32.
    """
    import torch

    if device.type != "cpu":
        return autocast_dtype(device)
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return torch.bfloat16 if supported is not None and supported() else None


def trains_in_bf16(device: torch.device) -> bool:
    """Whether a device can train in bf16.

    On CPUs with AMX, oneDNN's backward pass for the weights of a 3-D convolution deadlocks for some shapes with two or
    more threads (64 to 32 channels, kernel 1x3x3, 6x256x224 voxels; PyTorch 2.14).
    """
    import torch

    if device.type != "cpu":
        return True
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return has_amx is not None and not has_amx()


def available_ram() -> int | None:
    """Free memory for this process in bytes, within the limits of its container; None if unknown."""
    free = [value for value in (_system_ram(), _cgroup_ram()) if value is not None]
    return min(free) if free else None


def available_memory(device: torch.device) -> int | None:
    """Free memory of a device in bytes, the computer's for the CPU; None if unknown."""
    import torch

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + reusable
    return available_ram()


def array_bytes(*shape: int, itemsize: int = 4) -> int:
    """Size of an array in bytes."""
    total = itemsize
    for size in shape:
        total *= int(size)
    return total


def require_ram(needed: int, *, what: str, remedy: str = "Close other programs, or choose a smaller region.") -> None:
    """Check that so much memory is free (faults.md row 48); passes if the free memory is unknown.

    Args:
        needed: Bytes.
        what: What needs them: a file or a task.
        remedy: For the message.

    Raises:
        ResourceError: Less is free; names both numbers.
    """
    free = available_ram()
    if free is not None and needed > free:
        raise ResourceError(
            "not enough memory",
            where=what,
            why=f"about {needed / GIB:.1f} GiB needed, {free / GIB:.1f} GiB free",
            remedy=remedy,
        )


def _system_ram() -> int | None:
    if sys.platform == "win32":
        return _windows_ram()
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # no /proc: macOS and other systems
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def _cgroup_ram() -> int | None:
    """What the limit of the container leaves; too low rather than too high, as file caches count as used."""
    for limit, used in _CGROUPS:
        try:
            return max(0, int(limit.read_text()) - int(used.read_text()))
        except (OSError, ValueError):
            continue  # no such group, or "max"
    return None


def _windows_ram() -> int | None:
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            ("total", ctypes.c_ulonglong),
            ("available", ctypes.c_ulonglong),
            ("rest", ctypes.c_ulonglong * 5),
        )

    status = Status(length=ctypes.sizeof(Status))
    windows = getattr(ctypes, "windll", None)
    if windows is None or not windows.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return int(status.available)
