"""run.py as its tests load it: another folder, and commands that are remembered instead of run."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Commands:
    """Stands in for the two functions that start programs; remembers commands, answers by the last matching rule."""

    def __init__(self, run: ModuleType) -> None:
        self.seen: list[list[str]] = []
        self.answers: dict[str, tuple[int, str]] = {}
        self.run = run

    def answer(self, command: list[str]) -> tuple[int, str]:
        text = " ".join(command)
        return next((answer for part, answer in reversed(self.answers.items()) if part in text), (0, ""))

    def call(self, command: list[str], cwd: Path | None = None) -> int:
        self.seen.append(command)
        if "venv" in command:
            self.run.VENV.mkdir(exist_ok=True)
        return self.answer(command)[0]

    def capture(self, command: list[str]) -> tuple[int, str]:
        return self.answer(command)

    def pip(self) -> list[list[str]]:
        return [command[6:] for command in self.seen if command[1:4] == ["-m", "pip", "install"]]


def load_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """run.py itself, in a checkout that holds a pyproject.toml only, under a Python without torch."""
    spec = importlib.util.spec_from_file_location("run_under_test", ROOT / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "run_under_test", module)
    spec.loader.exec_module(module)
    (tmp_path / "pyproject.toml").write_text("[project]")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(module, "STAMP", tmp_path / ".venv" / "stamp.json")
    monkeypatch.setattr(module, "PYTHON", "venv-python")
    monkeypatch.setattr(module, "INSIDE", False)  # the tests themselves may run in the environment
    monkeypatch.setattr(module, "find_torch", lambda: None)
    return module


def fake_commands(run: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """`Commands` in the place of the real ones."""
    fake = Commands(run)
    monkeypatch.setattr(run, "call", fake.call)
    monkeypatch.setattr(run, "capture", fake.capture)
    missing_python(fake)
    return fake


def missing_python(commands: Commands) -> None:
    """The environment has no Python until `venv` has made one, and torch is there afterwards."""
    before = commands.answer

    def answer(command: list[str]) -> tuple[int, str]:
        if "-c" in command and "find_spec" in " ".join(command):
            made = commands.run.VENV.exists()
            site = str(commands.run.VENV).replace("\\", "/")
            return (0, f'{{"torch": "2.13.0+cpu", "ours": "here", "site": "{site}"}}') if made else (1, "no python")
        return before(command)

    commands.answer = answer  # type: ignore[method-assign]
