"""Main memory of the machine and of containers, from small made-up file trees."""

import sys
from pathlib import Path

import pytest
from exact_vae.model_management.container import (
    HostMemory,
    container_memory,
    host_memory,
    machine_memory,
    parse_meminfo,
    parse_vm_stat,
)

GIB = 1024**3
MEMINFO = "MemTotal:       16777216 kB\nMemFree:         1000 kB\nMemAvailable:    8388608 kB\nCached:  500 kB\n"
V1_UNLIMITED = 9223372036854771712


def write(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def v2_group(folder: str, limit: object, usage: int, inactive: int = 0) -> dict[str, object]:
    stat = f"anon 5\ntotal_inactive_file 999999999\ninactive_file {inactive}\nactive_file 7"
    return {f"{folder}/memory.max": limit, f"{folder}/memory.current": usage, f"{folder}/memory.stat": stat}


def v1_group(folder: str, limit: object, usage: int, inactive: int = 0) -> dict[str, object]:
    stat = f"inactive_file 999999999\ntotal_inactive_file {inactive}"
    return {
        f"{folder}/memory.limit_in_bytes": limit,
        f"{folder}/memory.usage_in_bytes": usage,
        f"{folder}/memory.stat": stat,
    }


def test_no_control_groups_at_all(tmp_path: Path) -> None:
    assert container_memory(tmp_path) is None


def test_v2_group_counts_droppable_page_cache_as_room(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/job", **v2_group("sys/fs/cgroup/job", 4 * GIB, 3 * GIB, inactive=GIB)}
    assert container_memory(write(tmp_path, files)) == HostMemory(4 * GIB, 2 * GIB)


def test_v2_inside_a_container_its_group_is_the_mount_point(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/", **v2_group("sys/fs/cgroup", 2 * GIB, GIB // 2)}
    assert container_memory(write(tmp_path, files)) == HostMemory(2 * GIB, 3 * GIB // 2)


def test_v2_takes_the_tightest_of_all_groups_around_the_process(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/a/b/c",
        **v2_group("sys/fs/cgroup/a", 8 * GIB, 7 * GIB),
        **v2_group("sys/fs/cgroup/a/b", 3 * GIB, GIB),
        **v2_group("sys/fs/cgroup/a/b/c", "max", GIB),
        **v2_group("sys/fs/cgroup/other", 1, 1),
    }
    assert container_memory(write(tmp_path, files)) == HostMemory(3 * GIB, GIB)


def test_v2_word_max_is_no_limit(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/job", **v2_group("sys/fs/cgroup/job", "max", GIB)}
    assert container_memory(write(tmp_path, files)) is None


def test_usage_above_the_limit_leaves_no_room_rather_than_negative_room(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/job", **v2_group("sys/fs/cgroup/job", GIB, 2 * GIB)}
    assert container_memory(write(tmp_path, files)) == HostMemory(GIB, 0)


def test_v2_path_that_leaves_the_namespace_means_the_mount_point(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/../../other",
        **v2_group("sys/fs/cgroup", 5 * GIB, GIB),
        **v2_group("sys/other", 1, 1),
    }
    assert container_memory(write(tmp_path, files)) == HostMemory(5 * GIB, 4 * GIB)


def test_v1_group_whose_folder_only_the_machine_can_see(tmp_path: Path) -> None:
    # Without a cgroup namespace the path is the machine's, while the container's own group is mounted at the top.
    files = {
        "proc/self/cgroup": "9:cpu,memory:/docker/0123\n1:name=systemd:/docker/0123",
        **v1_group("sys/fs/cgroup/memory", 2 * GIB, GIB, inactive=GIB // 4),
    }
    assert container_memory(write(tmp_path, files)) == HostMemory(2 * GIB, 5 * GIB // 4)


def test_v1_walks_upwards_and_knows_its_word_for_no_limit(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/outer/inner\n0::/",
        **v1_group("sys/fs/cgroup/memory", V1_UNLIMITED, 9 * GIB),
        **v1_group("sys/fs/cgroup/memory/outer", 6 * GIB, 5 * GIB),
        **v1_group("sys/fs/cgroup/memory/outer/inner", V1_UNLIMITED, GIB),
    }
    assert container_memory(write(tmp_path, files)) == HostMemory(6 * GIB, GIB)


def test_broken_lines_are_passed_over(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "nonsense\n\n0::/job", **v2_group("sys/fs/cgroup/job", GIB, 0)}
    assert container_memory(write(tmp_path, files)) == HostMemory(GIB, GIB)


def test_meminfo_is_in_kib_and_prefers_mem_available() -> None:
    assert parse_meminfo(MEMINFO) == HostMemory(16 * GIB, 8 * GIB)


def test_meminfo_of_old_kernels_adds_free_buffers_and_cache() -> None:
    text = "MemTotal: 100 kB\nMemFree: 10 kB\nBuffers: 3 kB\nCached: 20 kB\nSwapFree: 50 kB\n"
    assert parse_meminfo(text) == HostMemory(100 * 1024, 33 * 1024)


def test_meminfo_without_a_total_is_an_error() -> None:
    with pytest.raises(OSError, match=r"^meminfo: expected a line 'MemTotal"):
        parse_meminfo("MemFree: 10 kB\n")


def test_vm_stat_adds_free_speculative_and_inactive_pages() -> None:
    text = (
        "Mach Virtual Memory Statistics: (page size of 16384 bytes)\n"
        "Pages free:                               10.\n"
        "Pages active:                           5000.\n"
        "Pages inactive:                          200.\n"
        "Pages speculative:                         3.\n"
        "Pages wired down:                       7000.\n"
    )
    assert parse_vm_stat(text) == 213 * 16384


def test_vm_stat_without_page_size_is_an_error() -> None:
    with pytest.raises(OSError, match=r"^vm_stat: expected 'page size"):
        parse_vm_stat("")


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux files")
def test_host_memory_is_the_machine_within_the_container(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/job",
        **v2_group("sys/fs/cgroup/job", 32 * GIB, 30 * GIB),
    }
    # The limit is above the machine's total, the room in the group is below the machine's available memory.
    assert host_memory(write(tmp_path, files)) == HostMemory(16 * GIB, 2 * GIB)


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux files")
def test_without_a_container_host_memory_is_the_machine(tmp_path: Path) -> None:
    assert host_memory(write(tmp_path, {"proc/meminfo": MEMINFO})) == HostMemory(16 * GIB, 8 * GIB)


def test_the_numbers_of_this_machine_are_plausible() -> None:
    machine, here = machine_memory(), host_memory()
    assert 128 * 1024**2 < machine.total_bytes < 2**50
    assert 0 < machine.available_bytes <= machine.total_bytes
    assert 0 < here.total_bytes <= machine.total_bytes
