"""What this machine has: memory, cores, the names people know it by."""

import os
import platform
from pathlib import Path

import torch

_CGROUP_FILES = (
    "/sys/fs/cgroup/memory.max",  # cgroup v2
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",  # v1
)


def memory_bytes(device: torch.device) -> int:
    """All memory of the device; on CPU what this machine or container may use."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in _CGROUP_FILES:
        try:
            text = Path(name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            total = min(total, int(text))
    return total


def used_bytes(device: torch.device) -> int:
    """Memory in use: all of the GPU's, or what this process holds on CPU (weights included)."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what torch keeps for later is in nobody's use
        free, total = torch.cuda.mem_get_info(device)
        return int(total - free)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def num_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def hardware_name(device: torch.device, *, num_threads: int) -> str:
    """A line a person recognises, as profiles are filed by it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, {num_threads} thread{'s' if num_threads != 1 else ''}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    return platform.processor() or platform.machine()


def computes_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products run natively, not by way of float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    words = set(text.split())
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})  # x86, x86, Arm
