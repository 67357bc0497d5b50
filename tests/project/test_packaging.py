"""The root as a package: as the host loads it, as pip gets it, and only one file knows the host."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import exact_vae
import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
NOT_PACKAGES = {"tests", "benchmarks", "build", "dist", "js", "locales", "example_workflows"}
NODE_CLASSES = {
    "ExactVAELoader": "VAELoader",
    "ExactVAEEncode": "VAEEncode",
    "ExactVAEDecode": "VAEDecode",
    "ExactVAEEncodeTiled": "VAEEncodeTiled",
    "ExactVAEDecodeTiled": "VAEDecodeTiled",
    "ExactVAEEncodeForInpaint": "VAEEncodeForInpaint",
    "ExactVAEApply": "VAEApply",
    "ExactVAEPlan": "VAEPlan",
}

# The steps of ComfyUI's load_custom_node: the module name is the path, with every dot written as "_x_".
LOADER = """
import importlib.util, json, os, sys
host, folder, read_nodes = sys.argv[1:]
sys.path.insert(0, host)
name = folder.replace(".", "_x_")
spec = importlib.util.spec_from_file_location(name, os.path.join(folder, "__init__.py"))
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
heavy = sorted({"torch", "numpy", "PIL", "safetensors", "tqdm"} & set(sys.modules))
web = os.path.isdir(os.path.join(folder, module.WEB_DIRECTORY))
found = {"heavy": heavy, "web": web, "version": module.__version__}
if read_nodes == "yes":
    found["nodes"] = {key: value.__name__ for key, value in module.NODE_CLASS_MAPPINGS.items()}
    found["names"] = sorted(module.NODE_DISPLAY_NAME_MAPPINGS)
    found["async"] = hasattr(module, "comfy_entrypoint")
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def custom_node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout under a name that is no Python name; a link, or a copy where links are not allowed."""
    folder = tmp_path_factory.mktemp("custom_nodes") / "Any.Name-1"
    try:
        folder.symlink_to(ROOT, target_is_directory=True)
    except OSError:
        ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", "*.egg-info")
        shutil.copytree(ROOT, folder, ignore=ignored)
    return folder


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the host's own folder holds at the front of sys.path: modules called like ours, which must not be taken."""
    folder = tmp_path_factory.mktemp("host")
    for name in ("model_management", "nodes", "utils", "vae_model", "run", "ldm/__init__"):
        decoy = folder / f"{name}.py"
        decoy.parent.mkdir(exist_ok=True)
        decoy.write_text(f"raise RuntimeError('the decoy {name} was imported')\n", encoding="utf-8")
    return folder


def load_as_the_host_does(host: Path, folder: Path, read_nodes: str = "no") -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-I", "-c", LOADER, str(host), str(folder), read_nodes],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_root_imports_nothing_heavy(host: Path, custom_node: Path) -> None:
    found = load_as_the_host_does(host, custom_node)
    assert found == {"heavy": [], "web": True, "version": exact_vae.__version__}


def test_the_host_finds_the_nodes(host: Path, custom_node: Path) -> None:
    found = load_as_the_host_does(host, custom_node, read_nodes="yes")
    assert found["nodes"] == NODE_CLASSES
    assert found["names"] == sorted(NODE_CLASSES)
    assert found["async"] is False


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing_such'"):
        _ = exact_vae.nothing_such


@pytest.mark.parametrize("name", exact_vae.__all__)
def test_every_public_name_can_be_read(name: str) -> None:
    assert getattr(exact_vae, name) is not None


@pytest.mark.parametrize("name", ["InputError", "MemoryBudgetError", "VAEFileError"])
def test_errors_are_named_by_the_package_that_offers_them(name: str) -> None:
    """As the host shows them: not by the path of a file in custom_nodes."""
    error = getattr(exact_vae, name)
    assert f"{error.__module__}.{error.__qualname__}" == f"exact_vae.{name}"


def pyproject() -> dict[str, dict[str, object]]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_pip_gets_every_package() -> None:
    inits = (file.parent.relative_to(ROOT) for file in ROOT.rglob("__init__.py"))
    ours = [
        path.parts
        for path in inits
        if not path.parts or (path.parts[0] not in NOT_PACKAGES and path.parts[0][0] != ".")
    ]
    on_disk = sorted(".".join(("exact_vae", *parts)) for parts in ours)
    assert pyproject()["tool"]["setuptools"]["packages"] == on_disk  # type: ignore[index]


def test_every_folder_with_code_is_a_package() -> None:
    for top in ("commands", "model_management", "nodes", "vae_model"):
        for file in (ROOT / top).rglob("*.py"):
            assert (file.parent / "__init__.py").is_file(), f"{file.parent} lacks __init__.py"


def test_the_version_is_written_once_in_each_place_and_agrees() -> None:
    assert pyproject()["project"]["version"] == exact_vae.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \[(.+?)\]", changelog, re.MULTILINE)[1] == exact_vae.__version__  # type: ignore[index]


def imports(file: Path) -> set[str]:
    """Every imported module of a file as an absolute dotted path."""
    package = list(file.relative_to(ROOT).parts[:-1])
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(str(node.module))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            # `from . import x` may import the module x; a name that is no module does no harm here.
            found |= {".".join(["exact_vae", *base, alias.name]) for alias in node.names}
    return found


def files(*tops: str) -> list[Path]:
    return sorted(file for top in tops for file in (ROOT / top).rglob("*.py"))


def named(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def test_only_one_file_knows_the_host() -> None:
    """By import, or by a name that is handed to `import_module`, which lint-imports does not see."""
    tops = re.compile(r"(comfy\w*|execution|folder_paths|nodes|server)(\.|$)")
    found = [
        named(file)
        for file in files("commands", "model_management", "nodes", "vae_model")
        if any(tops.match(name) for name in imports(file) | imported_by_name(file))
    ]
    assert found == ["model_management/comfy_host.py"]


def imported_by_name(file: Path) -> set[str]:
    """Every text that is handed to `import_module`."""
    calls = (node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
    of_modules = (call for call in calls if ast.unparse(call.func).endswith("import_module") and call.args)
    return {str(call.args[0].value) for call in of_modules if isinstance(call.args[0], ast.Constant)}


def test_our_own_modules_are_imported_relatively() -> None:
    ours = ("exact_vae", "vae_model", "model_management", "commands")
    for file in files("commands", "model_management", "nodes", "vae_model"):
        tree = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        for node in tree:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [str(node.module)]
            assert [name for name in names if name.split(".")[0] in ours] == [], named(file)
