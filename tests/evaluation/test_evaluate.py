"""`exact-vae evaluate`: the same crops for all VAEs, figures against the metrics themselves, bad pictures counted."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import load_vae
from exact_vae.__main__ import main
from exact_vae.vae_model.errors import InputError
from exact_vae.vae_model.evaluation import learned as learned_metrics
from exact_vae.vae_model.evaluation.evaluate import evaluate, reconstruct
from exact_vae.vae_model.evaluation.metrics import psnr, round_to_8_bits, ssim
from exact_vae.vae_model.files.images import read_image, write_image
from PIL import Image
from torch import Tensor

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures, one of them portrait; one broken; one too small; one that is no picture."""
    path = tmp_path_factory.mktemp("pictures")
    for number, (height, width) in enumerate([(200, 230), (210, 70)]):
        y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
        write_image(torch.stack([x, y, (x - y).abs()], dim=2), path / f"{number}.png")
    (path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not much")
    write_image(torch.rand(20, 100, 3), path / "small.png")
    (path / "notes.txt").write_text("no picture")
    return path


def test_two_vaes_on_identical_crops(folder: Path, small_file: Path) -> None:
    vaes = [(name, load_vae(name, dtype="float32", device="cpu")) for name in ("bundled", str(small_file))]
    result = evaluate(vaes, folder, crop=192, keep_samples=True)
    assert result.images == ["0.png", "1.png"]
    assert sorted(result.skipped) == ["broken.jpg", "small.png"]
    assert [tuple(x.shape) for _, x, _ in result.samples] == [(3, 192, 192), (3, 192, 64)]
    for scores, (_, vae) in zip(result.scores, vaes, strict=True):
        for image, x, _ in result.samples:
            y = reconstruct(vae, x[None])
            # psnr rounds by itself; the same model on the same numbers.
            assert scores.values["psnr"][image] == pytest.approx(float(psnr(x[None], y)), abs=1e-6)
            assert scores.values["ssim"][image] == pytest.approx(float(ssim(x[None], round_to_8_bits(y))), abs=1e-5)
        assert list(scores.values["ms_ssim"]) == ["0.png"]  # the other crop is too narrow for five scales
    good, bad = (scores.summary("psnr") for scores in result.scores)
    assert good is not None
    assert bad is not None
    assert good[0] > bad[0] + 5  # a trained model against random weights
    values = list(result.scores[0].values["psnr"].values())
    assert good == pytest.approx((sum(values) / 2, abs(values[0] - values[1]) / 2**0.5))


def test_the_table_and_the_contact_sheet(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "sheet.png"
    arguments = ["evaluate", "bundled", "bundled", "--images", str(folder), "--crop", "64", "--sheet", str(sheet)]
    assert main([*arguments, "--device", "cpu"]) == 1  # two pictures were left out
    printed = capsys.readouterr()
    table = printed.out.splitlines()
    assert table[0].split() == ["VAE", "images", "PSNR", "dB", "SSIM", "MS-SSIM", "LPIPS", "rFID"]
    assert table[1] == table[2]
    assert table[1].startswith("bundled  2")
    assert "MS-SSIM is absent: its five scales take crops of 176 pixels and more." in table
    assert table[-1] == "2 of 4 images skipped."
    assert "broken.jpg skipped: image: expected" in printed.err
    assert "small.png skipped: expected 32 pixels a side, got 100x20" in printed.err
    with Image.open(sheet) as picture:
        assert picture.size == (5 * 64 + 4 * 6, 2 * 64 + 6 + 26)
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(
            picture.height, picture.width, 3
        )
    crop = (read_image(folder / "0.png")[0][0, 68:132, 83:147] * 255).round().to(torch.uint8)
    assert torch.equal(pixels[26:90, :64], crop)  # the input, as it is
    shown, difference = pixels[26:90, 70:134].int(), pixels[26:90, 140:204].int()
    expected = ((shown - crop.int()).abs() * 8).clamp(max=255)
    assert int((difference - expected).abs().max()) <= 1  # of rounding half a step


def test_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "bundled", "--images", str(folder), "--crop", "64", "--json", "--device", "cpu"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert (facts["command"], facts["crop"], facts["images"], facts["sheet"]) == ("evaluate", 64, 2, None)
    assert sorted(facts["skipped"]) == ["broken.jpg", "small.png"]
    (vae,) = facts["vaes"]
    assert sorted(vae["psnr"]["values"]) == ["0.png", "1.png"]
    assert vae["psnr"]["mean"] == pytest.approx(sum(vae["psnr"]["values"].values()) / 2)
    assert vae["ms_ssim"] is None
    assert {"ms_ssim", "lpips", "rfid"} == facts["absent"].keys() | {"lpips", "rfid"}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (["--images", "nowhere"], "--images: expected a folder of pictures, got nowhere"),
        (["--crop", "31"], "--crop: expected at least 32 pixels, got 31"),
        (["--sheet", "a.jpg"], "--sheet: expected a name ending in .png, got 'a.jpg'"),
        (["nowhere.safetensors"], "nowhere.safetensors: expected a weight file, found none there"),
    ],
)
def test_bad_usage_is_one_line(folder: Path, change: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    vae = [] if change[0].endswith(".safetensors") else ["bundled"]
    assert main(["evaluate", "--images", str(folder), "--quiet", *vae, *change]) == 2
    printed = capsys.readouterr()
    assert text in printed.err
    assert printed.err.count("\n") == 1


def test_a_folder_of_nothing_but_bad_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no")
    with pytest.raises(InputError, match=r"expected readable pictures, got none of 1 \(image: expected a PNG"):
        evaluate([("bundled", load_vae(device="cpu"))], tmp_path)


@pytest.mark.parametrize(("crop", "side"), [(32, 32), (50, 32), (100, 96), (127, 96)])
def test_a_crop_of_any_size_is_cut_down_to_whole_cells(folder: Path, crop: int, side: int) -> None:
    result = evaluate([("bundled", load_vae(device="cpu", dtype="float32"))], folder, crop=crop, keep_samples=True)
    assert [tuple(x.shape[1:]) for _, x, _ in result.samples] == [(side, side), (side, min(side, 64))]
    assert all(x.shape == y.shape for _, x, outputs in result.samples for y in outputs)


# -- what needs packages and weights -----------------------------------------------------------------------------------


@pytest.fixture
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder where torch.hub would keep weights, and neither package."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setitem(sys.modules, "lpips", None)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def stub(name: str, **content: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(content)
    return module


class Lpips:
    """As the package's: called with images, answers (B, 1, 1, 1)."""

    def __init__(self, net: str, verbose: bool) -> None:
        assert (net, verbose) == ("alex", False)

    def eval(self) -> Any:
        return self

    def requires_grad_(self, mode: bool) -> Any:
        return self

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return (x - y).abs().mean(dim=(1, 2, 3), keepdim=True)


class Inception:
    """As the package's: bytes in, a tuple of features out."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str) -> None:
        assert Path(feature_extractor_weights_path).is_file()

    def __call__(self, x: Tensor) -> tuple[Tensor]:
        assert x.dtype == torch.uint8
        return (x.float().mean(dim=(2, 3)),)


def test_what_is_missing_is_said_in_one_line(no_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for load, package in ((learned_metrics.load_lpips, "lpips"), (learned_metrics.load_inception, "torch-fidelity")):
        metric, reason = load()
        assert metric is None
        assert reason.startswith(f"package {package} is not installed")
    monkeypatch.setitem(sys.modules, "lpips", stub("lpips", LPIPS=Lpips))
    assert learned_metrics.load_lpips() == (None, f"weights {learned_metrics.ALEXNET} are not in {no_weights}")


def test_lpips_and_rfid_where_they_are(no_weights: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "lpips", stub("lpips", LPIPS=Lpips))
    name = "torch_fidelity.feature_extractor_inceptionv3"
    monkeypatch.setitem(sys.modules, "torch_fidelity", stub("torch_fidelity"))
    monkeypatch.setitem(sys.modules, name, stub(name, FeatureExtractorInceptionV3=Inception))
    (no_weights / learned_metrics.ALEXNET).touch()
    (no_weights / learned_metrics.INCEPTION).touch()
    result = evaluate([("bundled", load_vae(device="cpu"))], folder, crop=64, keep_samples=True)
    assert result.absent.keys() == {"ms_ssim"}
    (scores,) = result.scores
    for image, x, (y,) in result.samples:
        assert scores.values["lpips"][image] == pytest.approx(float((x - y).abs().mean()), rel=1e-5)
    assert scores.rfid is not None
    assert scores.rfid > 0


def test_the_frechet_distance_of_known_gaussians() -> None:
    """Diagonal covariances: squared distance of the means plus that of the standard deviations; few rows and many."""
    signs = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]).double()  # covariance 4/3 times the unit matrix
    a, b = signs * torch.tensor([3.0, 1.0]), signs * torch.tensor([1.0, 2.0]) + torch.tensor([5.0, 0.0])
    expected = 25 + 4 / 3 * ((3 - 1) ** 2 + (1 - 2) ** 2)
    assert learned_metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    wide = [torch.cat([side, torch.zeros(4, 20).double()], dim=1) for side in (a, b)]
    assert learned_metrics.frechet_distance(*wide) == pytest.approx(expected, rel=1e-12)
    assert learned_metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="expected two rows or more of one width"):
        learned_metrics.frechet_distance(a[:1], b)


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A tiny VAE as two files."""
    from exact_vae.vae_model.checkpoint.save import to_layout
    from exact_vae.vae_model.families.tiny.model import AutoencoderTiny
    from safetensors.torch import save_file

    torch.manual_seed(0)
    widths: dict[str, Any] = {f"{half}_block_out_channels": (8, 8) for half in ("encoder", "decoder")}
    model = AutoencoderTiny(**widths, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)).eval()
    folder = tmp_path_factory.mktemp("halves")
    paths = [folder / f"taesd_{half}.safetensors" for half in ("encoder", "decoder")]
    for half, path in zip(("encoder", "decoder"), paths, strict=True):
        save_file(to_layout(model, f"taesd-{half}"), path)
    return [str(path) for path in paths]


