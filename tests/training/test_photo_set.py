"""A training gathers as many pictures as people have: the work grows with their number, not with its square."""

from pathlib import Path

import pytest
from exact_vae.vae_model.training import photo_set
from exact_vae.vae_model.training.photo_set import PhotoSet


@pytest.mark.parametrize("every", [3])
def test_a_hundred_thousand_paths(
    every: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One pass over the files and none over pairs of them, of which there are 10^10: that would take an hour."""
    asked: list[Path] = []

    def sides(path: Path) -> tuple[int, int]:
        asked.append(path)
        return (0, 0) if int(path.stem) % every == 0 else (9, 8)

    monkeypatch.setattr(photo_set, "_sides", sides)
    paths = [Path(f"{number}.jpg") for number in range(100_000)]
    photos = PhotoSet(paths)
    assert set(photos.shorter_sides) == {8}
    unreadable = len(range(0, 100_000, every))
    assert asked == paths
    assert (len(photos), photos.readable) == (100_000 - unreadable, 100_000 - unreadable)
    assert f"{unreadable} of 100000 pictures cannot be read and are left out: 0.jpg, {every}.jpg" in caplog.text


def test_ten_times_the_paths_take_ten_times_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: how often a path is looked up in a set or compared with another one."""
    work = [0]

    class Counted(type(Path())):  # type: ignore[misc]
        def __hash__(self) -> int:
            work[0] += 1
            return super().__hash__()

        def __eq__(self, other: object) -> bool:
            work[0] += 1
            return super().__eq__(other)

    monkeypatch.setattr(photo_set, "_sides", lambda path: (0, 0) if int(path.stem) % 3 == 0 else (9, 8))
    counts: list[int] = []
    for number in (100, 1000):
        work[0] = 0
        PhotoSet([Counted(f"{name}.jpg") for name in range(number)])
        counts.append(work[0])
    assert counts[1] <= 12 * counts[0] + 12
