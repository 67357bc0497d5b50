"""A loss of one's own: in Python and in YAML, in three signatures, told before the first batch where it cannot work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("lightning", reason="the trainer's packages are absent: pip install 'exact-vae[train]'")
from exact_vae.__main__ import main
from exact_vae.tests.training.case import TINY, curve, weights, with_params, write_config
from exact_vae.vae_model.families.ldm.distribution import DiagonalGaussianDistribution
from exact_vae.vae_model.training.command import train
from exact_vae.vae_model.training.config import ConfigError
from exact_vae.vae_model.training.fit import prepare
from exact_vae.vae_model.training.given_loss import SIGNATURE, GivenLoss
from exact_vae.vae_model.training.kl_module import AutoEncoderKL
from exact_vae.vae_model.training.losses import LOSSES, AutoencoderLoss, make_loss
from exact_vae.vae_model.training.recipe import read_config

# Lightning 2.6 itself uses what torch has deprecated.
deprecated = pytest.mark.filterwarnings("ignore::FutureWarning:lightning", "ignore::DeprecationWarning")
pytestmark = [pytest.mark.usefixtures("one_thread"), deprecated]
PARAMS = {name: value for name, value in TINY["params"].items() if name != "lossconfig"}

OWN = '''
"""Losses as a person writes them beside a configuration."""
import torch
from torch import nn

class Mine(nn.Module):
    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = weight
        self.features = nn.Conv2d(3, 4, 3)

    def forward(self, inputs, reconstructions, posterior, global_step, last_layer, split):
        assert isinstance(global_step, int) and last_layer.shape[0] == 3
        rec = (self.features(inputs) - self.features(reconstructions)).abs().mean()
        loss = self.weight * rec + 1e-6 * posterior.kl().mean()
        return loss, {f"{split}/rec_loss": rec.detach(), f"{split}/mine": 7}

def plain(inputs, reconstructions, posterior, global_step, last_layer, split, weight=1.0):
    return weight * (inputs - reconstructions).abs().mean()

def wrong(x, y):
    return (x - y).abs().mean()

def broken(inputs, reconstructions, posterior, global_step, last_layer, split):
    return (inputs - nothing).abs().mean()

def apart(inputs, reconstructions, posterior, global_step, last_layer, split):
    return inputs.abs().mean(), {}
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the losses above, as a module of its own in every test."""
    (tmp_path / f"own_{tmp_path.name}.py").write_text(OWN)
    return tmp_path


def own(folder: Path, name: str) -> str:
    """The dotted path of one of them."""
    return f"own_{folder.name}.{name}"


def case() -> tuple[Tensor, Tensor, DiagonalGaussianDistribution]:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(2, 3, 8, 8, generator=generator) for _ in range(2))
    return x, y, DiagonalGaussianDistribution(torch.full((2, 4, 2, 2), 0.5))


def test_the_arguments_are_the_documents() -> None:
    seen: list[Any] = []

    def loss(inputs: Tensor, reconstructions: Tensor, posterior: Any, global_step: int, last_layer: Any, split: str):
        seen.extend((inputs, reconstructions, posterior, global_step, last_layer, split))
        return inputs.sum(), {"val/a": 1}

    x, y, posterior = case()
    last = torch.ones(3)
    total, log = GivenLoss(loss).autoencoder(x, y, posterior, 11, last, "val")
    assert all(a is b for a, b in zip(seen, (x, y, posterior, 11, last, "val"), strict=True))
    assert float(total) == pytest.approx(float(x.sum()))
    assert {name: float(value) for name, value in log.items()} == {"val/a": 1, "val/total_loss": float(total)}


