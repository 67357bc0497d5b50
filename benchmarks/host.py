"""ComfyUI's own decode and encode against the exact nodes on the same VAE of the core, each in a process of its own.

`COMFYUI_DIR=<checkout> python benchmarks/host.py --size 1024` prints seconds of a second run and the process's peak
resident size above what it held before the first run (weights in place), and the worst difference between the two.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from case import CONFIG, Models, random_input, random_model
from others import comfyui_vae, import_comfyui

NODES = {"decode": ("ExactVAEDecode", "samples"), "encode": ("ExactVAEEncode", "pixels")}
KINDS = ("core", "exact")


def resident_bytes(field: str) -> int:
    """VmRSS or VmHWM of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{field}: expected it in /proc/self/status, found none: this needs Linux")


def run_one(kind: str, direction: str, size: int, out: Path) -> dict[str, Any]:
    """Two runs: the first is metered, the second timed."""
    device = torch.device("cpu")
    import_comfyui(device)
    vae = comfyui_vae(Models(random_model(), torch.float32, device))
    vae.process_output = lambda image: image  # unclamped, so that differences show
    f = CONFIG.factor
    x = random_input(4, size // f, size // f) if direction == "decode" else random_input(3, size, size).movedim(1, -1)
    call = getattr(vae, direction)
    if kind == "exact":
        from exact_vae import NODE_CLASS_MAPPINGS

        name, _ = NODES[direction]
        node = NODE_CLASS_MAPPINGS[name]()

        def call(x: Any) -> Any:
            result = getattr(node, direction)({"samples": x} if direction == "decode" else x, vae)["result"][0]
            return result if direction == "decode" else result["samples"]

    seconds: list[float] = []
    with torch.inference_mode():
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what loading left behind would count as free room of the run
        before = resident_bytes("VmRSS")
        for _ in range(2):
            started = time.perf_counter()
            result = call(x)
            seconds.append(time.perf_counter() - started)
    torch.save(result, out)
    return {"seconds": seconds[1], "peak_bytes": resident_bytes("VmHWM") - before}


def main() -> None:
    """The two kinds one after the other, or one of them for the process above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--directions", default="decode,encode")
    parser.add_argument("--one", nargs=3, metavar=("KIND", "DIRECTION", "FILE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        kind, direction, out = given.one
        print(json.dumps(run_one(kind, direction, given.size, Path(out))))
        return
    for direction in given.directions.split(","):
        found: dict[str, Any] = {}
        with tempfile.TemporaryDirectory() as folder:
            for kind in KINDS:
                out = Path(folder, f"{kind}.pt")
                command = [sys.executable, __file__, "--size", str(given.size), "--one", kind, direction, str(out)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found[kind] = json.loads(done.stdout.splitlines()[-1]) | {"result": torch.load(out)}
        core, ours = found["core"], found["exact"]
        span = float(core["result"].max() - core["result"].min())
        error = float((core["result"] - ours["result"]).abs().max()) / span
        for kind in KINDS:
            row = found[kind]
            print(f"{direction} {given.size} px, {kind}: {row['seconds']:.1f} s, {row['peak_bytes'] / 2**30:.2f} GiB")
        print(
            f"exact over core: {ours['seconds'] / core['seconds']:.2f} x time, "
            f"{ours['peak_bytes'] / core['peak_bytes']:.2f} x peak, worst difference {error:.1e} of the range",
            flush=True,
        )


if __name__ == "__main__":
    main()
