"""What is told before the first batch: what a training will not leave, and pictures that are smaller than its crops."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch.utilities import rank_zero_only

from ..notes import tell
from .config import BEST, TrainConfig
from .photo_set import PhotoSet
from .trained import Trained


@rank_zero_only
def tell_at_start(module: Trained, config: TrainConfig, train: PhotoSet) -> None:
    """The notes, in one process of several."""
    if not config.data.val:
        tell("data.val", [unjudged_note(module, config)])
    small = small_note(train.shorter_sides.tolist(), config.data.all_stages)
    if small is not None:
        tell("data.train", [small])


def unjudged_note(module: Trained, config: TrainConfig) -> str:
    """What there is not without pictures to judge, what there is, and what would bring the rest."""
    drawn, monitor = config.output.grids > 0, module.monitor
    missing = "no PSNR and SSIM" + (", no reconstructions" if drawn else "")
    sampled = drawn and hasattr(module, "sample")
    kept = "weights, curve of the loss and samples" if sampled else "weights and curve of the loss"
    watched, more = f" (model.params.monitor {monitor} has nothing to go by)", ""
    if monitor is None:
        watched, more = "", f", and for {BEST} model.params.monitor={module.logged_keys()[0]}, too"
    return (
        f"no pictures are given, hence {missing} and no {BEST}{watched}; checkpoint, {kept} are written all the same: "
        f"say data.val=FOLDER to have them{more}"
    )


def small_note(shorter_sides: Sequence[int], stages: Sequence[tuple[float, int, int]]) -> str | None:
    """The note, if more than half of the pictures are smaller than the largest crop; sides in pixels."""
    crop = max(size for _, size, _ in stages)
    small = sorted(side for side in shorter_sides if side < crop)
    if 2 * len(small) <= len(shorter_sides):
        return None
    setting = "data.crop" if len(stages) == 1 else "the crops of data.stages"
    sides = f"{small[0]}" if small[0] == small[-1] else f"{small[0]} to {small[-1]}"
    return (
        f"{len(small)} of {len(shorter_sides)} pictures are smaller than the crop of {crop} pixels (shorter sides: "
        f"{sides}), hence squares of these sides are enlarged to it, which makes them soft: lower {setting}, or give "
        "larger pictures"
    )