def test_signatures_of_latent_diffusion_and_generative_models() -> None:
    class Ldm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.discriminator = nn.Conv2d(3, 1, 1)
            self.discriminator_iter_start = 5

        def forward(
            self,
            inputs,
            reconstructions,
            posteriors,
            optimizer_idx,
            global_step,
            last_layer=None,
            cond=None,
            split="train",
        ):  # type: ignore[no-untyped-def]
            if optimizer_idx == 0:
                return posteriors.kl().sum() + global_step, {f"{split}/a": inputs.sum()}
            return self.discriminator(reconstructions).mean(), {f"{split}/b": 2.0}

    x, y, posterior = case()
    loss = Ldm()
    adapter = GivenLoss(loss)
    assert adapter.discriminator is loss.discriminator
    assert adapter.disc_start == 5
    total, log = adapter.autoencoder(x, y, posterior, 3, None, "val")
    assert float(total) == pytest.approx(float(posterior.kl().sum()) + 3)
    assert set(log) == {"val/a", "val/total_loss"}
    judged, log = adapter.judge(x, y, "train")
    torch.testing.assert_close(judged, loss.discriminator(y).mean())
    assert set(log) == {"train/b", "train/disc_loss"}

    def sgm(inputs: Tensor, reconstructions: Tensor, *, regularization_log: Any, global_step: int, split: str) -> Any:
        return regularization_log["kl_loss"] * 2, {}

    total, _ = GivenLoss(sgm).autoencoder(x, y, posterior, 3, None, "val")
    torch.testing.assert_close(total, 2 * posterior.kl().mean())


@pytest.mark.parametrize("form", ["class", "function", "text"])
def test_yaml_names_it_by_its_path(folder: Path, photos: Path, form: str) -> None:
    given: Any = {
        "class": {"target": own(folder, "Mine"), "params": {"weight": 2.0}},
        "function": {"target": own(folder, "plain"), "params": {"weight": 2.0}},
        "text": own(folder, "plain"),
    }[form]
    config = write_config(folder, photos, with_params(lossconfig=given), batches=4, check_every=2)
    assert main(["train", config, "--quiet"]) == 0
    rows = curve(folder)
    assert [row["batch"] for row in rows] == [2, 4]
    assert ("mine" in rows[0]) == (form == "class")
    assert all(row["total_loss"] > 0 for row in rows)
    assert all(bool(value.isfinite().all()) for value in weights(folder).values())


def test_the_loss_decides_what_is_learned(folder: Path, photos: Path) -> None:
    """The absolute error, written as one's own and as one of ours: the same weights, to the last bit."""
    ours, mine = folder / "ours", folder / "mine"
    for where in (ours, mine):
        where.mkdir()
    (mine / f"own_{folder.name}_2.py").write_text(OWN)
    loss = {"params": {"terms": {"l1": 1.0}, "kl_weight": 0.0}}
    train(write_config(ours, photos, with_params(lossconfig=loss), batches=4, check_every=4), quiet=True)
    model = with_params(lossconfig=f"own_{folder.name}_2.plain")
    train(write_config(mine, photos, model, batches=4, check_every=4), quiet=True)
    expected, found = weights(ours), weights(mine)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)  # a mean of means, and a mean


def test_resumed_with_a_loss_of_ones_own(folder: Path, photos: Path) -> None:
    model = with_params(lossconfig={"target": own(folder, "Mine")})
    config = write_config(folder, photos, model, batches=2, check_every=2)
    assert main(["train", config, "--quiet"]) == 0
    assert main(["train", config, "trainer.batches=4", "--resume", "--quiet"]) == 0
    assert [row["batch"] for row in curve(folder)] == [2, 4]


def test_it_may_be_monitored_by_what_it_logs(folder: Path, photos: Path) -> None:
    params = {"lossconfig": {"target": own(folder, "Mine")}, "monitor": "val/mine"}
    assert (
        main(["train", write_config(folder, photos, with_params(**params), batches=2, check_every=2), "--quiet"]) == 0
    )
    assert (folder / "run" / "best.safetensors").is_file()


