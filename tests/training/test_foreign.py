"""Configurations of latent-diffusion and generative-models, and Lightning's words: what is taken and what is told."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning", reason="the trainer's packages are absent: pip install 'exact-vae[train]'")
from exact_vae import load_vae
from exact_vae.__main__ import main
from exact_vae.vae_model.training.config import ConfigError, TrainConfig
from exact_vae.vae_model.training.fit import prepare
from exact_vae.vae_model.training.recipe import config_from, read_config
from safetensors.torch import load_file

# Lightning 2.6 itself uses what torch has deprecated.
deprecated = pytest.mark.filterwarnings("ignore::FutureWarning:lightning", "ignore::DeprecationWarning")
pytestmark = [pytest.mark.usefixtures("one_thread"), deprecated]

DDCONFIG: dict[str, Any] = {
    "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 2],
    "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip
LDM: dict[str, Any] = {
    "model": {
        "base_learning_rate": 4.5e-6,
        "target": "ldm.models.autoencoder.AutoencoderKL",
        "params": {
            "monitor": "val/rec_loss",
            "embed_dim": 4,
            "lossconfig": {
                "target": "ldm.modules.losses.LPIPSWithDiscriminator",
                "params": {"disc_start": 50001, "kl_weight": 1e-6, "disc_weight": 0.5, "disc_num_layers": 1},
            },
            "ddconfig": DDCONFIG,
        },
    },
    "data": {
        "target": "main.DataModuleFromConfig",
        "params": {
            "batch_size": 12,
            "num_workers": 3,
            "wrap": True,
            "train": {
                "target": "taming.data.custom.CustomTrain",
                "params": {"training_images_list_file": "some/train.txt", "size": 128},
            },
            "validation": {
                "target": "taming.data.custom.CustomTest",
                "params": {"test_images_list_file": "some/test.txt", "size": 192},
            },
        },
    },
    "lightning": {
        "callbacks": {
            "image_logger": {"target": "main.ImageLogger", "params": {"batch_frequency": 100, "max_images": 8}},
        },
        "trainer": {"benchmark": True, "accumulate_grad_batches": 2, "max_epochs": 7, "gpus": "0,1"},
    },
}  # fmt: skip
SGM: dict[str, Any] = {
    "model": {
        "base_learning_rate": 4.5e-6,
        "target": "sgm.models.autoencoder.AutoencodingEngine",
        "params": {
            "input_key": "jpg",
            "monitor": "val/loss/rec",
            "disc_start_iter": 9,
            "lr_g_factor": 2.0,
            "diff_boost_factor": 3.0,
            "encoder_config": {
                "target": "sgm.modules.diffusionmodules.model.Encoder",
                "params": {**DDCONFIG, "attn_type": "vanilla-xformers"},
            },
            "decoder_config": {
                "target": "sgm.modules.diffusionmodules.model.Decoder",
                "params": "${model.params.encoder_config.params}",
            },
            "regularizer_config": {"target": "sgm.modules.autoencoding.regularizers.DiagonalGaussianRegularizer"},
            "loss_config": {
                "target": "sgm.modules.autoencoding.losses.GeneralLPIPSWithDiscriminator",
                "params": {"perceptual_weight": 0.25, "disc_weight": 0.5, "disc_num_layers": 1, "learn_logvar": True,
                           "regularization_weights": {"kl_loss": 1.0}},
            },
        },
    },
    "data": {
        "target": "sgm.data.dataset.StableDataModuleFromConfig",
        "params": {
            "train": {
                "datapipeline": {
                    "urls": ["DATA-PATH"],
                    "postprocessors": [
                        {"target": "sdata.mappers.TorchVisionImageTransforms",
                         "params": {"key": "jpg", "transforms": [
                             {"target": "torchvision.transforms.Resize", "params": {"size": 96, "interpolation": 3}}]}},
                    ],
                },
                "loader": {"batch_size": 8, "num_workers": 4},
            }
        },
    },
    "lightning": {
        "strategy": {"target": "pytorch_lightning.strategies.DDPStrategy", "params": {"find_unused_parameters": True}},
        "modelcheckpoint": {"params": {"every_n_train_steps": 5000}},
        "trainer": {"devices": "0,", "limit_val_batches": 50, "benchmark": True, "val_check_interval": 10000},
    },
}  # fmt: skip


def read(tree: dict[str, Any], caplog: pytest.LogCaptureFixture) -> tuple[TrainConfig, list[str]]:
    """(the configuration, paths that are told not to be used)."""
    caplog.clear()
    config = config_from(copy.deepcopy(tree))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) <= 1
    return config, sorted(told[0].removeprefix("config: not used here: ").split(", ")) if told else []


def test_latent_diffusions_file(caplog: pytest.LogCaptureFixture) -> None:
    config, unused = read(LDM, caplog)
    assert (config.data.batch_size, config.data.workers, config.data.crop, config.data.val_crop) == (12, 3, 128, 192)
    assert (config.data.train, config.data.val) == (("some/train.txt",), ("some/test.txt",))
    assert (config.trainer.accumulate, config.trainer.epochs, config.trainer.devices) == (2, 7, 2)
    assert (config.trainer.accelerator, config.output.grids, config.model.base_learning_rate) == ("gpu", 8, 4.5e-6)
    assert (config.optimizer.target, config.optimizer.params) == ("torch.optim.Adam", {"betas": [0.5, 0.9]})
    assert config.model.params["ddconfig"] == DDCONFIG
    assert unused == [
        "data.params.train.target",
        "data.params.validation.target",
        "data.params.wrap",
        "data.target",
        "lightning.callbacks.image_logger.params.batch_frequency",
        "lightning.callbacks.image_logger.target",
        "lightning.trainer.benchmark",
    ]


def test_generative_models_file(caplog: pytest.LogCaptureFixture) -> None:
    config, unused = read(SGM, caplog)
    assert (config.data.batch_size, config.data.workers, config.data.crop, config.data.val_limit) == (8, 4, 96, 50)
    assert (config.trainer.devices, config.trainer.strategy, config.trainer.check_every) == (1, "auto", 10000)
    optimizer = config.optimizer
    assert (optimizer.lr, optimizer.discriminator_lr, optimizer.target) == (9e-6, 4.5e-6, "torch.optim.Adam")
    assert config.model.base_learning_rate is None  # which is not multiplied by anything there
    params = config.model.params
    assert params["ddconfig"]["attn_type"] == "vanilla-xformers"
    assert (params["use_quant_conv"], params["use_post_quant_conv"], params["monitor"]) == (
        False,
        False,
        "val/rec_loss",
    )
    assert "decoder_ddconfig" not in params  # it is the same
    assert params["lossconfig"]["params"]["disc_start"] == 9
    assert "model.params.diff_boost_factor" in unused
    assert "data.params.train.datapipeline.urls" in unused
    assert not any("monitor" in path or "loader" in path for path in unused)


@pytest.mark.parametrize(("tree", "quant"), [(LDM, True), (SGM, False)])
def test_they_train(
    tree: dict[str, Any], quant: bool, tmp_path: Path, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "theirs.yaml"
    path.write_text(json.dumps(tree))
    words = [f"data.train={photos}", f"data.val={photos}", f"output.folder={tmp_path / 'run'}", "data.batch_size=2"]
    words += ["data.crop=16", "data.val_crop=32", "data.workers=0", "trainer.batches=4", "trainer.check_every=2"]
    words += ["trainer.devices=1", "trainer.accelerator=cpu", "trainer.precision=32-true", "data.val_limit=2"]
    caplog.set_level(logging.WARNING, "exact_vae.vae_model.training.recipe")
    assert main(["train", str(path), *words, "--quiet"]) == 0
    told = [record for record in caplog.records if "not used here" in record.getMessage()]
    assert len(told) == 1
    weights = tmp_path / "run" / "vae.safetensors"
    assert any(name.startswith("post_quant_conv") for name in load_file(weights)) is quant
    assert load_vae(weights, device="cpu").latent_channels == 4


def test_a_decoder_of_its_own_width(tmp_path: Path, photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree = copy.deepcopy(SGM)
    tree["model"]["params"]["decoder_config"]["params"] = {**DDCONFIG, "ch": 64}
    tree["data"] = {"train": str(photos), "batch_size": 1, "crop": 16}
    tree["trainer"] = {"batches": 1, "accelerator": "cpu"}
    tree["model"]["params"]["monitor"] = None
    tree["output"] = {"folder": str(tmp_path / "run")}
    config, _ = read(tree, caplog)
    module = prepare(config, progress=False).module
    assert (module.encoder.conv_in.out_channels, module.decoder.conv_out.in_channels) == (32, 64)  # pyright: ignore


@pytest.mark.parametrize(
    ("words", "section", "expected"),
    [
        ({"max_epochs": 10}, "trainer", {"epochs": 10, "batches": None}),
        ({"max_epochs": -1, "max_steps": 500}, "trainer", {"epochs": None, "batches": 500}),
        ({"accumulate_grad_batches": 4, "batches": 1}, "trainer", {"accumulate": 4}),
        ({"gradient_clip_val": 0.5}, "trainer", {"clip": 0.5}),
        ({"gradient_clip_val": 0, "gradient_clip_algorithm": "norm"}, "trainer", {"clip": None}),
        ({"check_val_every_n_epoch": 3}, "trainer", {"check_epochs": 3}),
        ({"val_check_interval": 250}, "trainer", {"check_every": 250}),
        ({"val_check_interval": 1.0}, "trainer", {"check_epochs": 1}),
        ({"log_every_n_steps": 5}, "trainer", {"log_every": 5}),
        ({"precision": "16-mixed"}, "trainer", {"precision": "16-mixed"}),
        ({"precision": 16}, "trainer", {"precision": "16-mixed"}),
        ({"precision": 32}, "trainer", {"precision": "32-true"}),
        ({"precision": "bf16"}, "trainer", {"precision": "bf16-mixed"}),
        ({"devices": [0, 1, 2]}, "trainer", {"devices": 3}),
        ({"devices": "0,"}, "trainer", {"devices": 1}),
        ({"devices": -1}, "trainer", {"devices": "auto"}),
        ({"gpus": 2}, "trainer", {"devices": 2, "accelerator": "gpu"}),
        ({"gpus": 0}, "trainer", {"devices": 1, "accelerator": "cpu"}),
        ({"accelerator": "ddp"}, "trainer", {"accelerator": "auto", "strategy": "ddp"}),
        ({"strategy": "ddp_find_unused_parameters_true"}, "trainer", {"strategy": "ddp"}),
        ({"num_nodes": 2}, "trainer", {"num_nodes": 2}),
        ({"max_time": "00:01:30:00"}, "trainer", {"max_minutes": 90.0}),
        ({"max_time": {"hours": 2}}, "trainer", {"max_minutes": 120.0}),
        ({"limit_val_batches": 7}, "data", {"val_limit": 7}),
        ({"default_root_dir": "there"}, "output", {"folder": "there"}),
    ],
)
def test_lightnings_words(
    words: dict[str, Any], section: str, expected: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    for tree in ({"trainer": words}, {"lightning": {"trainer": {k: v for k, v in words.items() if k != "batches"}}}):
        config, unused = read(tree, caplog)
        assert {name: getattr(getattr(config, section), name) for name in expected} == expected
        assert unused == []


def test_words_without_a_counterpart_are_told_together(caplog: pytest.LogCaptureFixture) -> None:
    words = {"benchmark": True, "deterministic": True, "limit_val_batches": 0.5, "strategy": "deepspeed", "epochs": 2}
    config, unused = read({"trainer": words}, caplog)
    assert unused == [f"trainer.{name}" for name in ("benchmark", "deterministic", "limit_val_batches", "strategy")]
    assert config.trainer.epochs == 2


def test_ours_come_first(caplog: pytest.LogCaptureFixture) -> None:
    tree = {**LDM, "trainer": {"batches": 5}, "data": {**LDM["data"], "batch_size": 2}}
    config, _ = read({**tree, "optimizer": {"target": "torch.optim.SGD"}}, caplog)
    assert (config.trainer.batches, config.trainer.epochs, config.data.batch_size) == (5, None, 2)
    assert (config.optimizer.target, config.optimizer.params) == ("torch.optim.SGD", {})


def test_a_word_for_the_length_replaces_the_other(tmp_path: Path) -> None:
    assert read_config("kl_f8_small").trainer.batches == 7000
    for word in ("trainer.epochs=3", "trainer.max_epochs=3"):
        trainer = read_config("kl_f8_small", [word]).trainer
        assert (trainer.epochs, trainer.batches) == (3, None)
    (tmp_path / "theirs.yaml").write_text(json.dumps(LDM))
    trainer = read_config(str(tmp_path / "theirs.yaml"), ["trainer.max_steps=9", "trainer.precision=16"]).trainer
    assert (trainer.epochs, trainer.batches, trainer.precision) == (None, 9, "16-mixed")


def test_numbers_without_a_point_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("optimizer: {params: {weight_decay: 1e-4}}\nmodel: {params: {a: [-2E+3, 1e]}}\n")
    config = read_config(str(tmp_path / "a.yaml"), ["optimizer.params.eps=1e-6"])
    assert config.optimizer.params == {"weight_decay": 1e-4, "eps": 1e-6}
    assert config.model.params["a"] == [-2000.0, "1e"]


@pytest.mark.parametrize(
    ("params", "text"),
    [
        (
            {"regularizer_config": {"target": "sgm.x.VectorQuantizer"}},
            "regularizer_config: expected DiagonalGaussian",
        ),
        ({"decoder_config": {"target": "sgm.x.VideoDecoder"}}, "decoder_config: expected Decoder, got VideoDecoder"),
        ({"trainable_ae_params": [["decoder"]]}, "trainable_ae_params: expected none, got some: say train: [decoder]"),
        ({"decoder_config": {"target": "Decoder", "params": "${model.nothing}"}}, "got ${model.nothing}"),
    ],
)
def test_what_cannot_be_honoured_ends_it(params: dict[str, Any], text: str) -> None:
    tree = copy.deepcopy(SGM)
    tree["model"]["params"] |= params
    with pytest.raises(ConfigError) as caught:
        config_from(tree)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mistakes_in_ours_are_mistakes_still() -> None:
    with pytest.raises(ConfigError, match="trianer: expected one of model, optimizer, data, trainer, output"):
        config_from({"trianer": {}, "trainer": {"max_epochs": 3}})
    with pytest.raises(ConfigError, match=r"trainer\.max_epoch: expected one of batches"):
        config_from({"trainer": {"max_epoch": 3}})
