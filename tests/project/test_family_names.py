"""A family's name stands in its own folder, in the table and on the bundled model, and nowhere else in the product.

Where one still stands is listed here, word by word, with the reason: a word that went away must leave it, too.
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOPS = ("__init__.py", "__main__.py", "run.py", "commands", "js", "model_management", "nodes", "vae_model")
HOMES = ("vae_model/families/", "vae_model/bundled/")

FOLDERS = {init.parent.name for init in (ROOT / "vae_model" / "families").glob("*/__init__.py")} - {"ldm", "video"}
"""Whose name is the family's; ldm is what the families of images have in common, and a video as such is no family."""
NAMES = re.compile(
    r"(?i:tiny|taesd\w*|taef\d?|taehv|qwen|flux(?:\.?2)?|vqvae|vqmodel|movq|hunyuan|cogvideo)"
    r"|WanVAE|WanConfig|(?<![A-Z])VQ\b|SVD\b|LTX\b"
    r"|KLConfig|Auto[Ee]ncoderKL|[\"']kl[\"']|AE3DConv|AttnVideoBlock|Video(?:Config|Decoder|ResBlock)|[\"']video[\"']"
    rf"|(?<![A-Za-z])(?i:{'|'.join(sorted(FOLDERS))})(?![a-z])"
)
"""Names of families and of their classes and configurations."""

PUBLIC = {
    "vae_model/__init__.py": (
        "ae3dconv attnvideoblock autoencoderkl tiny videodecoder videoresblock"  # importable by these names for ever
    ),
}
READ_BY_PEOPLE = {  # help, tooltips and words that are typed
    "__main__.py": "flux flux2 qwen taesd tiny wan",
    "commands/completion.py": "taehv taesd wan",
    "nodes/decode.py": "qwen taesd wan",
    "nodes/encode.py": "qwen taesd wan",
    "commands/decode.py": "tiny",
    "model_management/loader.py": "flux flux.2 flux2 taef2 tiny",
    "nodes/loader.py": "flux.2 flux2 taesd tiny",
}
TRAINED = {  # two kinds of training, of one family each, under the names that configurations know them by
    "vae_model/training/architecture.py": '"kl" autoencoderkl klconfig',
    "vae_model/training/config.py": "autoencoderkl",
    "vae_model/training/distill.py": "autoencoderkl taesd tiny",
    "vae_model/training/fit.py": "autoencoderkl tiny",
    "vae_model/training/foreign.py": "autoencoderkl",
    "vae_model/training/key_places.py": '"kl" autoencoderkl tiny',
    "vae_model/training/kl_module.py": "autoencoderkl",
    "vae_model/training/unread.py": "tiny",
}
WRITTEN_BY_OTHERS = {  # names of files and folders as they lie on people's disks
    "model_management/vae_files.py": "tiny",
    "vae_model/files/folders.py": "movq vqmodel vqvae",
}
OPS = {"vae_model/exact/ops/tiny_block.py": "tiny"}
"""Called after the block that it is."""
ALLOWED = PUBLIC | READ_BY_PEOPLE | TRAINED | WRITTEN_BY_OTHERS | OPS


def product_files() -> list[Path]:
    kinds = {".py", ".c", ".h", ".cu", ".js"}
    there = [file for top in TOPS for file in ([ROOT / top] if (ROOT / top).is_file() else (ROOT / top).rglob("*"))]
    return [file for file in there if file.suffix in kinds and not named(file).startswith(HOMES)]


def named(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def test_no_file_of_the_product_names_a_family_of_another_room() -> None:
    files = product_files()
    assert len(files) > 150
    found = {named(file): {match[0].lower() for match in NAMES.finditer(file.read_text("utf-8"))} for file in files}
    allowed = {name: set(words.split()) for name, words in ALLOWED.items()}
    new = {name: sorted(words - allowed.get(name, set())) for name, words in found.items()}
    gone = {name: sorted(words - found.get(name, set())) for name, words in allowed.items()}
    assert {name: words for name, words in new.items() if words} == {}, "names of families where none belong"
    assert {name: words for name, words in gone.items() if words} == {}, "take these from the list: they are gone"


def test_the_folders_of_families_are_among_the_names() -> None:
    assert {"tiny", "wan"} <= FOLDERS
    assert [name for name in FOLDERS if not NAMES.search(f"a {name} file, and a {name.capitalize()}VAE")] == []