def test_parameters_of_a_perceptual_network_stay_as_they_are(folder: Path, photos: Path) -> None:
    from exact_vae.vae_model.training.command import importable

    with importable(folder):
        config = write_config(folder, photos, with_params(lossconfig=own(folder, "Mine")))
        prepared = prepare(read_config(config), progress=False)
    prepared.module.configure_model()
    held = {
        id(p)
        for optimizer in prepared.module.configure_optimizers()
        for g in optimizer.param_groups
        for p in g["params"]
    }
    assert not any(id(p) in held or p.requires_grad for p in prepared.module.loss.parameters())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("wrong", f"lossconfig: expected a loss that takes {SIGNATURE}, got own_"),
        ("broken", "got NameError from own_"),
        ("apart", "expected a loss with gradients, got one without"),
        ("absent", "lossconfig.target: expected the path of a class or function, got 'own_"),
    ],
)
def test_what_cannot_work_is_told_before_the_first_batch(
    folder: Path, photos: Path, name: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(folder, photos, with_params(lossconfig=own(folder, name)))
    assert main(["train", config, "--quiet"]) == 2
    printed = capsys.readouterr().err
    assert text in printed
    assert printed.count("\n") == 1
    assert not (folder / "run" / "last.ckpt").exists()


def test_a_monitor_that_it_does_not_log_is_told(folder: Path, photos: Path) -> None:
    model = with_params(lossconfig=own(folder, "plain"), monitor="val/beauty")
    with pytest.raises(ConfigError, match=r"monitor: expected one of val/psnr, .*, got 'val/beauty'"):
        train(write_config(folder, photos, model), quiet=True)


def test_in_python_functions_modules_and_paths() -> None:
    class Mine(nn.Module):
        def forward(self, a: Tensor, b: Tensor, posterior: Any, step: int, last: Any, split: str) -> Tensor:
            return (a - b).square().mean()

    def mine(a: Tensor, b: Tensor, posterior: Any, step: int, last: Any, split: str) -> Tensor:
        return (a - b).square().mean()

    loss = Mine()
    assert AutoEncoderKL(lossconfig=loss, **PARAMS).loss is loss
    assert AutoEncoderKL(lossconfig=mine, **PARAMS).loss is mine
    assert not any(name.startswith("loss") for name in AutoEncoderKL(lossconfig=mine, **PARAMS).state_dict())
    x, y, posterior = case()
    module = AutoEncoderKL(lossconfig="default_loss", **PARAMS)
    total, log = module.criterion.autoencoder(x, y, posterior, 0, None, "val")
    assert float(total) == pytest.approx(float(module.default_loss(x, y, posterior, 0, None, "val")[0]))
    assert sorted(log) == ["val/kl_loss", "val/rec_loss", "val/total_loss"]


def test_paths_of_other_trainers_are_known_by_their_last_part(monkeypatch: pytest.MonkeyPatch) -> None:
    import exact_vae.vae_model.training.losses as losses

    def no_import(*_: Any) -> Any:
        raise AssertionError("imported")

    monkeypatch.setattr(losses, "get_object", no_import)
    for root in ("ldm.modules.losses", "sgm.modules.autoencoding.losses", "VAE.loss", "nowhere_at_all.losses"):
        name = next(name for name in LOSSES if name == "LPIPSWithDiscriminator")
        assert isinstance(make_loss({"target": f"{root}.{name}", "params": {"disc_weight": 0.0}}), AutoencoderLoss)


def test_generative_models_arguments() -> None:
    params = {"perceptual_weight": 0.25, "disc_start": 7, "disc_weight": 0.5, "learn_logvar": True}
    loss = make_loss(
        {
            "target": "sgm.modules.autoencoding.losses.GeneralLPIPSWithDiscriminator",
            "params": {**params, "regularization_weights": {"kl_loss": 2.0}},
        }
    )
    assert (loss.kl_weight, loss.disc_start, loss.disc_weight, loss.reduction) == (2.0, 7, 0.5, "sum")
    assert [p is loss.logvar for p in loss.get_trainable_autoencoder_parameters()] == [True]
    assert loss.terms["l1"] == 1.0
    with pytest.raises(ConfigError, match="loss_config: expected scale_input_to_tgt_size false, dims 2"):
        make_loss({"target": "GeneralLPIPSWithDiscriminator", "params": {"disc_start": 0, "dims": 3}})
