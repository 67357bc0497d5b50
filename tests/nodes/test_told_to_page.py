"""What the page is told of a run, on whichever node it was: how it ran, or why it stopped."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
import torch
from exact_vae.model_management.exact_vae import make_exact
from exact_vae.tests.stub_host.host import StubHost
from exact_vae.vae_model.errors import MemoryBudgetError


def last_event(host: StubHost) -> dict[str, Any]:
    name, data, client = host.events[-1]
    assert (name, client) == ("exact_vae.progress", "client-1")
    json.dumps(data)  # it has to travel
    return data


def test_a_node_of_another_pack_gets_the_whole_report(stub_host: StubHost) -> None:
    stub_host.node_id = "17"
    made = make_exact(stub_host.make_vae())
    made.decode(torch.randn(1, 4, 6, 5))
    told = last_event(stub_host)
    assert (told["node"], told["display_node"], told["prompt_id"], told["done"]) == ("17", "17", "prompt-1", True)
    assert told["report"] == made.last_report.as_dict()
    assert told["report"]["exact"] is True
    assert told["report"]["line"].startswith("exact · resident · ")
    assert told["stopped"] is None
    assert all(data["report"] is None and not data["done"] for _, data, _ in stub_host.events[:-1])


def test_a_node_that_another_made_while_it_ran_is_shown_on_that(stub_host: StubHost) -> None:
    stub_host.node_id, stub_host.made_by = "8.0.0.2", {"8.0.0.2": "8"}
    make_exact(stub_host.make_vae()).decode(torch.randn(1, 4, 6, 5))
    assert (last_event(stub_host)["node"], last_event(stub_host)["display_node"]) == ("8.0.0.2", "8")


def test_the_vae_s_own_method_is_told_and_warned_of(stub_host: StubHost, caplog: pytest.LogCaptureFixture) -> None:
    made = make_exact(stub_host.make_vae("video"))
    with caplog.at_level(logging.INFO):
        made.decode(torch.randn(1, 16, 2, 4, 4))
    told = last_event(stub_host)
    assert (told["done"], told["report"]["exact"], told["stopped"]) == (True, False, None)
    assert told["report"]["line"].startswith("host's own method · ")
    assert told["report"]["reason"] in told["report"]["line"]
    (record,) = [record for record in caplog.records if "approximate" in record.getMessage()]
    assert record.levelno == logging.WARNING
    assert told["report"]["reason"] in record.getMessage()


def test_tiles_that_were_asked_for_are_no_warning(stub_host: StubHost, caplog: pytest.LogCaptureFixture) -> None:
    made = make_exact(stub_host.make_vae())
    with caplog.at_level(logging.INFO):
        made.decode_tiled(torch.randn(1, 4, 24, 24), tile_x=16, tile_y=16, overlap=4, method="blend")
    assert last_event(stub_host)["report"]["line"].startswith("approximate · ")
    (record,) = [record for record in caplog.records if "approximate" in record.getMessage()]
    assert record.levelno == logging.INFO


def test_a_cancelled_run_says_so(stub_host: StubHost) -> None:
    made = make_exact(stub_host.make_vae())
    stub_host.interrupt_at = 9
    with pytest.raises(stub_host.interrupt):
        made.decode(torch.randn(1, 4, 6, 5))
    told = last_event(stub_host)
    assert (told["done"], told["report"], told["stopped"]) == (True, None, "cancelled")
    assert told["fraction"] < 1


def test_a_failed_run_says_why(stub_host: StubHost) -> None:
    made = make_exact(stub_host.make_vae(), "100KiB")
    with pytest.raises(MemoryBudgetError) as raised:
        made.decode(torch.randn(1, 4, 32, 32))
    told = last_event(stub_host)
    assert (told["done"], told["report"], told["fraction"]) == (True, None, 0.0)
    assert told["stopped"] == str(raised.value)
    assert "\n" not in told["stopped"]
