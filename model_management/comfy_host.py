"""ComfyUI, where this process is ComfyUI. The only file that touches the host's modules, and it never imports them."""

from __future__ import annotations

import sys
from typing import cast


def list_files(folder: str) -> list[str]:
    """Names of the host's model files of a kind ("vae"); empty outside ComfyUI."""
    host = sys.modules.get("folder_paths")
    return [] if host is None else cast(list[str], list(host.get_filename_list(folder)))


def find_file(folder: str, name: str) -> str:
    """The path of a name that `list_files` gave."""
    return cast(str, sys.modules["folder_paths"].get_full_path_or_raise(folder, name))
