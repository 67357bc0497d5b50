#!/usr/bin/env python3
"""Start here: `python3 run.py demo` or `python3 run.py test`. Needs Python and nothing else.

The first start makes the environment `.venv` beside this file and installs into it; later starts find it ready.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMP = VENV / "exact-vae-stamp.json"
PYTHON = str(VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
INSIDE = Path(sys.prefix).resolve() == VENV.resolve()  # Whether that environment's own Python runs this file.
PYTHONS = ((3, 10), (3, 14))  # The oldest that will do, and the newest that this PyTorch has wheels for.
OLDEST_TORCH = (2, 4)
DEFAULT_TORCH = "torch==2.13.0" if sys.version_info[:2] <= PYTHONS[1] else "torch"
# What is downloaded, roughly: pip itself is quiet.
SIZES = {DEFAULT_TORCH: "200 MB, with CUDA 3 GB", "demo": "75 MB", "dev": "200 MB", "bench": "50 MB"}
USAGE = f"""usage: python3 run.py demo [arguments of the demo]
       python3 run.py test [arguments of pytest]
       python3 run.py bench [--quick] [--device cpu|cuda] [--sizes 512,1024] [more: bench --help]

  --torch "<what pip shall install>"   choose the build of PyTorch, once; later starts keep it. For example
                                       --torch "torch --index-url <address of PyTorch's CPU wheels>"
Without it, a PyTorch that this Python already has is used, else {DEFAULT_TORCH} is installed; on Linux with an
x86-64 processor that build may bring several GB of CUDA libraries, which the CPU wheels do not."""

# Asked of the environment's Python; nothing heavy is imported. `ours` is empty if exact_vae is another copy, or absent.
PROBE = """
import importlib.metadata as metadata, importlib.util as util, json, os, sys, sysconfig
spec = util.find_spec("exact_vae")
ours = spec.origin if spec and os.path.realpath(spec.origin) == os.path.realpath(sys.argv[1]) else ""
torch = metadata.version("torch") if util.find_spec("torch") else ""
print(json.dumps({"torch": torch, "ours": ours, "site": sysconfig.get_path("purelib")}))
"""


class Torch(NamedTuple):
    """What to ask pip for, and the folder of an installed PyTorch to use instead of a download ('' for none)."""

    requirement: str
    found_in: str = ""


class Stamp(NamedTuple):  # What the environment was made from; written when everything in it is complete.
    pyproject: str
    python: str
    torch: Torch
    extras: list[str]


class Result(NamedTuple):
    name: str
    outcome: str
    seconds: float


def say(text: str) -> None:
    print(f"run.py: {text}", flush=True)


def stop(text: str, code: int = 1) -> NoReturn:
    print(f"run.py: {text}", file=sys.stderr, flush=True)
    sys.exit(code)


def call(command: list[str], cwd: Path | None = ROOT) -> int:
    """Run with the user's terminal; the exit code."""
    return subprocess.run(command, cwd=cwd, check=False).returncode


def capture(command: list[str]) -> tuple[int, str]:
    """Run quietly; the exit code and the last line printed. A program that cannot start or hangs has code 127."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 127, str(error)
    text = done.stdout if done.returncode == 0 else done.stderr or done.stdout
    return done.returncode, (text.strip().splitlines() or [""])[-1]


def probe() -> dict[str, str] | None:
    """What the environment's Python finds, or None if that Python does not run."""
    code, line = capture([PYTHON, "-c", PROBE, str(ROOT / "__init__.py")])
    return json.loads(line) if code == 0 else None


def parse(argv: list[str]) -> tuple[str, str | None, list[str]]:
    """Command, value of --torch or None, and everything else in its order; exits with the usage if that is unclear."""
    rest: list[str] = []
    torch = None
    words = iter(argv)
    for word in words:
        if word == "--torch" or word.startswith("--torch="):
            torch = word[8:] if word.startswith("--torch=") else next(words, "")
            if not torch.strip():
                stop(f"--torch: expected what pip shall install, got nothing\n{USAGE}", 2)
        else:
            rest.append(word)
    if rest and rest[0] in ("-h", "--help"):
        print(USAGE)
        sys.exit(0)
    if not rest or rest[0] not in COMMANDS:
        stop(f"expected one of {', '.join(COMMANDS)}, got {rest[0] if rest else 'nothing'}\n{USAGE}", 2)
    return rest[0], torch, rest[1:]


