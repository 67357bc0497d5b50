"""A ComfyUI started for tests: its own base directory, the CPU, a free port, and only the packs that are put there."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACK = "ExactVAE-main"
"""The folder in custom_nodes, with a hyphen, as an unpacked archive has it."""
TEST_PACK = Path(__file__).with_name("pack_of_tests.py")
OPTIONAL_FLAGS = ("--disable-api-nodes", "--disable-assets")
START_SECONDS = 300


class Server:
    """A running ComfyUI; `log` is the file with all it printed, `object_info` what its nodes were at the start."""

    def __init__(self, comfy_dir: Path, python: str, base: Path, *, pack: str | None = PACK) -> None:
        """`pack`: the name of our folder in custom_nodes; None for a host without us."""
        self.base, self.log = base, base / "server.log"
        _lay_out(comfy_dir, base, pack)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        command = [python, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(self.port)]
        known = _known_flags(comfy_dir, python)
        command += ["--base-directory", str(base), *(flag for flag in OPTIONAL_FLAGS if flag in known)]
        if "--database-url" in known:
            command += ["--database-url", f"sqlite:///{base / 'comfyui.db'}"]
        with self.log.open("wb") as out:
            self._process = subprocess.Popen(command, cwd=comfy_dir, stdout=out, stderr=subprocess.STDOUT)
        try:
            self._wait()
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/object_info", timeout=60) as answer:
                self.object_info: dict[str, Any] = json.load(answer)
        except BaseException:
            self.stop()
            raise

    def text(self) -> str:
        """All it printed so far."""
        return self.log.read_text(errors="replace")

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _wait(self) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended with {self._process.returncode}:\n{self.text()[-3000:]}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/system_stats", timeout=5):
                    return
            except OSError:
                time.sleep(0.3)
        raise RuntimeError(f"ComfyUI did not answer in {START_SECONDS} s:\n{self.text()[-3000:]}")


@cache
def _known_flags(comfy_dir: Path, python: str) -> str:
    result = subprocess.run([python, "main.py", "--help"], cwd=comfy_dir, capture_output=True, text=True, timeout=120)
    return result.stdout


def _lay_out(comfy_dir: Path, base: Path, pack: str | None) -> None:
    """Folders, the host's example image, the pack as a clone would bring it, and the nodes of these tests."""
    for folder in ("custom_nodes", "input", "output", "temp", "user", "models/vae", "models/vae_approx"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    shutil.copy(comfy_dir / "input" / "example.png", base / "input")
    shutil.copy(TEST_PACK, base / "custom_nodes" / "exact_vae_pack_of_tests.py")
    if pack is not None:
        unwanted = shutil.ignore_patterns(".*", "__pycache__", "tests", "*.egg-info", "node_modules")
        shutil.copytree(ROOT, base / "custom_nodes" / pack, ignore=unwanted)
        (base / "custom_nodes" / pack / "tests").mkdir()
        shutil.copy(ROOT / "tests" / "injector.py", base / "custom_nodes" / pack / "tests")  # for these nodes
