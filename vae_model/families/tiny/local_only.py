"""Models are written into local folders alone: what diffusers' classes take to send them elsewhere is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from ...errors import InputError


def push_to_hub(*_model_and_names: Any, **_options: Any) -> NoReturn:
    """InputError: nothing is sent from here."""
    raise InputError(
        "push_to_hub: expected a local folder, got a repository: write one by save_pretrained(folder), "
        "then upload it by huggingface_hub's upload_folder"
    )


def require_local(options: Mapping[str, Any]) -> None:
    """InputError for options of `save_pretrained` that ask for sending, or that it does not know."""
    if options.get("push_to_hub"):
        push_to_hub()
    unknown = sorted(options.keys() - {"push_to_hub"})
    if unknown:
        raise InputError(f"save_pretrained: expected names of its arguments, got {', '.join(unknown)}: leave them out")