def split_requirement(text: str) -> list[str]:
    # On Windows the POSIX rules would eat the backslashes of a path.
    return [word.strip("\"'") for word in shlex.split(text, posix=False)] if os.name == "nt" else shlex.split(text)


def read_stamp() -> Stamp | None:
    try:
        content = json.loads(STAMP.read_text(encoding="utf-8"))
        return Stamp(content["pyproject"], content["python"], Torch(*content["torch"]), list(content["extras"]))
    except (OSError, ValueError, TypeError, LookupError):
        return None


def find_torch() -> Torch | None:
    """The PyTorch of the Python that runs this file, if it is new enough; nothing is imported."""
    from importlib import metadata  # Python 3.7 lacks it, and shall reach the message in `main`.

    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None or INSIDE:
        return None
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    return Torch(f"torch=={version}", str(Path(spec.origin).parents[1])) if numbers >= OLDEST_TORCH else None


def prepare(extra: str, asked: str | None) -> None:
    """Make the environment ready for the command that needs `extra`; ready already costs a fraction of a second."""
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    stamp = read_stamp()
    if asked is not None:
        torch = Torch(asked)
    else:
        torch = stamp.torch if stamp and stamp.python == python else find_torch() or Torch(DEFAULT_TORCH)
    wanted = Stamp(hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest(), python, torch, [extra])
    found = probe()
    same = stamp is not None and stamp[:3] == wanted[:3]
    if stamp and found and same and extra in stamp.extras and found["torch"] and found["ours"]:
        return
    started = time.monotonic()
    if not os.access(ROOT, os.W_OK):
        stop(f"expected a folder that can be written, got {ROOT}: copy the project to another folder")
    if not found or (stamp and stamp[1:3] != wanted[1:3]):
        make_environment(torch)
    STAMP.unlink(missing_ok=True)  # From here on an interruption must not look like a finished environment.
    install(torch, extra)
    extras = stamp.extras if stamp and found and same else []
    STAMP.write_text(json.dumps(wanted._replace(extras=sorted({extra, *extras}))._asdict()), encoding="utf-8")
    say(f"environment ready after {time.monotonic() - started:.0f} s")


def make_environment(torch: Torch) -> None:
    hint = "on Debian and Ubuntu install python3-venv, then start again"
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        stop(f"expected a Python with the modules venv and ensurepip, this one lacks them: {hint}")
    say(f"{'repairing' if VENV.exists() else 'making'} the environment {VENV}")
    # The environment's own Python must not be the one that clears it.
    maker = getattr(sys, "_base_executable", sys.executable) if INSIDE else sys.executable
    if call([maker, "-m", "venv", "--clear", *["--system-site-packages"] * bool(torch.found_in), str(VENV)]) != 0:
        stop(f"could not make {VENV}: delete that folder and start again; or {hint}")


def install(torch: Torch, extra: str) -> None:
    if capture([PYTHON, "-m", "pip", "--version"])[0] != 0 and call([PYTHON, "-m", "ensurepip", "--upgrade"]) != 0:
        stop(f"{VENV} has no pip: delete that folder and start again")
    if torch.found_in and sys.prefix != sys.base_prefix:
        # System site-packages are those of the base Python; inside another environment PyTorch is somewhere else.
        Path((probe() or {})["site"], "reused-torch.pth").write_text(torch.found_in + "\n", encoding="utf-8")
    pip = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    verb = "using" if torch.found_in else "installing"
    download = "" if torch.found_in else torch.requirement
    run_pip([*pip, *split_requirement(torch.requirement)], f"{verb} {torch.requirement}", download)
    version = (probe() or {}).get("torch")
    if not version:
        stop(f"pip finished but torch is not there: --torch must name torch, got {torch.requirement!r}")
    constraint = VENV / "torch-constraint.txt"  # Other packages depend on torch too; they must not replace this build.
    constraint.write_text(f"torch=={version}\n", encoding="utf-8")
    run_pip([*pip, "-c", str(constraint), "-e", f".[{extra}]"], f"installing this project for {extra!r}", extra)


