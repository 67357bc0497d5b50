"""Keys that stand in another place or have another trainer's name: the error names the right one."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from exact_vae.__main__ import main
from exact_vae.vae_model.training.config import ConfigError
from exact_vae.vae_model.training.key_places import MODEL_KEYS, places_of
from exact_vae.vae_model.training.lightning_words import WORDS
from exact_vae.vae_model.training.recipe import bundled_configs, config_from, read_config

pytest.importorskip("yaml", reason="the trainer's packages are absent: pip install 'exact-vae[train]'")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("word", "place"),
    [
        ("trainer.batch_size=4", "data.batch_size"),
        ("model.batch_size=4", "data.batch_size"),
        ("batch_size=4", "data.batch_size"),
        ("model.lr=1e-4", "optimizer.lr"),
        ("trainer.lr=1e-4", "optimizer.lr"),
        ("data.lr=1e-4", "optimizer.lr"),
        ("lr=1e-4", "optimizer.lr"),
        ("optimizer.learning_rate=1e-4", "optimizer.lr"),
        ("base_learning_rate=1e-4", "model.base_learning_rate"),
        ("trainer.base_learning_rate=1e-4", "model.base_learning_rate"),
        ("trainer.max_step=3", "trainer.batches"),
        ("max_epochs=3", "trainer.epochs"),
        ("data.num_workers=3", "data.workers"),
        ("trainer.workers=3", "data.workers"),
        ("trainer.resolution=64", "data.crop or model.params.ddconfig.resolution"),
        ("trainer.val=photos", "data.val"),
        ("output_dir=run", "output.folder"),
        ("trainer.folder=run", "output.folder"),
        ("trainer.batchs=3", "trainer.batches"),
        ("trainer.warm_up=3", "optimizer.warm_up"),
        ("optimizer.weight_decay=3", "optimizer.params.weight_decay"),
        ("model.ema_decay=0.9", "model.params.ema_decay"),
        ("data.crop_size=3", "data.crop"),
    ],
)
def test_the_right_place_is_named(word: str, place: str) -> None:
    key = word.partition("=")[0]
    with pytest.raises(ConfigError) as caught:
        read_config("kl_f8_small", [word])
    assert f"{key}: expected one of " in str(caught.value)
    assert str(caught.value).endswith(f"got an unknown key: say {place}")
    for name in place.split(" or "):
        if name.startswith(("data", "trainer", "output", "optimizer")):
            assert not unknown(name), "the place does not exist itself"


def unknown(key: str) -> bool:
    """Whether this key is refused as unknown."""
    tree: Any = 1
    for part in reversed(key.split(".")):
        tree = {part: tree}
    try:
        config_from(tree)
    except ConfigError as error:
        return "unknown key" in str(error)
    return False


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("model.params.lr=1", "model.params.lr: .*: say optimizer.lr$"),
        ("model.params.z_channels=1", r"model.params.z_channels: .*: say model\.params\.ddconfig\.z_channels$"),
        ("model.params.ddconfig.embed_dim=1", r" ddconfig.embed_dim: .*: say model\.params\.embed_dim$"),
        (
            "model.params.lossconfig.params.kl_wieght=1",
            r"kl_wieght: .*: say model\.params\.lossconfig\.params\.kl_weig",
        ),
        ("model.params.embeddim=1", r"model\.params\.embeddim: .*: say model\.params\.embed_dim$"),
        ("model.params.ddconfig.chmult=1", r"ddconfig\.chmult: .*: say model\.params\.ddconfig\.ch_mult$"),
        (
            "model.params.decoder_ddconfig={chmult: 1}",
            r" decoder_ddconfig\.chmult: .*: say model\.params\.decoder_ddconfig\.ch_mult$",
        ),
        (
            "model.params.lossconfig={target: LPIPSWithDiscriminator, params: {perceptual_weigth: 1}}",
            r"perceptual_weigth: .*: say model\.params\.lossconfig\.params\.perceptual_weight$",
        ),
        ("model.params.ddconfig.colour=1", r" ddconfig.colour: expected one of ch, .*: correct or remove it$"),
    ],
)
def test_arguments_of_the_model_are_checked_before_it_is_built(
    word: str, text: str, photos: Path, tmp_path: Path
) -> None:
    from exact_vae.vae_model.training.preflight import check_inputs

    config = read_config("kl_f8_small", [word, f"data.train={photos}", f"output.folder={tmp_path / 'run'}"])
    with pytest.raises(ConfigError, match=text):
        check_inputs(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--epochs", "3"], "got --epochs: write trainer.epochs=VALUE"),
        (["--epochs=3"], "got --epochs=3: write trainer.epochs=3"),
        (["--batch-size", "4"], "got --batch-size: write data.batch_size=VALUE"),
        (["--lr=1e-4"], "got --lr=1e-4: write optimizer.lr=1e-4"),
        (["--max_epochs", "4"], "got --max_epochs: write trainer.epochs=VALUE"),
        (["--trainer.epochs", "4"], "got --trainer.epochs: write trainer.epochs=VALUE"),
        (["--gpus", "2"], "got --gpus: write trainer.devices=VALUE"),
        (["--config"], "got --config: write the name of the configuration alone"),
        (["--anything"], "got --anything: write for example trainer.batches=100"),
        (
            ["--resume", "last.ckpt"],
            "got 'last.ckpt': say --resume alone, which goes on from the last.ckpt of o",
        ),
        (["data.train", "=", "photos"], "got 'data.train': write data.train=VALUE, without spaces"),
        (["anything"], "got 'anything': write for example trainer.batches=100"),
    ],
)
def test_options_of_other_trainers_are_told_what_they_are_here(
    words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "kl_f8_small", *words]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"exact-vae: config: expected key=value, {text}")
    assert printed.count("\n") == 1


def test_every_word_of_lightning_has_a_place() -> None:
    """Also where it does not stand under `trainer`, where it is translated."""
    assert [name for name in WORDS if not places_of(name)] == []


def test_the_autoencoder_of_a_diffusion_model_is_what_is_trained(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = {"target": "ldm.models.autoencoder.AutoencoderKL", "params": {"embed_dim": 4}}
    config = tmp_path / "diffusion.yaml"
    target = "ldm.models.diffusion.ddpm.LatentDiffusion"
    config.write_text(json.dumps({"model": {"target": target, "params": {"first_stage_config": first}}}))
    assert main(["train", str(config), f"data.train={photos}"]) == 2
    assert "got LatentDiffusion: train its params.first_stage_config, put that under" in capsys.readouterr().err


def test_nothing_is_said_where_nothing_is_near() -> None:
    assert places_of("trainer.qqqq") == []


def test_the_names_of_the_models_are_their_arguments() -> None:
    pytest.importorskip("lightning", reason="the trainer's packages are absent: pip install 'exact-vae[train]'")
    from exact_vae.vae_model.training.fit import MODELS

    assert {name: tuple(inspect.signature(kind).parameters) for name, kind in MODELS.items()} == MODEL_KEYS


RESOLUTION = {"model": {"params": {"ddconfig": {"resolution": 64}}}}


@pytest.mark.parametrize(
    ("tree", "crops"),
    [
        ({}, (256, 256)),
        (RESOLUTION, (64, 64)),
        ({**RESOLUTION, "data": {"crop": 32}}, (32, 64)),
        ({**RESOLUTION, "data": {"val_crop": 128}}, (64, 128)),
        ({**RESOLUTION, "data": {"crop": None, "val_crop": None}}, (64, 64)),
        ({"model": {"ddconfig": {"resolution": 64}}}, (64, 64)),  # beside params, as in old files
        ({"model": {"params": {"ddconfig": {"resolution": "large"}}}}, (256, 256)),  # which is refused elsewhere
        (  # generative-models'
            {
                "model": {
                    "target": "sgm.models.autoencoder.AutoencodingEngine",
                    "params": {"encoder_config": {"target": "sgm.modules.Encoder", "params": {"resolution": 128}}},
                }
            },
            (128, 128),
        ),
    ],
)
def test_crops_follow_the_models_resolution(tree: dict[str, Any], crops: tuple[int, int]) -> None:
    data = config_from(tree).data
    assert (data.crop, data.val_crop) == crops


def test_the_bundled_configurations_keep_their_crops() -> None:
    found = {name: read_config(name).data for name in bundled_configs()}
    assert {name: (data.crop, data.val_crop, data.stages) for name, data in found.items()} == {
        "distill_tiny": (128, 512, ()),
        "finetune_decoder": (256, 512, ()),
        "kl_f16": (256, 256, ()),
        "kl_f8_small": (256, 512, ((0, 64, 16), (0.7, 128, 4))),
    }


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "data.train: expected folders or lists with pictures, got nothing"),
        (["data.train=/nowhere"], "data.train: expected a folder, a picture or a .txt list, got /nowhere"),
        (["data.train={photos}", "data.val=/nowhere"], "data.val: expected a folder, a picture or a .txt list"),
        (["data.train={photos}", "trainer.batches=null"], "trainer: expected batches or epochs, got neither"),
        (["data.train={photos}", "model.target=os.system"], "model.target: expected one of AutoEncoderKL"),
        (["data.train={photos}", "model.params.ddconfg=1"], "say model.params.ddconfig"),
        (["data.train={photos}", "model.params.ckpt_path=nowhere.ckpt"], "nowhere.ckpt: expected a weight file"),
        (["data.train={photos}", "output.folder={photos}/0.png/run"], "output: expected a writable folder"),
        (["data.train={photos}", "output.weights=best.safetensors"], "output.weights: expected another name"),
        (["trainer.batch_size=4"], "say data.batch_size"),
    ],
)
def test_what_the_configuration_tells_is_told_before_lightning_is_imported(
    words: list[str], text: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "exact_vae.vae_model.training.fit", raising=False)
    for name in [name for name in sys.modules if name.split(".")[0] == "lightning"]:
        monkeypatch.setitem(sys.modules, name, None)  # whose import fails
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)  # they are said to be there
    assert main(["train", "kl_f8_small", *(word.format(photos=photos) for word in words)]) == 2
    printed = capsys.readouterr().err
    assert text in printed
    assert printed.count("\n") == 1


def test_the_line_comes_as_fast_as_torch_is_imported(tmp_path: Path) -> None:
    """Of its modules, which do not depend on how busy a machine is: none of Lightning's or of what it brings along."""
    (tmp_path / "exact_vae").symlink_to(Path(__file__).resolve().parents[2], target_is_directory=True)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from exact_vae.__main__ import main\n"
        "assert main(['train', 'kl_f8_small']) == 2\n"
        "slow = {'lightning', 'pytorch_lightning', 'torchmetrics', 'tensorboard', 'scipy', 'torchvision'}\n"
        "print(sorted(slow & set(sys.modules)), 'torch._dynamo' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] False"
