"""Leaving a group of processes: who is done waits for those that still read."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import torch.distributed as dist

logger = logging.getLogger(__name__)


def leave_together(timeout: timedelta = timedelta(minutes=10)) -> None:
    """Return when every process of the default group has come here; the first one goes last.

    A process that is through with its last message and ends closes its connections, while another may still be busy
    with that message. No message over these connections can prevent that, as one of them is always the last; so the
    processes meet at the store that brought them together. The first process may hold it, and therefore stays until
    all others have gone.

    Does nothing where there is no group. A process that never comes is waited for until `timeout`, and logged.
    """
    if not dist.is_available() or not dist.is_initialized():
        return
    store: Any = dist.distributed_c10d._get_default_store()  # pyright: ignore[reportPrivateUsage, reportUnknownMemberType]
    try:
        _meet(store, "exact_vae/done", everyone=True, timeout=timeout)
        _meet(store, "exact_vae/gone", everyone=dist.get_rank() == 0, timeout=timeout)
    except RuntimeError as error:  # the others are gone already, and so is what this would protect
        logger.warning("processes: expected %d to end together, not all came: %s", dist.get_world_size(), error)


def _meet(store: Any, name: str, *, everyone: bool, timeout: timedelta) -> None:
    """Count this process; `everyone`: and wait until all are counted. For any number of times."""
    size = dist.get_world_size()
    came = store.add(name, 1)
    meeting = f"{name}/{(came - 1) // size}"
    if came % size == 0:
        store.set(meeting, "1")
    if everyone:
        store.wait([meeting], timeout)
