"""Every configuration that comes with the project: prepared as it stands, and two batches of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning", reason="the trainer's packages are absent: pip install 'exact-vae[train]'")
from exact_vae import load_vae
from exact_vae.__main__ import main
from exact_vae.vae_model.training.fit import prepare
from exact_vae.vae_model.training.recipe import bundled_configs, read_config
from safetensors.torch import load_file

# Lightning 2.6 itself uses what torch has deprecated.
deprecated = pytest.mark.filterwarnings("ignore::FutureWarning:lightning", "ignore::DeprecationWarning")
pytestmark = [pytest.mark.usefixtures("one_thread"), deprecated]

SMALL = ["data.crop=32", "data.val_crop=32", "data.batch_size=2", "data.val_limit=2", "data.workers=0"]
SHORT = ["trainer.epochs=null", "trainer.batches=2", "trainer.check_every=2", "trainer.accelerator=cpu"]
NARROWER = {"kl_f16": ["model.params.ddconfig.ch=32"], "kl_f8_small": ["data.stages=[[0,32,2]]"]}
"""kl_f16 has 70 million parameters: a width of 32 instead of 128 makes its two batches a matter of seconds."""


def words(photos: Path, folder: Path) -> list[str]:
    """Which pictures, and where the results go."""
    return [f"data.train={photos}", f"data.val={photos}", f"output.folder={folder / 'run'}"]


@pytest.mark.parametrize("name", bundled_configs())
def test_it_can_be_prepared_as_it_stands(name: str, tmp_path: Path, photos: Path) -> None:
    prepared = prepare(read_config(name, [*words(photos, tmp_path), "trainer.accelerator=cpu"]), progress=False)
    parts = dict(prepared.module.model.named_children())
    trained = {
        name for name in ("encoder", "decoder") if name in parts and next(parts[name].parameters()).requires_grad
    }
    assert trained == ({"encoder", "decoder"} if name.startswith("kl") else {"decoder"})


@pytest.mark.parametrize("name", bundled_configs())
def test_two_batches_are_trained_and_judged(name: str, tmp_path: Path, photos: Path) -> None:
    changes = [*words(photos, tmp_path), *SMALL, *SHORT, "output.dtype=float32", *NARROWER.get(name, ())]
    assert main(["train", name, *changes, "--quiet"]) == 0
    weights = tmp_path / "run" / read_config(name).output.weights
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(weights).values())
    assert load_file(weights).keys() == load_file(tmp_path / "run" / "best.safetensors").keys()
    if name != "distill_tiny":  # which is half a model
        assert load_vae(weights, device="cpu").encode(torch.rand(1, 32, 32, 3)).isfinite().all()


@pytest.mark.parametrize("given", ["decoder", "[decoder]"])
def test_a_fine_tuned_decoder_keeps_its_encoder(given: str, tmp_path: Path, photos: Path) -> None:
    """A list, and a word alone that stands for a list of one."""
    from exact_vae.vae_model.bundled import BUNDLED_FILE

    changes = [*words(photos, tmp_path), *SMALL, *SHORT, "output.dtype=float32", f"model.params.train={given}"]
    assert main(["train", "finetune_decoder", *changes, "optimizer.warm_up=0", "--quiet"]) == 0
    before, after = load_file(BUNDLED_FILE), load_file(tmp_path / "run" / "vae.safetensors")
    changed = {key.split(".")[0] for key in before if not torch.equal(before[key].float(), after[key])}
    assert "decoder" in changed
    assert changed <= {"decoder", "post_quant_conv"}


def test_ignored_keys_keep_their_start_values(tmp_path: Path, photos: Path) -> None:
    from exact_vae.vae_model.bundled import BUNDLED_FILE

    changes = [*words(photos, tmp_path), "model.params.ckpt_path=bundled", "trainer.accelerator=cpu"]
    ignored = "model.params.ignore_keys=[decoder.conv_out,encoder.conv_in.bias]"
    model = prepare(read_config("kl_f8_small", [*changes, ignored]), progress=False).module.model
    given, found = load_file(BUNDLED_FILE), model.state_dict()
    differ = {key for key, value in given.items() if not torch.equal(value.float(), found[key])}
    assert differ == {"decoder.conv_out.weight", "decoder.conv_out.bias", "encoder.conv_in.bias"}
