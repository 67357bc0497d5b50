"""`exact-vae completion`: the scripts in the shells that read them; skipped where a shell is not there."""

import shutil
import subprocess
from pathlib import Path

import pytest
from exact_vae.__main__ import main, make_parser
from exact_vae.commands.completion import completion_script

BASH = """
COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); COMPREPLY=()
_exact_vae
printf '%s\\n' "${COMPREPLY[@]}"
"""
ZSH = """
_describe() { eval "print -l -- \\${(P)2}" }
_arguments() { print -l -- "$@" }
compdef() { : }
source "$1"; shift
words=("$@"); CURRENT=$#
_exact_vae
"""


def complete(shell: str, script: Path, *words: str) -> list[str]:
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"no {shell} here")
    plain = {"bash": ["--norc"], "zsh": ["-f"]}[shell]
    program = f'source "$1"; shift\n{BASH}' if shell == "bash" else ZSH
    done = subprocess.run(
        [found, *plain, "-c", program, shell, str(script), *words], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.fixture
def script(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / "completion"
    path.write_text(completion_script(make_parser(), request.param))
    return path


@pytest.mark.parametrize("script", ["bash"], indirect=True)
@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["exact-vae", "de"], ["decode"]),
        (["exact-vae", "decode", "--me"], ["--method", "--memory"]),
        (["exact-vae", "decode", "--method", ""], ["exact", "untiled", "blend"]),
        (["exact-vae", "plan", "--direction", "e"], ["encode"]),
        (["exact-vae", "completion", ""], ["bash", "zsh"]),
    ],
)
def test_bash(script: Path, words: list[str], wanted: list[str]) -> None:
    assert complete("bash", script, *words) == wanted


@pytest.mark.parametrize("script", ["bash"], indirect=True)
def test_bash_completes_file_names_with_spaces(script: Path, tmp_path: Path) -> None:
    (tmp_path / "a b.png").touch()
    (tmp_path / "a c.png").touch()
    names = complete("bash", script, "exact-vae", "encode", f"{tmp_path}/a")
    assert sorted(names) == [f"{tmp_path}/a b.png", f"{tmp_path}/a c.png"]


@pytest.mark.parametrize("script", ["zsh"], indirect=True)
def test_zsh(script: Path) -> None:
    rows = complete("zsh", script, "exact-vae", "decode", "")
    assert any(row.startswith("*--method[") and row.endswith(":value:(exact untiled blend)") for row in rows)
    assert any(row.startswith("*--shard[") and row.endswith("]") for row in rows)
    assert "*:argument:_files" in rows
    commands = complete("zsh", script, "exact-vae", "")
    assert any(row.startswith("encode:images to latents") for row in commands)


def test_every_command_and_option_is_in_both(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in ("bash", "zsh"):
        assert main(["completion", shell]) == 0
        text = capsys.readouterr().out
        for word in ("encode", "decode", "convert", "train", "--no-clobber", "--host-memory", "--layout", "--resume"):
            assert word in text
