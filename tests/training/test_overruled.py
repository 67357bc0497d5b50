"""What the command line says is what happens; keys that contradict each other, or that nothing reads, are told."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from exact_vae.__main__ import main
from exact_vae.vae_model.training.config import ConfigError, TrainConfig
from exact_vae.vae_model.training.recipe import config_from, read_config

pytest.importorskip("lightning", reason="the trainer's packages are absent: pip install 'exact-vae[train]'")
from exact_vae.tests.training.case import with_params, write_config
from exact_vae.vae_model.training.fit import prepare

# Lightning 2.6 itself uses what torch has deprecated.
deprecated = pytest.mark.filterwarnings("ignore::FutureWarning:lightning", "ignore::DeprecationWarning")
pytestmark = [pytest.mark.usefixtures("one_thread"), deprecated]

FOREIGN: dict[str, Any] = {
    "model": {
        "base_learning_rate": 4.5e-6,
        "target": "sgm.models.autoencoder.AutoencodingEngine",
        "params": {
            "encoder_config": {"target": "sgm.modules.diffusionmodules.model.Encoder", "params": {"ch": 32}},
            "loss_config": {"target": "sgm.modules.autoencoding.losses.X", "params": {"disc_start": 5}},
        },
    },
    "data": {"target": "main.DataModuleFromConfig", "params": {"batch_size": 12, "train": {"params": {"size": 256}}}},
    "lightning": {"trainer": {"accumulate_grad_batches": 2, "max_epochs": 3}},
}


def file_of(tmp_path: Path, tree: dict[str, Any]) -> str:
    path = tmp_path / "theirs.yaml"
    path.write_text(json.dumps(tree))
    return str(path)


@pytest.mark.parametrize(
    ("words", "stages"),
    [
        (["data.crop=64", "data.batch_size=2"], ((0, 64, 2),)),
        (["data.batch_size=2", "data.crop=64"], ((0, 64, 2),)),
        (["data.batch_size=2"], ((0, 64, 2), (0.7, 128, 2))),  # who lacks memory keeps the crops
        (["data.crop=64"], ((0, 64, 16), (0.7, 64, 4))),
        (["data.crop=1e2"], ((0, 100, 16), (0.7, 100, 4))),
        (["data.params.batch_size=2"], ((0, 64, 2), (0.7, 128, 2))),  # latent-diffusion's word
        (["data.crop=64", "data.batch_size=2", "data.stages=[]"], ((0, 64, 2),)),
        (["data.stages=[]"], ((0, 256, 8),)),
        (["data.stages=null"], ((0, 256, 8),)),
        (["data.stages=[[0,32,1]]"], ((0, 32, 1),)),
        (["data.crop=32", "data.batch_size=1", "data.stages=[[0,32,1]]"], ((0, 32, 1),)),
        ([], ((0, 64, 16), (0.7, 128, 4))),
    ],
)
def test_sizes_on_the_command_line_hold(words: list[str], stages: tuple[Any, ...]) -> None:
    assert read_config("kl_f8_small", words).data.all_stages == stages


def test_stages_on_the_command_line_replace_the_sizes_of_a_file(tmp_path: Path) -> None:
    for data in ({"crop": 16, "batch_size": 4}, FOREIGN["data"]):
        config = read_config(file_of(tmp_path, {"data": data}), ["data.stages=[[0,32,1],[0.5,64,2]]"])
        assert config.data.all_stages == ((0, 32, 1), (0.5, 64, 2))


def place(config: TrainConfig, path: str) -> Any:
    found: Any = config
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else getattr(found, name)
    return found


@pytest.mark.parametrize(
    ("name", "word", "expected"),
    [
        ("kl_f16", "optimizer.lr=1e-4", {"optimizer.lr": 1e-4, "model.base_learning_rate": None}),
        ("kl_f8_small", "model.base_learning_rate=1e-6", {"model.base_learning_rate": 1e-6, "optimizer.lr": 1e-4}),
        ("kl_f8_small", "model.embed_dim=8", {"model.params.embed_dim": 8}),
        ("kl_f8_small", "model.ddconfig.ch=64", {"model.params.ddconfig.ch": 64, "model.params.ddconfig.out_ch": 3}),
        ("kl_f8_small", "model.params.loss_config.params.kl_weight=1", {"model.params.lossconfig.params.kl_weight": 1}),
        ("kl_f8_small", "data.params.num_workers=3", {"data.workers": 3}),
        ("kl_f16", "lightning.trainer.accumulate_grad_batches=2", {"trainer.accumulate": 2}),
        ("finetune_decoder", "model.params.lossconfig.target=default_loss", {"model.params.lossconfig.params": None}),
        ("kl_f8_small", "optimizer.target=torch.optim.SGD", {"optimizer.params": {}}),
        ("kl_f8_small", "optimizer.target=torch.optim.AdamW", {"optimizer.params.weight_decay": 1e-4}),
        ("theirs", "optimizer.lr=1e-4", {"optimizer.lr": 1e-4, "model.base_learning_rate": None}),
        ("theirs", "model.base_learning_rate=1e-3", {"optimizer.lr": 1e-3}),
        ("theirs", "data.batch_size=2", {"data.batch_size": 2, "data.crop": 256}),
        ("theirs", "data.params.batch_size=2", {"data.batch_size": 2, "data.crop": 256}),
        ("theirs", "lightning.trainer.accumulate_grad_batches=5", {"trainer.accumulate": 5}),
        ("theirs", "trainer.accumulate=5", {"trainer.accumulate": 5}),
        ("theirs", "model.params.ddconfig.ch=64", {"model.params.ddconfig.ch": 64}),
        ("theirs", "model.params.lossconfig.params.disc_start=1", {"model.params.lossconfig.params.disc_start": 1}),
        ("theirs", "model.params.lossconfig.params.disc_weight=1", {"model.params.lossconfig.params.disc_start": 5}),
    ],
)
def test_a_key_on_the_command_line_holds_whatever_the_file_calls_it(
    name: str, word: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    config = read_config(file_of(tmp_path, FOREIGN) if name == "theirs" else name, [word])
    assert {path: place(config, path) for path in expected} == expected


@pytest.mark.parametrize(
    ("words", "note"),
    [
        (["data.crop=64", "data.batch_size=2"], "data.crop=64 and data.batch_size=2 replace data.stages of the file"),
        (["data.crop=64"], "data.crop=64 holds in all stages of the file, data.stages=[[0, 64, 16], [0.7, 64, 4]]; "),
        (["optimizer.target=torch.optim.SGD"], "optimizer.params of the file are not used: they are AdamW's"),
    ],
)
def test_what_is_replaced_is_told(words: list[str], note: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "kl_f8_small", *words]) == 2
    assert f"exact-vae: config: {note}" in capsys.readouterr().err
    assert main(["train", "kl_f8_small", *words, "--quiet"]) == 2
    assert "of the file" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        (
            {"data": {"stages": [[0, 64, 16]], "crop": 32}},
            r"data\.crop: expected either data\.crop or data\.stages, got 32 and \[\[0, 64, 16\]\]: remove one of "
            r"them; data\.stages=\[\]",
        ),
        (
            {"data": {"stages": [[0, 64, 16]], "batch_size": 2}},
            r"data\.batch_size: expected either .*; data\.stages=",
        ),
        (
            {"model": {"base_learning_rate": 1e-6}, "optimizer": {"lr": 1e-4}},
            r"optimizer\.lr: expected either optimizer\.lr or model\.base_learning_rate, got 0.0001 and 1e-06: remove",
        ),
        ({"model": {"embed_dim": 4, "params": {"embed_dim": 8}}}, r"model\.embed_dim: expected it once, got another"),
    ],
)
def test_keys_of_a_file_that_contradict_each_other_are_refused(tree: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        config_from(tree)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["data.crop=64", "data.stages=[[0,32,8]]"], r"data\.crop: expected either"),
        (["optimizer.lr=1e-4", "model.base_learning_rate=1e-6"], r"optimizer\.lr: expected either"),
    ],
)
def test_words_that_contradict_each_other_are_refused(words: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        read_config("kl_f8_small", words)


def test_words_of_theirs_that_say_otherwise_than_ours_in_one_file_are_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tree = {"trainer": {"accumulate": 3, "accumulate_grad_batches": 2, "clip": 0.5, "gradient_clip_val": 0.5}}
    assert config_from({**tree, "model": {"params": {"input_key": "a", "image_key": "b"}}}).trainer.accumulate == 3
    assert caplog.messages == [
        "config: not used here: trainer.accumulate_grad_batches, model.params.image_key",
    ]


@pytest.mark.parametrize(
    ("params", "words", "text"),
    [
        ({}, ["data.crop=63"], r"data\.crop: expected multiples of 2 pixels, got 63: change it to 64"),
        ({}, ["data.stages=[[0,16,1],[0.5,33,1]]"], r"data\.stages: expected multiples of 2 pixels, got 33: change it"),
        (
            {},
            ["data.crop=100000"],
            r"data\.crop: expected a crop of at most 256 pixels, .* picture \(64\), got 1000",
        ),
        (
            {},
            ["data.crop=258"],
            r"expected a crop of at most 256 pixels, 4 times the shorter side of .* got 258:",
        ),
        ({"ignore_keys": ["a"]}, [], r"model\.params\.ignore_keys: expected ckpt_path beside it, got none: add that"),
        ({"ckpt_part": "ema"}, [], r"model\.params\.ckpt_part: expected ckpt_path beside it"),
        (
            {"lossconfig": {"params": {"disc_start": 3}}},
            [],
            r"disc_start: expected disc_weight beside it, got none, hence no discriminator: add disc_weight=0\.5, or",
        ),
        ({"lossconfig": {"params": {"terms": {}}}}, [], r"loss\.terms: expected at least one term, got none"),
        (
            {"ckpt_path": "bundled", "ddconfig": None, "embed_dim": 8},
            [],
            r"embed_dim: expected that of ckpt_path, 16, got 8: leave it out, or say ddconfig",
        ),
    ],
)
def test_what_would_end_a_training_or_be_ignored_is_refused_at_the_start(
    params: dict[str, Any], words: list[str], text: str, tmp_path: Path, photos: Path
) -> None:
    config = write_config(tmp_path, photos, with_params(**params), batches=4)
    with pytest.raises(ConfigError, match=text) as caught:
        prepare(read_config(config, words), progress=False)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "run").rglob("*"))


def test_the_largest_enlargement_that_is_taken(tmp_path: Path, photos: Path) -> None:
    """Small pictures of a data set may be enlarged, such as 28 pixels to 32."""
    config = write_config(tmp_path, photos, batches=4)
    assert prepare(read_config(config, ["data.crop=256"]), progress=False).data.section.crop == 256


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("output.weights=sub/vae.safetensors", r"output\.weights: expected a name alone, got 'sub/vae"),
        ("optimizer.lr=.inf", r"optimizer\.lr: expected a finite number, got inf"),
        ("optimizer.lr=.nan", r"optimizer\.lr: expected at least 0, got nan"),
        ("trainer.seed=9223372036854775808", r"trainer\.seed: expected a number below 2 \*\* 63"),
        ("trainer.devices=all", r"trainer: expected what this machine has, got .*'all'"),
        ("model.params.embed_dim=0", r"embed_dim: expected a whole number of at least 1, got 0"),
        ("data.stages=[[0,16,2],[0.5,16,2],[0.5,16,1]]", r"data\.stages: expected rising shares"),
        (
            "model.params.lossconfig={traget: default_loss}",
            r"lossconfig: expected .*, got traget: say target",
        ),
        ("optimizer.params={weight_deacy: 0.1}", r"optimizer\.params: .*: say weight_decay instead of weight_deacy"),
    ],
)
def test_values_that_would_end_a_training_later(word: str, text: str, tmp_path: Path, photos: Path) -> None:
    with pytest.raises(ValueError, match=text) as caught:
        prepare(read_config(write_config(tmp_path, photos, batches=4), [word]), progress=False)
    assert "\n" not in str(caught.value)


def test_a_key_that_stands_twice_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("data: &d {crop: 8, batch_size: 2}\ntrainer: {batches: 1}\ntrainer: {epochs: 3}\n")
    with pytest.raises(ConfigError, match=r"expected YAML in .*, got a mistake: correct it \(trainer stands twice in"):
        read_config(str(path))
    path.write_text("data: {<<: {crop: 8, batch_size: 2}, crop: 16}\n")  # a merged one is there to be replaced
    assert read_config(str(path)).data.all_stages == ((0, 16, 2),)


@pytest.mark.parametrize(
    ("params", "words", "note"),
    [
        (
            {"ckpt_path": "bundled", "ddconfig": None, "embed_dim": 16},
            [],
            r"model\.params\.start \(skip\) changes nothing",
        ),
        ({}, ["optimizer.warm_up=9"], r"optimizer\.warm_up takes 9 batches, and this training has 4"),
        ({}, ["optimizer.schedule=constant", "optimizer.final_share=0.1"], r"optimizer\.final_share changes nothing"),
        ({}, ["data.stages=[[0,16,2],[0.9,32,2]]"], r"the stage from 0\.9 on has no batch in a training of 4"),
        ({}, ["optimizer.discriminator_lr=1e-4"], r"discriminator_lr: nothing reads this, as the loss has no discrim"),
        (
            {"lossconfig": {"params": {"disc_weight": 0.1, "disc_start": 4, "disc_width": 4, "disc_layers": 1}}},
            [],
            r"counts from batch 4 on, and this training has 4: lower disc_start",
        ),
    ],
)
def test_what_changes_nothing_is_told(
    params: dict[str, Any], words: list[str], note: str, tmp_path: Path, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "exact_vae.vae_model.notes")
    prepare(read_config(write_config(tmp_path, photos, with_params(**params), batches=4), words), progress=False)
    told = [text for text in caplog.messages if text.startswith("config: ")]
    assert len(told) == 1
    assert re.search(note, told[0])


def test_a_distillation_without_the_half_that_a_setting_is_of(
    tmp_path: Path, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "exact_vae.vae_model.notes")
    params = {"teacher": "bundled", "width": 4, "blocks": 1, "latent_weight": 2.0}
    loss = {"params": {"kl_weight": 1e-3, "terms": {"l1": 1.0}}}
    model = {"target": "TinyDistillation", "params": {**params, "lossconfig": loss}}
    prepare(read_config(write_config(tmp_path, photos, model, batches=4)), progress=False)
    told = [text.partition(" changes nothing")[0] for text in caplog.messages if "changes nothing" in text]
    assert told == ["config: model.params.latent_weight", "config: model.params.lossconfig.params.kl_weight"]


def test_any_input_key_trains(tmp_path: Path, photos: Path) -> None:
    """It is where a loader of one's own has the images; the command's own loader has them there, too."""
    config = write_config(tmp_path, photos, with_params(input_key="pixels"), batches=1)
    assert main(["train", config, "--quiet"]) == 0
