"""`ovs doctor`: what works on this machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from .options import MODEL, MODEL_DIR

if TYPE_CHECKING:
    from ..doctor import Check

DEVICE = typer.Option(None, "--device", help="Look at this device only; the status is 1 if it does not work.")
AS_JSON = typer.Option(False, "--json", help="Print JSON.")
MARKS = {"ok": "ok", "warning": "!!", "failure": "XX", "absent": "--"}


def register(app: typer.Typer) -> None:
    """Add `ovs doctor` to `app`."""
    app.command("doctor", epilog="Example: ovs doctor --device gpu --model SAM-tiny")(doctor)


def doctor(device: str = DEVICE, model: str = MODEL, model_dir: str = MODEL_DIR, as_json: bool = AS_JSON) -> int:
    """Say what is installed, which devices really work, and whether the models are whole.

    Each device is tried with a tiny model, in a process of its own. With --model, that model is run on a sample image
    and the graph nodes are counted by the provider that took them. The status is 1 if something is broken.
    """
    from ..doctor import as_facts, device_check, examine, model_check

    checks = examine() if device is None else [device_check(device)]
    if (model or model_dir) and all(check.state != "failure" for check in checks if device):
        checks += model_check(model, model_dir, device)
    if as_json:
        print(json.dumps(as_facts(checks), indent=2))
    else:
        _print(checks)
    return 1 if any(check.state == "failure" for check in checks) else 0


def _print(checks: list[Check]) -> None:
    width = max(len(check.name) for check in checks)
    topic = ""
    for check in checks:
        if check.topic != topic:
            topic = check.topic
            print(topic)
        print(f"  {MARKS[check.state]} {check.name.ljust(width)}  {check.text}")
        if check.cure:
            print(f"     {' ' * width}  {check.cure}")
