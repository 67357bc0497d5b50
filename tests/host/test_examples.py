"""Every example workflow runs in the host as it is, by the conversion that the browser makes."""

from __future__ import annotations

import json

import pytest
from exact_vae.tests.host.client import Client
from exact_vae.tests.host.convert import api_form
from exact_vae.tests.host.server import ROOT

pytestmark = pytest.mark.host

EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))


@pytest.mark.parametrize("name", [path.stem for path in EXAMPLES])
def test_example_runs(client: Client, name: str) -> None:
    workflow = json.loads((ROOT / "example_workflows" / f"{name}.json").read_text())
    prompt = api_form(workflow, client.get("/object_info"))
    outcome = client.run(prompt)
    shown = [output for output in outcome.outputs.values() if "images" in output]
    assert shown, "it shows no image"
    told = {
        report["line"]: report["exact"] for output in outcome.outputs.values() for report in output.get("exact_vae", [])
    }
    # Behind Make VAE Exact run the core's own nodes, which have no output of ours but tell it at their end.
    ends = [event["report"] for event in outcome.events("exact_vae.progress") if event["done"]]
    told.update({report["line"]: report["exact"] for report in ends})
    assert told
    assert all(told.values()) or name == "exact_and_tiled", told
