"""`run.py test`: all checks run, what cannot start is said, and the totals are those of pytest's report."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from exact_vae.tests.project.run_starts import ROOT, Commands, fake_commands, load_run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_run(tmp_path, monkeypatch)


@pytest.fixture
def commands(run: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Commands:
    return fake_commands(run, monkeypatch)


def no_node(run: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.shutil, "which", lambda name: None)


def test_all_checks_run_even_if_one_fails(
    run: ModuleType, commands: Commands, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_node(run, monkeypatch)
    commands.answers["ruff check"] = (1, "")
    assert run.test(["-k", "x"]) == 1
    checks = [command[2] if command[1] == "-m" else command[1] for command in commands.seen]
    assert checks == ["ruff", "ruff", "tests/project/rooms.py", "pyright", "pytest"]
    assert commands.seen[-1][-2:] == ["-k", "x"]
    assert commands.seen[-1][3] == "-n"  # before what the user says, which then counts
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "4 passed, 1 failed"
    assert any("node --test" in line and "skipped: node not found" in line for line in lines)


@pytest.mark.parametrize(
    ("ci", "outcome"), [("", "skipped"), ("false", "skipped"), ("true", "failed"), ("1", "failed")]
)
def test_a_pyright_that_cannot_start(
    run: ModuleType, commands: Commands, monkeypatch: pytest.MonkeyPatch, ci: str, outcome: str
) -> None:
    monkeypatch.setenv("CI", ci)
    commands.answers["pyright --version"] = (1, "getaddrinfo failed")
    result = run.check_types()
    assert result.outcome == f"{outcome}: could not start: getaddrinfo failed"
    no_node(run, monkeypatch)
    assert run.test([]) == int(outcome == "failed")


def test_a_type_error_is_a_failure(run: ModuleType, commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    commands.answers["pyright --pythonpath"] = (1, "1 error")
    assert run.check_types().outcome == "failed"


@pytest.mark.parametrize(("version", "runs"), [("v20.1.0", True), ("v18.0.0", True), ("v16.9.9", False), ("", False)])
def test_node_must_be_18(
    run: ModuleType, commands: Commands, monkeypatch: pytest.MonkeyPatch, version: str, runs: bool
) -> None:
    monkeypatch.setattr(run.shutil, "which", lambda name: "node")
    commands.answers["--version"] = (0, version)
    (run.ROOT / "tests" / "js").mkdir(parents=True)
    (run.ROOT / "tests" / "js" / "help.test.mjs").touch()
    assert run.check_javascript().outcome.startswith("passed" if runs else "skipped: node 18 or newer")
    assert len(commands.seen) == int(runs)
    # Files, not the folder: what a folder means to `node --test` differs between its versions.
    assert not runs or commands.seen[0][2].endswith("help.test.mjs")


@pytest.mark.parametrize(
    ("report", "outcome", "counts"),
    [
        ('<testsuites><testsuite errors="1" failures="2" skipped="3" tests="10"/></testsuites>', "failed", (4, 3)),
        ('<testsuites><testsuite errors="0" failures="0" skipped="3" tests="10"/></testsuites>', "passed", (7, 0)),
        ('<testsuites><testsuite errors="0" failures="0" skipped="0" tests="0"/></testsuites>', "failed", (0, 1)),
        ("half a rep", "failed", (0, 1)),
        ("<testsuites/>", "passed", (1, 0)),
    ],
)
def test_totals_come_from_the_report_of_pytest(
    run: ModuleType, tmp_path: Path, report: str, outcome: str, counts: tuple[int, int]
) -> None:
    (tmp_path / "report.xml").write_text(report)
    assert run.count_tests(tmp_path / "report.xml", run.Result("pytest", outcome, 1.0)) == counts


def test_find_torch_does_not_import_it(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("run_again", ROOT / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "run_again", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "INSIDE", False)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.3.1")
    assert module.find_torch() is None  # Too old.
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.10.0+cu130")
    found = module.find_torch()
    assert found.requirement == "torch==2.10.0+cu130"
    assert (Path(found.found_in) / "torch" / "__init__.py").is_file()
    monkeypatch.setattr(module, "INSIDE", True)
    assert module.find_torch() is None
