"""What every fuzzed case is held to: refused in one clean line or loaded whole, in little time and memory."""

from __future__ import annotations

import contextlib
import faulthandler
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from exact_vae.model_management.host import LocalHost
from exact_vae.vae_model.checkpoint.load import LoadedModel, load_model
from exact_vae.vae_model.errors import InputError, VAEFileError
from exact_vae.vae_model.families.layout import IGNORED, SCALARS, is_counter
from exact_vae.vae_model.vae import VAE
from torch import Tensor

MOST_CPU_SECONDS = 3.0
"""A case takes some hundredths; CPU time, so that a busy machine does not count."""
HANG_SECONDS = 300
"""After that the process ends with a traceback."""
MOST_BYTES = 96 * 2**20
"""Of resident memory. The checkpoints have less than 4 MB; the rest is torch's own first use of something."""
MOST_ADDRESSES = 2**30
"""Of address space, where also counts what was asked for and never touched: threads reserve some."""
FORM = re.compile(r".+: expected .+, (got|found|missing) .+: [a-z][^:]*")
"""What was expected, what is there, what to do."""
CPU = torch.device("cpu")


@dataclass
class Tally:
    """Of one run of all tests."""

    loaded: int = 0
    refused: int = 0
    failed: int = 0
    seconds: float = 0.0
    longest: float = 0.0
    grown_bytes: int = 0

    def line(self) -> str:
        cases = self.loaded + self.refused + self.failed
        return (
            f"fuzz: {cases} cases ({self.loaded} loaded whole, {self.refused} refused), {self.failed} failures, "
            f"{self.seconds:.0f} s in all, {self.longest:.2f} s of CPU and {self.grown_bytes / 2**20:.0f} MiB at most"
        )


TALLY = Tally()


def check(source: Any, tensors: Callable[[], Iterable[Mapping[str, Tensor]]], **options: Any) -> LoadedModel | None:
    """Load what was damaged. `tensors()`: the state dicts in it, asked for only when it loads."""
    started = time.monotonic()
    outcome = "failed"
    try:
        with _watched():
            loaded = load_or_refuse(source, **options)
            if loaded is not None:
                given = list(tensors())
                assert_whole(loaded, given)
                assert_runs(loaded)
        outcome = "refused" if loaded is None else "loaded"
        return loaded
    finally:
        setattr(TALLY, outcome, getattr(TALLY, outcome) + 1)
        TALLY.seconds += time.monotonic() - started


def load_or_refuse(source: Any, **options: Any) -> LoadedModel | None:
    """The model, or None for a refusal in one line of the usual form."""
    try:
        return load_model(source, **options)
    except VAEFileError as error:
        text = str(error)
    except InputError as error:  # of what stands in `config` alone
        text = str(error)
        assert text.startswith("config: expected settings of the "), text
        assert options["config"], text
    assert text.isprintable(), text
    assert len(text) < 1500, text
    assert FORM.fullmatch(text), text
    assert "alloc" not in text.lower(), f"memory was asked for: {text}"
    return None


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """Fail a case that takes long or much memory; end the process if it never ends."""
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
    _forget_peak()
    before, cpu = _status(), time.process_time()
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
    seconds, after = time.process_time() - cpu, _status()
    grown = after["VmHWM"] - before["VmRSS"]
    TALLY.longest, TALLY.grown_bytes = max(TALLY.longest, seconds), max(TALLY.grown_bytes, grown)
    assert seconds < MOST_CPU_SECONDS
    assert grown < MOST_BYTES
    assert after["VmPeak"] - before["VmPeak"] < MOST_ADDRESSES


def _status() -> Counter[str]:
    """Memory of this process in bytes; nothing where the system has no /proc."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return Counter()
    return Counter({name: int(kib) * 1024 for name, kib in re.findall(r"^(Vm\w+):\s+(\d+) kB$", text, re.MULTILINE)})


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _tensors_in(key: str, loaded: LoadedModel) -> int:
    """How many of the model's tensors one of a file is: the layout "original" keeps three as thirds of one."""
    return 3 if ".qkv.conv." in key and loaded.layouts == ("original",) else 1


def assert_whole(loaded: LoadedModel, given: list[Mapping[str, Tensor]]) -> None:
    """Every tensor of the model is one of those that were given, bit for bit, and none that was given is left out."""
    own = {key: tensor for key, tensor in loaded.model.state_dict().items() if not is_counter(key)}
    assert all(tensor.device.type == "cpu" and tensor.is_floating_point() for tensor in own.values())
    theirs = [
        part
        for tensors in given
        for key, tensor in tensors.items()
        if not is_counter(key)
        for part in tensor.chunk(_tensors_in(key, loaded))
    ]
    missing = Counter(map(_bits, own.values())) - Counter(map(_bits, theirs))
    assert not missing
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert not loaded.model.training
    if len(given) == 1:
        names = [key.removeprefix(loaded.prefix) for key in given[0] if key.startswith(loaded.prefix)]
        known = [name for name in names if not (name.startswith(IGNORED) or name in SCALARS or is_counter(name))]
        assert sum(_tensors_in(name, loaded) for name in known) == len(own)


def _bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()  # bits: NaN equals itself


def assert_runs(loaded: LoadedModel) -> None:
    """Both halves, or the one there is, take the shapes that the configuration names."""
    loaded.model.float()
    vae = VAE(loaded, LocalHost(), device=CPU, dtype=torch.float32, output_device=CPU)
    side = 2 * vae.downscale_ratio
    if getattr(loaded.model, "decoder", None) is not None:
        image = vae.decode(torch.zeros(1, vae.latent_channels, 2, 2), method="untiled")
        assert image.shape == (1, side, side, vae.output_channels)
    if getattr(loaded.model, "encoder", None) is not None:
        z = vae.encode(torch.zeros(1, side, side, vae.input_channels), method="untiled")
        frames = (1,) * (z.ndim - 4)  # of a family whose latents have a frame axis
        assert z.shape == (1, vae.latent_channels, *frames, 2, 2)
