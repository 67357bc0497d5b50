"""The start script: what it decides and which commands it composes. Nothing is installed and nothing is run."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
from exact_vae.tests.project.run_starts import ROOT, Commands, fake_commands, load_run

PYTHON_NOW = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_run(tmp_path, monkeypatch)


@pytest.fixture
def commands(run: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Commands:
    return fake_commands(run, monkeypatch)


def test_parse_keeps_the_order_of_what_it_does_not_know(run: ModuleType) -> None:
    assert run.parse(["test", "-k", "x", "--lf"]) == ("test", None, ["-k", "x", "--lf"])
    assert run.parse(["--torch", "torch==2.9", "demo", "--image", "a"]) == ("demo", "torch==2.9", ["--image", "a"])
    assert run.parse(["demo", "--torch=torch", "--help"]) == ("demo", "torch", ["--help"])


@pytest.mark.parametrize("argv", [[], ["bake"], ["--torch", "torch"], ["test", "--torch"], ["test", "--torch="]])
def test_unclear_command_lines_show_the_usage_and_exit_2(
    run: ModuleType, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run.main(argv)
    assert stopped.value.code == 2
    assert "usage: python3 run.py demo" in capsys.readouterr().err


def test_help(run: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run.main(["--help"])
    assert stopped.value.code == 0
    assert "--torch" in capsys.readouterr().out


@pytest.mark.parametrize("version", [(3, 7, 17), (3, 9, 1)])
def test_pythons_that_are_too_old_are_told_in_one_line(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    with pytest.raises(SystemExit) as stopped:
        run.main(["demo"])
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"expected Python 3.10 or newer, got {version[0]}.{version[1]}: start run.py with another one" in error


@pytest.mark.parametrize(
    ("version", "torch"), [((3, 10, 0), "torch==2.13.0"), ((3, 14, 2), "torch==2.13.0"), ((3, 15, 0), "torch")]
)
def test_every_newer_python_gets_a_torch_that_may_have_a_build_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...], torch: str
) -> None:
    """A fixed version is there for no Python that came after it."""
    monkeypatch.setattr(sys, "version_info", version)
    run = load_run(tmp_path, monkeypatch)
    commands = fake_commands(run, monkeypatch)
    assert run.main(["demo"]) == 0
    assert commands.pip()[0] == [torch]


def test_versions_agree_with_pyproject(run: ModuleType) -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    oldest, _ = run.PYTHONS
    assert f'\nrequires-python = ">={oldest[0]}.{oldest[1]}"\n' in text
    assert f'"torch>={run.OLDEST_TORCH[0]}.{run.OLDEST_TORCH[1]}"' in text
    for extra, _ in run.COMMANDS.values():
        assert f"\n{extra} = [" in text


def test_requirements_are_split_like_a_command_line(run: ModuleType) -> None:
    assert run.split_requirement("torch --index-url 'a b'") == ["torch", "--index-url", "a b"]


def test_the_first_start_installs_torch_and_then_the_project(run: ModuleType, commands: Commands) -> None:
    run.prepare("demo", None)
    assert commands.seen[0] == [sys.executable, "-m", "venv", "--clear", str(run.VENV)]
    constraint = run.VENV / "torch-constraint.txt"
    assert commands.pip() == [["torch==2.13.0"], ["-c", str(constraint), "-e", ".[demo]"]]
    assert constraint.read_text() == "torch==2.13.0+cpu\n"
    assert run.read_stamp().extras == ["demo"]


def test_a_torch_that_is_there_is_used(run: ModuleType, commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "find_torch", lambda: run.Torch("torch==2.5.1", "/outer/site-packages"))
    monkeypatch.setattr(sys, "prefix", "/outer")
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    run.prepare("demo", None)
    assert commands.seen[0][3:5] == ["--clear", "--system-site-packages"]
    assert commands.pip()[0] == ["torch==2.5.1"]
    assert (run.VENV / "reused-torch.pth").read_text() == "/outer/site-packages\n"


def test_without_an_outer_environment_no_path_is_added(
    run: ModuleType, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "find_torch", lambda: run.Torch("torch==2.5.1", "/usr/lib/python3/dist-packages"))
    monkeypatch.setattr(sys, "prefix", "/usr")
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    run.prepare("demo", None)
    assert not (run.VENV / "reused-torch.pth").exists()


def test_torch_from_the_command_line_wins_and_is_kept(run: ModuleType, commands: Commands) -> None:
    run.prepare("demo", "torch --index-url wheels")
    assert commands.pip()[0] == ["torch", "--index-url", "wheels"]
    commands.seen.clear()
    run.prepare("demo", None)
    assert commands.seen == []
    run.prepare("test", None)
    assert commands.pip()[0] == ["torch", "--index-url", "wheels"]
    commands.seen.clear()
    run.prepare("demo", "torch==2.6")
    assert commands.seen[0][1:4] == ["-m", "venv", "--clear"]


def test_the_second_start_does_nothing(run: ModuleType, commands: Commands) -> None:
    run.prepare("dev", None)
    commands.seen.clear()
    run.prepare("dev", None)
    assert commands.seen == []


def test_another_command_adds_its_extra(run: ModuleType, commands: Commands) -> None:
    run.prepare("demo", None)
    commands.seen.clear()
    run.prepare("dev", None)
    assert not any("venv" in command for command in commands.seen)
    assert commands.pip()[1][-1] == ".[dev]"
    assert run.read_stamp().extras == ["demo", "dev"]


def test_a_changed_pyproject_installs_again_and_forgets_other_extras(run: ModuleType, commands: Commands) -> None:
    run.prepare("demo", None)
    run.prepare("dev", None)
    commands.seen.clear()
    (run.ROOT / "pyproject.toml").write_text("[project]\n")
    run.prepare("dev", None)
    assert len(commands.pip()) == 2
    assert not any("venv" in command for command in commands.seen)
    assert run.read_stamp().extras == ["dev"]


def test_another_python_makes_the_environment_anew(run: ModuleType, commands: Commands) -> None:
    run.prepare("demo", None)
    run.STAMP.write_text(run.STAMP.read_text().replace(f'"{PYTHON_NOW}"', '"3.9"'))
    commands.seen.clear()
    run.prepare("demo", None)
    assert commands.seen[0][1:4] == ["-m", "venv", "--clear"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"pyproject": 1}', "null"])
def test_an_interrupted_start_is_repaired(run: ModuleType, commands: Commands, content: str) -> None:
    run.prepare("demo", None)
    commands.seen.clear()
    run.STAMP.write_text(content)
    run.prepare("demo", None)
    # Its Python runs, so the environment itself is kept and only pip has to finish.
    assert len(commands.seen) == 2
    assert run.read_stamp().extras == ["demo"]


def test_pip_is_quiet_and_the_downloads_are_told(
    run: ModuleType, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    run.prepare("demo", None)
    assert [command[5] for command in commands.seen if "install" in command] == ["--quiet"] * 2
    lines = capsys.readouterr().out.splitlines()
    assert "run.py: installing torch==2.13.0, a download of about 200 MB, with CUDA 3 GB" in lines
    assert "run.py: installing this project for 'demo', a download of about 75 MB" in lines


def test_a_failing_install_leaves_no_stamp(
    run: ModuleType, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    run.prepare("demo", None)
    commands.answers["-e .[dev]"] = (1, "")
    with pytest.raises(SystemExit) as stopped:
        run.main(["test"])
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "failed: installing this project for 'dev'" in error
    assert "--torch" in error
    assert run.read_stamp() is None


def test_a_missing_venv_module_is_told(
    run: ModuleType, commands: Commands, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None if name == "ensurepip" else object())
    with pytest.raises(SystemExit):
        run.prepare("demo", None)
    assert "install python3-venv" in capsys.readouterr().err


def test_a_read_only_checkout_is_told(
    run: ModuleType, commands: Commands, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run.os, "access", lambda path, mode: False)
    with pytest.raises(SystemExit):
        run.prepare("demo", None)
    assert "expected a folder that can be written" in capsys.readouterr().err


def test_an_interruption_is_one_line(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(extra: str, asked: str | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "prepare", interrupted)
    with pytest.raises(SystemExit) as stopped:
        run.main(["demo"])
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "run.py: interrupted; start again to continue\n"


def test_the_demo_gets_its_arguments_and_its_exit_code_back(run: ModuleType, commands: Commands) -> None:
    commands.answers["demo.py"] = (7, "")
    assert run.main(["demo", "--image", "a.png"]) == 7
    assert commands.seen[-1] == ["venv-python", str(run.ROOT / "benchmarks" / "demo.py"), "--image", "a.png"]


def test_the_benchmark_gets_its_arguments_and_its_exit_code_back(run: ModuleType, commands: Commands) -> None:
    commands.answers["bench.py"] = (2, "")
    assert run.main(["bench", "--quick"]) == 2
    assert commands.seen[-1] == ["venv-python", str(run.ROOT / "benchmarks" / "bench.py"), "--quick"]