def test_two_halves_are_one_vae(halves: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By `--vae` twice as for the other commands, or joined: the same figures, beside another VAE's."""
    words = ["--images", str(folder), "--crop", "64", "--device", "cpu", "--json"]
    found: list[Any] = []
    for named in (
        ["--vae", halves[0], "--vae", halves[1]],
        ["+".join(halves)],
        [",".join(halves)],
        ["--vae", ",".join(halves)],
    ):
        assert main(["evaluate", "bundled", *named, *words]) == 1  # two pictures were left out
        found.append(json.loads(capsys.readouterr().out)["vaes"])
    assert all(one == found[0] for one in found)
    assert [facts["vae"] for facts in found[0]] == ["bundled", "+".join(halves)]
    vae = load_vae(halves, dtype="float32", device="cpu")
    result = evaluate([("halves", vae)], folder, crop=64, keep_samples=True)
    for image, x, _ in result.samples:
        expected = float(psnr(x[None], reconstruct(vae, x[None])))
        assert found[0][1]["psnr"]["values"][image] == pytest.approx(expected, abs=1e-6)
        assert result.scores[0].values["psnr"][image] == pytest.approx(expected, abs=1e-6)


def test_one_vae_by_option_is_as_by_its_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--images", str(folder), "--crop", "32", "--device", "cpu", "--json"]
    printed: list[str] = []
    for named in (["bundled"], ["--vae", "bundled"]):
        assert main(["evaluate", *named, *words]) == 1
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_no_vae_at_all_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--images", str(folder)]) == 2
    assert capsys.readouterr().err == "exact-vae: evaluate: expected VAEs, got none: name files, or bundled\n"


def test_halves_that_are_named_apart_are_told_to_be_joined(
    halves: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *halves, "--images", str(folder), "--device", "cpu"]) == 2
    printed = capsys.readouterr().err
    assert printed.endswith('got half of one: name both with --vae, or joined by "+"\n')
    assert [line for line in printed.splitlines() if "taken are act_fn" not in line] == printed.splitlines()[-1:]