def run_pip(command: list[str], what: str, download: str) -> None:
    say(f"{what}, a download of about {SIZES[download]}" if download in SIZES else what)
    started = time.monotonic()
    if call(command) != 0:
        stop(f"failed: {what}; pip says why above. Check the network, or choose with --torch a build for this Python")
    say(f"done: {what}, {time.monotonic() - started:.0f} s")


def demo(arguments: list[str]) -> int:
    return call([PYTHON, str(ROOT / "benchmarks" / "demo.py"), *arguments], cwd=None)  # relative paths are the user's


def bench(arguments: list[str]) -> int:
    return call([PYTHON, str(ROOT / "benchmarks" / "bench.py"), *arguments], cwd=None)


def test(arguments: list[str]) -> int:
    """Run every check even if one fails; end with a table and one line of totals."""
    ruff = [PYTHON, "-m", "ruff"]
    results = [check("ruff check", [*ruff, "check", "."]), check("ruff format", [*ruff, "format", "--check", "."])]
    results += [check("lint-imports", [PYTHON, "tests/project/rooms.py"]), check_types(), check_javascript()]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "pytest.xml"
        share = ["-n", str(min(os.cpu_count() or 1, 4)), "--dist", "worksteal"]  # processes; a later -n 0 undoes it
        results.append(check("pytest", [PYTHON, "-m", "pytest", *share, f"--junitxml={report}", *arguments]))
        passed, failed = count_tests(report, results[-1])
    print("", *(f"  {name:<12} {seconds:6.1f} s  {outcome}" for name, outcome, seconds in results), sep="\n")
    others = [result.outcome.partition(":")[0] for result in results[:-1]]
    failed += others.count("failed")
    print(f"{passed + others.count('passed')} passed, {failed} failed", flush=True)
    return int(failed > 0)


def check(name: str, command: list[str]) -> Result:
    say(name)
    started, outcome = time.monotonic(), "passed" if call(command) == 0 else "failed"
    seconds = time.monotonic() - started
    say(f"{name} {outcome} in {seconds:.1f} s")
    return Result(name, outcome, seconds)


def without(name: str, outcome: str, reason: str) -> Result:
    say(f"{name} {outcome}: {reason}")
    return Result(name, f"{outcome}: {reason}", 0.0)


def check_types() -> Result:
    """pyright fetches Node.js at its first start; where that cannot be had, only a continuous-integration run fails."""
    code, line = capture([PYTHON, "-m", "pyright", "--version"])
    if code == 0:
        return check("pyright", [PYTHON, "-m", "pyright", "--pythonpath", PYTHON])
    outcome = "failed" if os.environ.get("CI", "").lower() in ("1", "true") else "skipped"
    return without("pyright", outcome, f"could not start: {line or f'exit code {code}'}")


def check_javascript() -> Result:
    node = shutil.which("node")
    if node is None:
        return without("node --test", "skipped", "node not found")
    version = capture([node, "--version"])[1]
    if int((re.findall(r"\d+", version) or ["0"])[0]) < 18:
        return without("node --test", "skipped", f"node 18 or newer not found, only {version}")
    return check("node --test", [node, "--test", *(str(file) for file in sorted(ROOT.glob("tests/js/*.test.mjs")))])


def count_tests(report: Path, result: Result) -> tuple[int, int]:
    """Passed and failed tests, from pytest's own report; a pytest that wrote none counts as one test."""
    try:
        suite = ElementTree.parse(report).getroot()[0]
    except (OSError, LookupError, ElementTree.ParseError):
        return int(result.outcome == "passed"), int(result.outcome == "failed")
    tests, skipped, *bad = (int(suite.get(key, 0)) for key in ("tests", "skipped", "failures", "errors"))
    return max(0, tests - skipped - sum(bad)), sum(bad) or int(result.outcome == "failed")


# Command: the extra of pyproject.toml that it needs, and what runs it.
COMMANDS = {"demo": ("demo", demo), "test": ("dev", test), "bench": ("bench", bench)}


def main(argv: list[str]) -> int:
    if sys.version_info[:2] < PYTHONS[0]:
        stop("expected Python 3.10 or newer, got {}.{}: start run.py with another one".format(*sys.version_info))
    command, torch, arguments = parse(argv)
    extra, action = COMMANDS[command]
    try:
        prepare(extra, torch)
        return action(arguments)
    except KeyboardInterrupt:
        stop("interrupted; start again to continue", 130)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
