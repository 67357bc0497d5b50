"""The same training in other ways: accumulated, recomputed, in 16 bits, in two processes, spread over them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning", reason="the trainer's packages are absent: pip install 'exact-vae[train]'")
from exact_vae.tests.training.case import curve, train_in_processes, weights, with_params, write_config
from exact_vae.vae_model.training.command import train
from exact_vae.vae_model.training.config import ConfigError
from exact_vae.vae_model.training.fit import prepare, run
from exact_vae.vae_model.training.recipe import read_config

# Lightning 2.6 itself uses what torch has deprecated.
deprecated = pytest.mark.filterwarnings("ignore::FutureWarning:lightning", "ignore::DeprecationWarning")
pytestmark = [pytest.mark.usefixtures("one_thread"), deprecated]
CONSTANT = "optimizer.schedule=constant"


def assert_close(expected: Path, found: Path, atol: float) -> None:
    """The weights that two trainings wrote."""
    first, second = weights(expected), weights(found)
    assert first.keys() == second.keys()
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=0, atol=atol)


def test_accumulated_batches_make_the_step_of_a_larger_one(tmp_path: Path, photos: Path) -> None:
    """Twice two crops and once four: the same crops and noise, the same number of steps and of averages."""
    once, twice = tmp_path / "once", tmp_path / "twice"
    train(write_config(once, photos, batches=6, check_every=3), [CONSTANT, "data.batch_size=4"], quiet=True)
    config = write_config(twice, photos, batches=12, check_every=6, accumulate=2)
    train(config, [CONSTANT, "data.batch_size=2"], quiet=True)
    assert_close(once, twice, atol=1e-4)


def test_recomputed_blocks_change_nothing(tmp_path: Path, photos: Path) -> None:
    calls: list[int] = []
    for name, recomputed in (("kept", False), ("again", True)):
        config = write_config(tmp_path / name, photos, with_params(gradient_checkpointing=recomputed))
        prepared = prepare(read_config(config), progress=False)
        seen: list[None] = []
        prepared.module.model.encoder.mid.block_1.conv1.register_forward_hook(  # pyright: ignore
            lambda *_, seen=seen: seen.append(None) if torch.is_grad_enabled() else None
        )
        run(prepared)
        calls.append(len(seen))
    assert calls == [12, 24]  # once a batch; once more on the way back
    assert_close(tmp_path / "kept", tmp_path / "again", atol=0)


def test_the_loss_is_never_in_16_bits(tmp_path: Path, photos: Path) -> None:
    prepared = prepare(read_config(write_config(tmp_path, photos, precision="bf16-mixed")), progress=False)
    seen: dict[str, set[torch.dtype]] = {"likeness": set(), "activations": set()}
    likeness, convolve = prepared.module.loss.likeness, prepared.module.model.encoder.conv_in.forward  # pyright: ignore

    def watched(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen["likeness"] |= {x.dtype, y.dtype}
        return likeness(x, y)

    def watched_convolution(x: torch.Tensor) -> torch.Tensor:
        y = convolve(x)
        seen["activations"].add(y.dtype)
        return y

    prepared.module.loss.likeness = watched
    prepared.module.model.encoder.conv_in.forward = watched_convolution  # pyright: ignore
    run(prepared)
    assert seen == {"likeness": {torch.float32}, "activations": {torch.bfloat16}}
    assert {p.dtype for p in prepared.module.model.parameters()} == {torch.float32}
    assert len(curve(tmp_path)) == 3


def test_weights_spread_over_processes_need_a_loss_without_its_own(tmp_path: Path, photos: Path) -> None:
    model = with_params(lossconfig={"params": {"disc_weight": 0.1}})
    with pytest.raises(ConfigError, match=r"trainer\.strategy: expected ddp for a loss with parameters of its own"):
        train(write_config(tmp_path, photos, model, strategy="fsdp", devices=2), quiet=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Callable[[str], Path]:
    """The same eight batches in one process ("auto"), or in two with half the crops each; each way is trained once."""
    made: dict[str, Path] = {}

    def train_once(strategy: str) -> Path:
        if strategy not in made:
            made[strategy] = tmp_path_factory.mktemp(strategy)
            devices = 1 if strategy == "auto" else 2
            config = write_config(made[strategy], photos, batches=8, check_every=4, devices=devices)
            words = [f"data.batch_size={4 // devices}", f"trainer.strategy={strategy}"]
            if devices == 1:
                train(config, words, quiet=True)
            else:
                train_in_processes(config, *words)
        return made[strategy]

    return train_once


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_equal_one_with_twice_the_batch(trained: Callable[[str], Path], strategy: str) -> None:
    """The same crops, the same noise: only the order of additions differs."""
    folders = [trained("auto"), trained(strategy)]
    rows = [curve(folder) for folder in folders]
    assert len(rows[0]) == 2
    for one, two in zip(*rows, strict=True):
        for key in ("psnr", "rec_loss", "kl_loss", "total_loss"):
            assert two[key] == pytest.approx(one[key], rel=1e-4, abs=1e-4), key
    assert_close(*folders, atol=1e-4)


@pytest.mark.slow
def test_a_spread_training_goes_on_where_it_stopped(
    tmp_path: Path, photos: Path, trained: Callable[[str], Path]
) -> None:
    whole, parts = trained("fsdp"), tmp_path / "parts"
    words = ["trainer.strategy=fsdp", "data.batch_size=2"]
    config = write_config(parts, photos, batches=8, check_every=4, devices=2)
    train_in_processes(config, *words, "trainer.max_minutes=0", code=1)  # over at the end of the first batch
    train_in_processes(config, *words, "--resume")
    assert_close(whole, parts, atol=0)


@pytest.mark.slow
def test_the_seeds_example_of_16_pixels_a_cell_makes_the_round_trip() -> None:
    """kl_f16: attention in the deepest level of both halves, 256 x 256 pixels there and back."""
    from exact_vae.vae_model.families.ldm.layers import AttnBlock
    from exact_vae.vae_model.training.kl_module import AutoEncoderKL

    params: dict[str, Any] = dict(read_config("kl_f16", ["data.train=a"]).model.params)
    module = AutoEncoderKL(**{**params, "ema_decay": None, "monitor": None}).eval()
    assert sum(isinstance(layer, AttnBlock) for layer in module.encoder.modules()) == 2 + 1  # two blocks, middle
    assert sum(isinstance(layer, AttnBlock) for layer in module.decoder.modules()) == 3 + 1
    x = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        y, posterior = module(x)
    assert posterior.mean.shape == (1, 16, 16, 16)
    assert y.shape == x.shape
    assert bool(y.isfinite().all())
