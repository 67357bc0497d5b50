"""The README is true: its Python runs, its commands exist, its files and node ids are there."""

import re
import shlex
from pathlib import Path

import exact_vae
import pytest
import torch
from exact_vae.__main__ import make_parser

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The text of every fenced block of that language, "" for blocks without one."""
    fences = README.split("```")[1::2]  # what stands between an opening and a closing fence
    return [text for name, _, text in (fence.partition("\n") for fence in fences) if name == language]


@pytest.mark.parametrize("example", blocks("python"))
def test_the_examples_run_and_their_shapes_are_as_written(example: str) -> None:
    torch.manual_seed(0)
    names: dict[str, object] = {}
    exec(example, names)
    for line in example.splitlines():
        shape = re.match(r"(\w+) = .*#.*?\((\d[\d, ]*)\)", line)
        if shape:
            value = names[shape[1]]
            assert isinstance(value, torch.Tensor)
            assert tuple(value.shape) == tuple(int(number) for number in shape[2].split(",")), line


COMMANDS = [line for line in "".join(blocks("")).splitlines() if line.startswith("exact-vae ")]


@pytest.mark.parametrize("line", COMMANDS or ["none found"])
def test_every_command_line_is_understood(line: str) -> None:
    options = make_parser().parse_args(shlex.split(line)[1:])
    assert options.command == line.split()[1]


def test_every_linked_file_is_there() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_every_node_is_named() -> None:
    assert [node for node in exact_vae.NODE_CLASS_MAPPINGS if f"`{node}`" not in README] == []


def test_no_blank_was_left() -> None:
    assert re.findall(r"^(?:TABLE|CARD LINE)", README, re.MULTILINE) == []
