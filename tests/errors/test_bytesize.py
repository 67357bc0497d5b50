"""Amounts of memory: what is read, what is refused in one line, and how they are written."""

import math

import pytest
from exact_vae.vae_model.errors.bytesize import format_bytes, parse_bytes
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (2147483648, 2**31),
        (1, 1),
        (1.5e9, 1_500_000_000),
        ("2147483648", 2**31),
        ("512B", 512),
        ("2GiB", 2**31),
        ("2 gib", 2**31),
        ("2G", 2**31),
        ("2Gi", 2**31),
        ("2GB", 2 * 10**9),
        (" 2.5 GB ", 2_500_000_000),
        ("800M", 800 * 2**20),
        ("800MB", 800 * 10**6),
        ("1k", 1024),
        ("1KB", 1000),
        ("1KiB", 1024),
        (".5T", 2**39),
        ("1.TB", 10**12),
    ],
)
def test_amounts(text: int | float | str, size: int) -> None:
    assert parse_bytes(text) == size
    assert isinstance(parse_bytes(text), int)


POSITIVE = "give a positive amount, or leave it out for all that is free"


@pytest.mark.parametrize(
    ("text", "way"),
    [
        *((text, "write one, or leave it out for all that is free") for text in ("", "  ")),
        *((text, "write a number and its unit") for text in ("much", "nan", "GiB", "+1GiB")),
        *((text, "write one number and its unit") for text in ("2 GiB 3", "2XiB", "0x10", "2\nGiB GiB", "1PiB")),
        *((text, POSITIVE) for text in ("-2GiB", "-1", " - 1GiB")),
        *((text, "write the number out, with its unit") for text in ("1e9", "1.5E9", "1_000MiB")),
        ("1,5GiB", "write a point in the place of the comma"),
    ],
)
def test_nonsense_is_refused_in_one_line(text: str, way: str) -> None:
    with pytest.raises(ValueError, match="expected an amount such as 2GiB") as caught:
        parse_bytes(text)
    assert str(caught.value) == f"memory: expected an amount such as 2GiB, 800MiB or 2147483648, got {text!r}: {way}"


@pytest.mark.parametrize("amount", [0, -1, "0", "0GiB", "0.5B", math.nan, -math.inf])
def test_impossible_amounts_are_refused_in_one_line(amount: int | float | str) -> None:
    with pytest.raises(ValueError, match="at least 1 byte") as caught:
        parse_bytes(amount)
    assert str(caught.value) == f"memory: expected at least 1 byte and less than 2^63, got {amount!r}: {POSITIVE}"


@pytest.mark.parametrize("amount", [2**63, "9999999TiB", math.inf])
def test_too_much_is_refused_in_one_line(amount: int | float | str) -> None:
    with pytest.raises(ValueError, match=r"less than 2\^63, got .*: give less, or leave it out"):
        parse_bytes(amount)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1536, "1.50 KiB"),
        (200 * 2**20, "200 MiB"),
        (2**31, "2.00 GiB"),
        (123.4 * 2**30, "123 GiB"),
        (3 * 2**40, "3.00 TiB"),
        (5000 * 2**40, "5000 TiB"),
    ],
)
def test_writing(size: float, text: str) -> None:
    assert format_bytes(size) == text


def test_the_last_sizes_before_the_next_unit() -> None:
    assert format_bytes(1000 * 1024) == "1000 KiB"
    assert format_bytes(1023 * 2**20) == "1023 MiB"


def is_before_the_next_unit(size: int) -> bool:
    return any(999 * unit <= size < 1024 * unit for unit in (2**10, 2**20, 2**30))


@given(st.integers(1, 2**50).filter(lambda size: not is_before_the_next_unit(size)))
def test_what_is_written_reads_back(size: int) -> None:
    # Two decimals below 100 and whole numbers above it: at most 0.5 % off, and 0.5 of a unit between 100 and 1024.
    assert parse_bytes(format_bytes(size)) == pytest.approx(size, rel=0.006)
