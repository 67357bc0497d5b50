"""Foreign errors in words, one line each, wherever they come from; the traceback on request."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import InputError, MemoryBudgetError, UnexpectedError
from exact_vae.__main__ import main
from exact_vae.vae_model.errors import VAEFileError
from exact_vae.vae_model.errors.wording import in_words, one_line, speaks_plainly
from exact_vae.vae_model.files.latents import write_latent

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def quiet_again() -> Iterator[None]:
    """`--debug` is for a process; here one process runs many commands."""
    logger = logging.getLogger("exact_vae")
    before, level = list(logger.handlers), logger.level
    yield
    logger.handlers[:] = before
    logger.setLevel(level)


WORDS: list[tuple[Exception, str, type[Exception]]] = [
    (RuntimeError("Given groups=1, weight of size [8, 4, 3, 3], expected input[1, 16, 4, 4] to have 4 channels, but "
                  "got 16 channels instead"), "expected 4 channels, got 16: use the VAE", InputError),
    (RuntimeError("Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"),
     "expected weights and input on one device, got cuda:0 and cpu: load", InputError),
    (RuntimeError("Input type (c10::BFloat16) and bias type (float) should be the same"),
     "expected weights and input of one kind, got float and c10::BFloat16: load", InputError),
    (NotImplementedError("\"conv\" not implemented for 'Half'"), "computes in, got Half: load the VAE", InputError),
    (torch.OutOfMemoryError("CUDA out of memory."), "expected enough memory, ran out: free", MemoryBudgetError),
    (MemoryError(), "expected enough memory, ran out: free", MemoryBudgetError),
    (OSError(28, "No space left on device", "out.png"), "out.png: expected to read or write, got 'No",
     UnexpectedError),
    (ModuleNotFoundError("No module named 'lightning'", name="lightning"), "package lightning, found none: install",
     UnexpectedError),
    (KeyError("weight"), "expected no error, got KeyError: 'weight': check", UnexpectedError),
    (AssertionError(), "expected no error, got AssertionError: ", UnexpectedError),
]  # fmt: skip


@pytest.mark.parametrize(("error", "words", "kind"), WORDS, ids=[type(row[0]).__name__ for row in WORDS])
def test_foreign_errors_in_words(error: Exception, words: str, kind: type[Exception]) -> None:
    worded = in_words(error, "decode")
    assert type(worded) is kind
    assert str(worded).startswith("decode: ")
    assert words in str(worded)
    assert "\n" not in str(worded)
    assert in_words(worded, "again") is worded


@pytest.mark.parametrize("error", [InputError("a"), ValueError("size: expected 3, got 4: raise it"), VAEFileError("b")])
def test_errors_in_words_stay_as_they_are(error: Exception) -> None:
    assert in_words(error, "decode") is error

    @speaks_plainly("decode")
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        fail()
    assert caught.value is error
    assert one_line(error, "decode") == str(error)


def test_a_long_foreign_message_is_cut() -> None:
    assert 300 < len(one_line(RuntimeError("x" * 5000), "decode")) < 500


# -- the command line --------------------------------------------------------------------------------------------------


def test_debug_shows_the_traceback_beside_the_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from exact_vae.vae_model.checkpoint import describe

    def broken(*arguments: Any) -> Any:
        return json.loads("{")["never"]

    def unworded(*arguments: Any) -> Any:
        return {}["weight"]

    monkeypatch.setattr(describe, "describe_vae", unworded)
    assert main(["info", "bundled"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("exact-vae: info: expected no error, got KeyError: 'weight': ")
    assert len(error.splitlines()) == 1
    monkeypatch.setattr(describe, "describe_vae", broken)
    assert main(["info", "bundled", "--debug"]) == 2
    error = capsys.readouterr().err
    assert "in broken" in error
    assert "Traceback (most recent call last)" in error
    assert error.splitlines()[-1].startswith("exact-vae: info: expected no error, got JSONDecodeError: ")


def test_debug_shows_the_traceback_of_one_file_of_many(
    tmp_path: Path, small_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from exact_vae.commands import inputs

    def broken(source: Path) -> Any:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(inputs, "read_latent", broken)
    write_latent(torch.zeros(1, 4, 2, 2), tmp_path / "z.latent")
    words = ["decode", str(tmp_path / "z.latent"), "-o", str(tmp_path / "z.png"), "--vae", str(small_file), "--quiet"]
    assert main(words) == 2
    first = capsys.readouterr().err
    assert f"exact-vae: {tmp_path / 'z.latent'}: decode: expected no error, got ZeroDivisionError: " in first
    assert "Traceback" not in first
    assert main([*words, "--debug"]) == 2
    error = capsys.readouterr().err
    assert "in broken" in error
    assert [line for line in error.splitlines() if line.startswith("exact-vae: ")] == first.splitlines()
