"""The C library is built once per machine: later processes find it, and what lies there is ours or not taken."""

import ctypes
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from exact_vae.vae_model.kernels.cpu import compiler
from exact_vae.vae_model.kernels.cpu.kernels import kernels

pytestmark = pytest.mark.skipif(kernels() is None, reason="no C compiler here, or it was told not to be used")
SOURCE = Path(compiler.__file__).with_name("strips.c")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "exact-vae"


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    run, found = subprocess.run, list[list[str]]()

    def note(command: list[str], **options: Any) -> Any:
        found.append(command)
        return run(command, **options)

    monkeypatch.setattr(compiler.subprocess, "run", note)
    return found


def load(source: Path = SOURCE) -> ctypes.CDLL | None:
    return compiler.load(source, lambda library: None, lambda library: library.strip_lanes() > 0)


def test_it_is_built_once(cache: Path, builds: list[list[str]]) -> None:
    assert load() is not None
    assert load() is not None
    assert len(builds) == 1
    assert [path.suffix for path in cache.iterdir()] == [".so"]
    assert cache.stat().st_mode & 0o777 == 0o700


def test_another_source_option_or_processor_is_another_library(
    cache: Path, builds: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load()
    changed = tmp_path / "strips.c"
    changed.write_text(SOURCE.read_text(encoding="utf-8") + "\n/* changed */\n", encoding="utf-8")
    assert load(changed) is not None
    monkeypatch.setattr(compiler, "_cpu", lambda: "another one")
    assert load() is not None
    monkeypatch.setattr(compiler, "_OPTIONS", (*compiler._OPTIONS, "-DANOTHER"))
    assert load() is not None
    assert len(builds) == len(list(cache.iterdir())) == 4


def test_a_file_that_was_cut_off_is_built_anew(cache: Path, builds: list[list[str]]) -> None:
    cache.mkdir(mode=0o700)
    kept = compiler.kept_library(SOURCE, compiler._key(SOURCE, *_found()))
    assert kept is not None
    kept.write_bytes(b"\x7fELF cut off")
    assert load() is not None
    assert len(builds) == 1
    assert kept.stat().st_size > 1000


def _found() -> tuple[str, str]:
    found = next(filter(None, map(compiler.shutil.which, compiler._COMPILERS)), None)
    assert found is not None
    return found, compiler._threads_library()


def test_a_folder_that_others_write_to_is_not_taken(cache: Path, builds: list[list[str]]) -> None:
    cache.mkdir()
    cache.chmod(0o777)
    assert load() is not None
    assert load() is not None
    assert len(builds) == 2
    assert list(cache.iterdir()) == []


def test_without_a_place_to_keep_it_everything_works(
    builds: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "a file"
    blocked.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert load() is not None
    assert len(builds) == 1


def test_a_cache_named_by_a_relative_path_is_that_of_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    kept = compiler.kept_library(SOURCE, "key")
    assert kept == tmp_path / ".cache" / "exact-vae" / "strips-key.so"
    assert not os.path.exists("here")
