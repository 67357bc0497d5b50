"""From a workflow as the browser saves it to the form that the host runs, by the host's own list of its nodes."""

from __future__ import annotations

from typing import Any

NOTES = ("Note", "MarkdownNote")
"""Nodes that exist in the browser only."""
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def is_widget(spec: Any) -> bool:
    """Whether an input of `/object_info` has a value of its own: a menu, a number, a text or a switch."""
    kind = spec[0]
    options = spec[1] if len(spec) > 1 else {}
    return (isinstance(kind, list) or kind in WIDGETS) and not options.get("forceInput", False)


def widget_names(description: dict[str, Any]) -> list[str]:
    """Names of a node's widgets in the order of `widgets_values`; "" stands for a value of the browser alone."""
    names: list[str] = []
    for group in ("required", "optional"):
        for name, spec in description["input"].get(group, {}).items():
            if not is_widget(spec):
                continue
            names.append(name)
            options = spec[1] if len(spec) > 1 else {}
            if options.get("control_after_generate") or (spec[0] == "INT" and name in ("seed", "noise_seed")):
                names.append("")
            if options.get("image_upload"):
                names.append("")
    return names


def api_form(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """{node id: {"class_type", "inputs"}} of every node that runs."""
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt: dict[str, Any] = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES:
            continue
        names = widget_names(object_info[node["type"]])
        inputs = {name: value for name, value in zip(names, node["widgets_values"], strict=False) if name}
        for slot in node.get("inputs", []):
            if slot.get("link") is not None:
                inputs[slot["name"]] = sources[slot["link"]]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt
