"""What a newcomer types wrongly, for every command: exit code 2, one line that helps, and every file as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from exact_vae.__main__ import main
from exact_vae.vae_model.files.latents import write_latent
from PIL import Image

LATENTS = (
    "expected an autoencoder, found latents, 1 x {}: give the VAE's weight file here; exact-vae decode makes pictures "
    "of latents, and vae.decode of their tensor"
)
USAGE = "the following arguments are required: "
NO_WEIGHTS = (
    "expected a folder with weights such as diffusion_pytorch_model.safetensors, found none: "
    "give the folder or file that holds them"
)
PICTURE = "expected weights, found a picture: give the VAE's weight file"
TEXT = (
    "expected a weight file (.safetensors .sft .pt .pth .ckpt .bin), found no kind of one: get the VAE as .safetensors"
)
ABSENT = "expected a weight file, found none there: check the path"
CUT = "expected a header and numbers of safetensors, found 2 bytes: the file is truncated, download it again"
UNWRITABLE = "output: expected a writable folder, got {}file: File exists; choose another folder"
LATENT_NAME = "latent: expected a file name ending in .safetensors or .latent, got 'o.xyz': change the ending"
ENDINGS = "{}: expected a name ending in .png, .jpg, .jpeg, .webp, .tif, .tiff, .npy, .safetensors, .mp4, .mov, .webm, "
DTYPES = "float32, bfloat16, float16, float64, got 'int8': nothing computes in 8 bits, a file of such weights is read "

LINES: dict[str, str] = {
    # encode
    "encode": USAGE + "IMAGE",
    "encode none.png": "image: expected a file, got none.png: no such file",
    "encode empty": "encode: expected a folder with pictures (.png, .jpg, .jpeg, .webp, .tif, .tiff, .bmp) or "
    "videos (.mp4, .mov, .m4v, .mkv, .webm, .avi), found none in empty: name another folder",
    "encode z.safetensors": "encode: expected a picture, got the latent z.safetensors: did you mean decode?",
    "encode z.safetensors -o o": "encode: expected a picture, got the latent z.safetensors: did you mean decode?",
    "encode photos/vae.safetensors": "encode: expected a picture, got the weight file photos/vae.safetensors: "
    "give a VAE with --vae photos/vae.safetensors",
    "encode text.txt": "image: expected a PNG, JPEG, WebP or TIFF image, got text.txt: convert it to one of these",
    "encode a.png -o o.xyz": LATENT_NAME,
    "encode a.png -o file/o.safetensors": UNWRITABLE,
    "encode a.png b.png -o o.safetensors": "-o: expected a folder for 2 inputs, got o.safetensors: name a folder",
    "encode photos -o o.safetensors": "-o: expected a folder for a folder of inputs, got o.safetensors: name a folder",
    "encode b.png": "b.png: output: expected no such file yet, found b.safetensors: name it with -o to replace it",
    "encode a.png --vae none.safetensors": "none.safetensors: " + ABSENT,
    "encode a.png --vae empty": "empty: " + NO_WEIGHTS,
    "encode a.png --vae text.txt": "text.txt: " + TEXT,
    "encode a.png --vae z.safetensors": "z.safetensors: " + LATENTS.format("16 x 2 x 2"),
    "encode a.png --vae b.png": "b.png: " + PICTURE,
    "encode a.png --vae cut.safetensors": "cut.safetensors: " + CUT,
    "encode a.png --shard": "unrecognized arguments: --shard; --shard is an option of decode",
    "encode a.png --format=jpg": "unrecognized arguments: --format=jpg; --format is an option of decode",
    "encode a.png --colour": "unrecognized arguments: --colour",
    "encode a.png --method slow": "method: expected one of exact, untiled, blend, got 'slow': choose one of these",
    "encode a.png --memory lots": "memory: expected an amount such as 2GiB, 800MiB or 2147483648, got 'lots': "
    "write a number and its unit",
    "encode a.png --dtype int8": f"dtype: expected one of auto, {DTYPES}in one of these",
    "encode a.png --part ema": "{bundled}: expected an autoencoder in 'ema', found the file itself to be one: "
    "leave out the part",
    "encode a.png --variant fp16": "{bundled}: expected a folder of variants, got one file: leave out the variant fp16",
    # decode
    "decode": USAGE + "LATENT",
    "decode none.safetensors": "latent: expected a file, got none.safetensors: no such file",
    "decode empty": "decode: expected a folder with latents (.safetensors, .latent), found none in empty: "
    "name another folder",
    "decode a.png": "decode: expected a latent, got the picture a.png: did you mean encode?",
    "decode a.png -o o": "decode: expected a latent, got the picture a.png: did you mean encode?",
    "decode text.txt": "latent: expected a file that encode or SaveLatent wrote, got another kind of file, text.txt: "
    "name a latent",
    "decode z4.safetensors": "z4.safetensors: latents: expected 16 channels for this VAE, got 4: "
    "use the VAE that belongs to the model",
    "decode z.safetensors -o o.xyz": ENDINGS.format("-o") + ".mkv, .apng, .gif, got 'o.xyz': change the ending",
    "decode z.safetensors -o file/o.png": UNWRITABLE,
    "decode z.safetensors z4.safetensors -o o.png": "-o: expected a folder for 2 inputs, got o.png: name a folder",
    "decode z.safetensors --format bmp": ENDINGS.format("--format") + ".mkv, .apng, .gif, got '.bmp': "
    "change the ending",
    "decode z.safetensors --size 64x64": "unrecognized arguments: --size 64x64; --size is an option of plan, sample",
    "decode z.safetensors --vae z4.safetensors": "z4.safetensors: " + LATENTS.format("4 x 2 x 2"),
    "decode z.safetensors --vae a.png": "a.png: " + PICTURE,
    "decode z.safetensors --shard": "--shard: expected -o and no --no-clobber, got another call: "
    "all processes need one output",
    # info
    "info": USAGE + "VAE_FILE",
    "info none.safetensors": "none.safetensors: " + ABSENT,
    "info empty": "empty: " + NO_WEIGHTS,
    "info a.png": "a.png: " + PICTURE,
    "info z.safetensors": "z.safetensors: " + LATENTS.format("16 x 2 x 2"),
    "info text.txt": "text.txt: " + TEXT,
    "info cut.safetensors": "cut.safetensors: " + CUT,
    "info bundled -o o.txt": "unrecognized arguments: -o o.txt; -o is an option of encode, decode, convert, sample",
    # plan
    "plan": USAGE + "--size",
    "plan --size 64": "--size: expected WIDTHxHEIGHT in pixels, got '64': write it like 4096x4096",
    "plan --size 4x4": "--size: expected at least 8 x 8, got 4x4: enlarge the image",
    "plan --size 64x64 --vae none": "none: " + ABSENT,
    "plan --size 64x64 --vae a.png": "a.png: " + PICTURE,
    "plan --size 64x64 --memory 1KiB": "64 x 64: expected a budget of at least 2.38 MiB, got 1.00 KiB: "
    "allow more memory or use a smaller image",
    "plan --size 64x64 --host-memory lots": "--host-memory: expected an amount such as 2GiB, 800MiB or 2147483648, "
    "got 'lots': write a number and its unit",
    "plan --size 64x64 a.png": "unrecognized arguments: a.png",
    # convert
    "convert": USAGE + "VAE_FILE, -o/--output, --layout",
    "convert bundled -o o.safetensors": USAGE + "--layout",
    "convert bundled -o o.safetensors --layout x": "layout: expected one of ldm, diffusers, diffusers-old, got 'x': "
    "choose one of these",
    "convert bundled -o o.xyz --layout ldm": "save: expected a name ending in .safetensors, got 'o.xyz': "
    "change the ending",
    "convert bundled -o o --layout ldm": "-o: expected a name ending in .safetensors for ldm, got o: add the ending",
    "convert none.safetensors -o o.safetensors --layout ldm": "none.safetensors: " + ABSENT,
    "convert empty -o o.safetensors --layout ldm": "empty: " + NO_WEIGHTS,
    "convert a.png -o o.safetensors --layout ldm": "a.png: " + PICTURE,
    "convert bundled -o file/o.safetensors --layout ldm": UNWRITABLE,
    "convert bundled -o file --layout diffusers": UNWRITABLE,
    "convert bundled -o o.safetensors --layout ldm --dtype int8": f"dtype: expected one of {DTYPES}in one of these",
    "convert bundled -o o.safetensors --layout ldm --memory 1GiB": "unrecognized arguments: --memory 1GiB; "
    "--memory is an option of encode, decode, plan, sample",
    # evaluate
    "evaluate": USAGE + "--images",
    "evaluate bundled": USAGE + "--images",
    "evaluate bundled --images none": "--images: expected a folder of pictures, got none: "
    "name one that holds JPEG or PNG",
    "evaluate bundled --images empty": "--images: expected a folder of pictures, got empty: "
    "name one that holds JPEG or PNG",
    "evaluate bundled --images photos --crop 5": "--crop: expected at least 32 pixels, got 5: take 512",
    "evaluate bundled --images photos --sheet o.xyz": "--sheet: expected a name ending in .png, got 'o.xyz': "
    "change the ending",
    "evaluate bundled --images photos --sheet file/o.png": UNWRITABLE,
    "evaluate none.safetensors --images photos": "none.safetensors: " + ABSENT,
    "evaluate bundled --images photos --method exact": "unrecognized arguments: --method exact; "
    "--method is an option of encode, decode",
    # sample
    "sample": "sample: expected -o FOLDER or --sheet FILE.png, got neither: say where the pictures go",
    "sample --sheet o.xyz": "--sheet: expected a name ending in .png, got 'o.xyz': change the ending",
    "sample -o file": UNWRITABLE,
    "sample -o o --size big": "--size: expected WxH in pixels, got 'big': write for example 512x768",
    "sample -o o --count 0": "--count: expected at least 1, got 0: raise it",
    "sample -o o --vae none": "none: " + ABSENT,
    "sample -o o --vae a.png": "a.png: " + PICTURE,
    "sample a.png -o o": "unrecognized arguments: a.png",
    # train
    "train": USAGE + "CONFIG, key=value",
    "train none.yaml": "config: expected a YAML file or one of distill_tiny, finetune_decoder, kl_f16, kl_f8_small, "
    "got 'none.yaml': check the name",
    "train a.png": "config: expected a YAML file, got a.png, which is no text: name another file",
    "train kl_f8_small data.train=none": "data.train: expected a folder, a picture or a .txt list, got none, "
    "where nothing is: check the path",
    "train kl_f8_small data.train=empty": "data.train: expected folders or lists with pictures, got empty: name others",
    "train kl_f8_small data.train=photos --memory": "config: expected key=value, got --memory: "
    "write for example trainer.batches=100",
    # completion, and no command at all
    "completion": USAGE + "shell",
    "completion fish": "argument shell: invalid choice: 'fish' (choose from 'bash', 'zsh')",
    "paint": "argument COMMAND: invalid choice: 'paint' (choose from 'encode', 'decode', 'plan', 'convert', "
    "'evaluate', 'sample', 'train', 'info', 'completion')",
}
"""What is typed in a folder with these files, and the last line behind "exact-vae: " or the usage's "error: "."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("newcomer")
    for name in ("empty", "photos"):
        (place / name).mkdir()
    for name in ("a.png", "b.png", "photos/p.png"):
        Image.new("RGB", (64, 64), (200, 100, 50)).save(place / name)
    for name, channels in (("z", 16), ("z4", 4), ("b", 16)):
        write_latent(torch.zeros(1, channels, 2, 2), place / f"{name}.safetensors")
    (place / "photos" / "vae.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (place / "text.txt").write_text("hello, here is a text", encoding="utf-8")
    (place / "cut.safetensors").write_bytes(b"xx")
    (place / "file").write_text("not a folder", encoding="utf-8")
    return place


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("typed", LINES)
def test_wrong_words(
    typed: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from exact_vae.vae_model.bundled import BUNDLED_FILE

    monkeypatch.chdir(folder)
    before = files_of(folder)
    try:
        code = main(typed.split())
    except SystemExit as ended:
        code = ended.code
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "")
    assert files_of(folder) == before
    right = LINES[typed].format(f"{folder.resolve()}/", bundled=BUNDLED_FILE)
    *usage, last = printed.err.splitlines()
    command = typed.partition(" ")[0]
    if last.startswith("exact-vae: ") and not usage:
        assert last == f"exact-vae: {right}"
    else:
        called = "exact-vae" if command == "paint" else f"exact-vae {command}"
        assert usage[0].startswith(f"usage: {called} [-h]")
        assert last.replace("'", "") == f"{called}: error: {right}".replace("'", "")  # versions of Python quote or not
    assert "Traceback" not in printed.err


def test_every_command_is_in_the_table() -> None:
    from exact_vae.__main__ import make_parser
    from exact_vae.commands.completion import commands_of

    assert {typed.partition(" ")[0] for typed in LINES} == {*commands_of(make_parser()), "paint"}
