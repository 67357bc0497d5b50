"""What a failed or interrupted write leaves behind: the old file, and nothing else."""

import os
import stat
from pathlib import Path

import pytest
from exact_vae.vae_model.files.atomic import atomic_path, require_writable


def test_the_new_content_replaces_the_old(tmp_path: Path) -> None:
    target = tmp_path / "image.png"
    target.write_text("old")
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.suffix == ".png"
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failure_keeps_the_old_file_and_leaves_no_other(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "image.png"
    target.write_text("old")

    def write() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failure_without_an_old_file_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_path(tmp_path / "image.png"):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_cannot_be_replaced_leaves_no_temporary(tmp_path: Path) -> None:
    folder = tmp_path / "taken.png"
    folder.mkdir()
    (folder / "inside").touch()

    def write() -> None:
        with atomic_path(folder) as temporary:
            temporary.write_text("new")

    with pytest.raises(ValueError, match=r"^output: expected a file name, got the folder .*taken.png: add a file name"):
        write()
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permission bits")
def test_the_permissions_are_those_of_a_created_file(tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    target = tmp_path / "target"
    with atomic_path(target) as temporary:
        temporary.unlink()
        temporary.touch(mode=0o600)  # As writers do that create the file anew.
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    real = tmp_path / "elsewhere" / "image.png"
    link = tmp_path / "link.png"
    link.symlink_to(real)
    with atomic_path(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert real.read_text() == "new"


def test_a_long_name_fits(tmp_path: Path) -> None:
    target = tmp_path / ("x" * 250 + ".png")
    with atomic_path(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"


def test_require_writable_makes_the_folder_and_leaves_nothing_in_it(tmp_path: Path) -> None:
    require_writable(tmp_path / "a" / "b" / "image.png")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_require_writable_explains_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        ValueError, match=r"^output: expected a writable folder, got .*file: .*; choose another folder$"
    ):
        require_writable(tmp_path / "file" / "image.png")
    with pytest.raises(ValueError, match=r"^output: expected a writable folder, got .*deep: "):
        require_writable(tmp_path / "file" / "deep" / "image.png")
    with pytest.raises(ValueError, match=r"^output: expected a file name, got the folder .*: add a file name"):
        require_writable(tmp_path)
