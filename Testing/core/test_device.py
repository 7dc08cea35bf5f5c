"""Device, precision and memory: honest answers, and refusals with numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from MaskSAMCore import device
from MaskSAMCore.errors import InputError, ResourceError

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["mps", "gpu", "cuda:", "cuda:x", "cpu:0", "", "CUDA"])
def test_unknown_devices_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="unknown device"):
        device.choose_device(name)


def test_a_gpu_that_is_not_there_is_refused_and_auto_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.choose_device("auto") == CPU
    assert device.choose_device("cpu") == CPU
    with pytest.raises(InputError, match="no CUDA GPU") as caught:
        device.choose_device("cuda")
    assert "--device cpu" in caught.value.remedy


def test_a_gpu_number_beyond_the_last_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device.choose_device("cuda:1") == torch.device("cuda:1")
    assert device.choose_device("auto") == torch.device("cuda")
    with pytest.raises(InputError, match="this computer has 2"):
        device.choose_device("cuda:2")


def test_the_cpu_is_announced_as_slow() -> None:
    line = device.describe(CPU)
    assert line.startswith("CPU, ")
    assert "slower" in line


def test_precision_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert device.autocast_dtype(CPU) is None
    assert device.autocast_dtype(CPU, "fp32") is None
    assert device.autocast_dtype(CPU, "bf16") is torch.bfloat16
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        device.autocast_dtype(CPU, "fp16")
    with pytest.raises(InputError, match="unknown precision"):
        device.autocast_dtype(CPU, "tf32")


def test_where_convolutions_may_never_return_bf16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    with pytest.raises(InputError, match="not safe on this CPU"):
        device.autocast_dtype(CPU, "bf16")
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert not device.trains_in_bf16(CPU), "unknown is not safe"
    assert device.trains_in_bf16(torch.device("cuda"))


@pytest.mark.parametrize(("capability", "expected"), [((9, 0), torch.bfloat16), ((7, 5), torch.float16)])
def test_auto_precision_follows_the_gpu(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert device.autocast_dtype(torch.device("cuda")) is expected


def test_memory_is_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "available_ram", lambda: 2 * device.GIB)
    device.require_ram(device.GIB, what="ct.nii.gz")
    with pytest.raises(ResourceError) as caught:
        device.require_ram(device.array_bytes(6, 512, 1024, 1024), what="ct.nii.gz")
    assert caught.value.why == "about 12.0 GiB needed, 2.0 GiB free"
    monkeypatch.setattr(device, "available_ram", lambda: None)
    device.require_ram(1 << 60, what="unknown is let through")


def test_a_container_limit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limit, used = tmp_path / "max", tmp_path / "current"
    limit.write_text("3000\n")
    used.write_text("1000\n")
    monkeypatch.setattr(device, "_CGROUPS", ((tmp_path / "absent", used), (limit, used)))
    assert device.available_ram() == 2000
    limit.write_text("max\n")
    free = device.available_ram()
    assert free is None or free > 2000


@pytest.mark.gpu
def test_a_real_gpu_is_described() -> None:
    gpu = device.choose_device("auto")
    assert gpu.type == "cuda"
    assert "GiB free" in device.describe(gpu)
    assert device.available_memory(gpu) > 0
