"""Writing a file so that its name holds either the old content or the whole new one, whatever goes wrong between."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Generator[Path, None, None]:
    """A temporary path beside `target` to write to; on success it becomes `target`, on any exception it is removed.

    The temporary name keeps the suffix of `target`, because some writers choose the format by it. A link is followed,
    as an ordinary open would do. The new file has the permissions of any newly created file.
    """
    final = Path(target).resolve()
    if final.is_dir():
        raise ValueError(f"output: expected a file name, got the folder {target}: add a file name to it")
    temporary = final.with_name(f".tmp-{secrets.token_hex(6)}{final.suffix}")
    try:
        with temporary.open("xb") as created:
            mode = stat.S_IMODE(os.fstat(created.fileno()).st_mode)
        yield temporary
        # Some writers (safetensors 0.8) replace the mode by one that only the owner can read.
        temporary.chmod(mode)
        with temporary.open("r+b") as written:
            os.fsync(written.fileno())
        os.replace(temporary, final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove what a process that was killed while it wrote has left beside its targets; nobody else may write there."""
    for path in folder.glob(".tmp-" + "[0-9a-f]" * 12 + "*"):
        path.unlink(missing_ok=True)


def require_writable(path: str | os.PathLike[str]) -> None:
    """Check before any work that `path` can be written; a missing folder is created. ValueError in one line if not."""
    target = Path(path)
    if target.is_dir():
        raise ValueError(f"output: expected a file name, got the folder {target}: add a file name to it")
    folder = target.resolve().parent
    probe = folder / f".tmp-{secrets.token_hex(6)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.open("xb").close()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ValueError(
            f"output: expected a writable folder, got {folder}: {reason}; choose another folder"
        ) from error
