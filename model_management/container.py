"""How much main memory this process may use: what the machine has, bounded by the container it runs in.

Containers on Linux are control groups (cgroups), version 1 or 2; the kernel kills a process that passes its group's
limit although the machine still has memory, so the limit counts and not the machine. The functions that read Linux
files take the root of the file system, so that a test can lay out a small tree of its own.
Sources: the kernel's documentation, admin-guide/cgroup-v2 and admin-guide/cgroup-v1/memory, and proc(5).
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeAlias

ROOT = Path("/")

# Version 1 writes "no limit" as the largest multiple of the page size below 2^63.
_NO_LIMIT_BYTES = 2**60


@dataclass(frozen=True)
class HostMemory:
    """Main memory in bytes: all of it, and what can be allocated now without pushing anything to disk."""

    total_bytes: int
    available_bytes: int

    def within(self, other: HostMemory) -> HostMemory:
        """The smaller of both, field by field."""
        return HostMemory(min(self.total_bytes, other.total_bytes), min(self.available_bytes, other.available_bytes))


_Files: TypeAlias = tuple[str, str, str]
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
"""The names of a version for limit, usage and, in memory.stat, the page cache that can be dropped at once."""


def host_memory(root: Path = ROOT) -> HostMemory:
    """Main memory for this process: the machine's, within the limits of its container where there is one."""
    machine = machine_memory(root)
    container = container_memory(root)
    return machine if container is None else machine.within(container)


def machine_memory(root: Path = ROOT) -> HostMemory:
    """Main memory of the machine, whoever uses it. OSError where the system does not tell."""
    if sys.platform == "win32":
        return _windows_memory()
    meminfo = _read_text(root / "proc/meminfo")
    if meminfo is not None:
        return parse_meminfo(meminfo)
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    total_bytes = os.sysconf("SC_PHYS_PAGES") * page_bytes
    if sys.platform == "darwin":
        text = subprocess.run(["/usr/bin/vm_stat"], capture_output=True, text=True, check=True, timeout=10).stdout
        return HostMemory(total_bytes, parse_vm_stat(text))
    return HostMemory(total_bytes, os.sysconf("SC_AVPHYS_PAGES") * page_bytes)


def parse_meminfo(text: str) -> HostMemory:
    """Read Linux's /proc/meminfo. Kernels before 3.14 have no MemAvailable; there it is free memory plus page cache."""
    size = {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    if "MemTotal" not in size:
        raise OSError("meminfo: expected a line 'MemTotal: <n> kB', got none: is /proc mounted?")
    fallback = size.get("MemFree", 0) + size.get("Buffers", 0) + size.get("Cached", 0)
    return HostMemory(size["MemTotal"], size.get("MemAvailable", fallback))


def parse_vm_stat(text: str) -> int:
    """Available bytes from the output of macOS's vm_stat: free, speculative and inactive pages."""
    page_size = re.search(r"page size of (\d+) bytes", text)
    if page_size is None:
        raise OSError("vm_stat: expected 'page size of <n> bytes' in its first line, got none: is this macOS?")
    pages = re.findall(r"^Pages (?:free|speculative|inactive):\s+(\d+)\.", text, re.MULTILINE)
    return int(page_size[1]) * sum(int(count) for count in pages)


def container_memory(root: Path = ROOT) -> HostMemory | None:
    """The limit and the room of the tightest control group around this process; None where nothing is limited.

    A group's room is limit - (usage - page cache that can be dropped at once), never below 0. Every group from the
    process's own up to the root is read, for each one's limit holds for all groups inside it.
    """
    tightest: HostMemory | None = None
    for folder, files in _groups(root):
        memory = _read_group(folder, files)
        if memory is not None:
            tightest = memory if tightest is None else memory.within(tightest)
    return tightest


def _groups(root: Path) -> Iterator[tuple[Path, _Files]]:
    """The folders of all groups this process is in, innermost first; they need not exist."""
    mount = root / "sys/fs/cgroup"
    for line in (_read_text(root / "proc/self/cgroup") or "").splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and controllers == "":
            yield from ((folder, _V2) for folder in _upwards(mount, path))
        elif "memory" in controllers.split(","):
            yield from ((folder, _V1) for folder in _upwards(mount / "memory", path))


def _upwards(mount: Path, group: str) -> Iterator[Path]:
    """The group's folder, its parent, ... and the mount point itself."""
    parts = PurePosixPath(group).parts[1:]
    # A path through ".." lies outside what this container can see. The mount point is then its own group.
    if ".." in parts:
        parts = ()
    for length in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:length])


def _read_group(folder: Path, files: _Files) -> HostMemory | None:
    limit, usage, reclaimable = files
    limit_bytes = _read_number(folder / limit)
    if limit_bytes is None or limit_bytes >= _NO_LIMIT_BYTES:
        return None
    usage_bytes = _read_number(folder / usage) or 0
    cached = re.search(rf"^{reclaimable} (\d+)$", _read_text(folder / "memory.stat") or "", re.MULTILINE)
    usage_bytes = max(0, usage_bytes - (int(cached[1]) if cached else 0))
    return HostMemory(limit_bytes, max(0, limit_bytes - usage_bytes))


def _read_number(path: Path) -> int | None:
    """The number in a file; None for an absent file and for version 2's word "max"."""
    text = (_read_text(path) or "").strip()
    return int(text) if text.isdecimal() else None


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:  # Absent, or closed to this user: either way it says nothing.
        return None


def _windows_memory() -> HostMemory:
    if sys.platform != "win32":
        raise OSError("expected Windows: read these numbers only there")
    # MEMORYSTATUSEX of the Windows API as numbers of 64 bits: its own size, then total and available bytes of RAM, of
    # RAM with the page file and of addresses; the last one is reserved.
    status = (ctypes.c_uint64 * 8)(64)
    kernel = ctypes.WinDLL("kernel32", use_last_error=True)
    if not kernel.GlobalMemoryStatusEx(status):
        raise ctypes.WinError(ctypes.get_last_error())
    _, total_bytes, available_bytes, _, with_page_file = status[:5]
    # Windows promises no more memory than RAM and page file together hold, so the smaller of the two is what is left.
    return HostMemory(total_bytes, min(available_bytes, with_page_file))
