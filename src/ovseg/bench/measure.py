"""Measure: the sides of each subject in turns (A B A B), so that a drift of the machine meets all of them."""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..device import resolve_device
from ..doctor import FAILURE, device_check
from ..errors import ConfigError, DeviceUnavailable, OvsError
from ..images import read_images
from ..model_folder import ModelFolder
from ..runtime import usable_cpus
from . import forms, machine
from .environments import PEERS, interpreter, parse_peers
from .side import Side
from .subjects import Subject, choose

OURS, BARE = "ovseg", "session"
_SETTLE = 0.25  # seconds: OpenMP's threads spin that long after work, on the cores of whoever comes next
_ALIASES = {"cuda": "gpu", "cann": "npu"}
CLOCKS = ("wall", "cpu")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What to measure, and how.

    Attributes:
        pipelines: their names; none means those of the models, or all.
        models: model folders, measured in the place of those that ship.
        archives: the Paddle archives of the same weights, one for each of the models, or none.
        image: file to measure on; None for a sample.
        devices: device strings; `cuda` and `cann` are `gpu` and `npu`.
        against: alternatives; they run on the CPU.
        environments: `NAME=PYTHON` for alternatives that need no environment of the suite.
        threads: of each side, on the CPU; 0 for as many as there are CPUs.
        rounds: turns of each side.
        seconds: of a turn by the clock, in which a call that is shorter is repeated.
        starts: times that each side is started, for the cold start; the rounds are divided among its processes.
        batches: images or prompts of a call.
        clock: `wall`, or `cpu` for processor time, which other work on the machine does not enter.
    """

    pipelines: Sequence[str] = ()
    models: Sequence[Path] = ()
    archives: Sequence[Path] = ()
    image: Path | None = None
    devices: Sequence[str] = ("cpu",)
    against: Sequence[str] = ()
    environments: Sequence[str] = ()
    threads: int = 0
    rounds: int = 7
    seconds: float = 0.2
    starts: int = 3
    batches: Sequence[int] = (1, 8)
    clock: str = "wall"


def check(plan: Plan) -> None:
    """Refuse a plan that cannot be carried out, before anything is measured.

    Raises:
        ConfigError: a pipeline, model, archive, device, alternative or number that cannot be.
        ModelError: a folder that is no model folder.
        ImageError: an image that cannot be read.
        DeviceUnavailable: a device of PaddleX's that ONNX Runtime cannot run on.
    """
    choose(plan.pipelines, plan.models)
    if plan.archives and len(plan.archives) != len(plan.models):
        raise ConfigError(
            f"There are {len(plan.archives)} archives of {len(plan.models)} models.", "Give one for each, in order."
        )
    for archive in plan.archives:
        if not (archive / "inference.yml").is_file():
            raise ConfigError(f"{archive} is no Paddle archive: it has no inference.yml.", "Name its folder.")
    if plan.image is not None and (count := len(list(read_images(plan.image)))) != 1:
        raise ConfigError(f"{plan.image} has {count} images.", "Give one image.")
    if not plan.devices:
        raise ConfigError("No device is named.", "Give some to --providers, such as cpu,cuda.")
    for device in plan.devices:
        if not resolve_device(_ALIASES.get(device, device)).named:
            raise ConfigError(f"The device {device} may be one or another.", "Name devices, such as cpu,cuda.")
    parse_peers(plan.against, plan.environments)
    if plan.archives and not any(PEERS[name].archives for name in plan.against):
        raise ConfigError(
            "Paddle archives are given, and --against names nothing that reads them.",
            "Add paddlex or paddle to it, or leave --archive out.",
        )
    if plan.against and "cpu" not in plan.devices:
        raise ConfigError(
            f"Alternatives run on the CPU, and the devices are {', '.join(plan.devices)}.",
            "Add cpu to --providers, or leave --against out.",
        )
    least = {"rounds": 1, "threads": 0, "starts": 1, "seconds": 0}
    for name, lowest in least.items():
        if not lowest <= getattr(plan, name) < math.inf:
            raise ConfigError(f"{name} is {getattr(plan, name)}.", f"Give a number of at least {lowest}.")
    if not plan.batches or min(plan.batches) < 1:
        raise ConfigError(f"The batches are {list(plan.batches)}.", "Give numbers of at least 1, such as 1,8.")
    if plan.clock not in CLOCKS:
        raise ConfigError(f"The clock {plan.clock!r} is not known.", f"Use {' or '.join(CLOCKS)}.")


def run(plan: Plan, say: Say) -> dict[str, Any]:
    """Measure what a plan names.

    Args:
        plan: what and how.
        say: told in words what is being done.

    Returns:
        What `report` and JSON take: `machine`, `plan`, `rows` (a subject on a device with a batch), `starts` (a side of
        a subject on a device) and `notes`.

    Raises:
        OvsError: a plan that cannot be carried out, a device that does not work, or one of our sides fails. An
            alternative that fails is a note.
    """
    check(plan)
    for device in plan.devices:
        if (tried := device_check(_ALIASES.get(device, device))).state == FAILURE:
            raise DeviceUnavailable(f"{tried.text.rstrip('.')}.", tried.cure)
    peers = {
        name: interpreter(name, given, say) for name, given in parse_peers(plan.against, plan.environments).items()
    }
    if any(PEERS[name].archives for name in peers) and not plan.archives:
        forms.require_export_stage()
    found: dict[str, Any] = {"machine": machine.facts(), "plan": _shown(plan), "rows": [], "starts": [], "notes": []}
    for subject, device in itertools.product(choose(plan.pipelines, plan.models), plan.devices):
        say(f"{subject.name} on {device}")
        with tempfile.TemporaryDirectory() as scratch:
            chosen = peers if device == "cpu" else {}
            _Comparison(plan, subject, device, chosen, Path(scratch), found).measure()
    return found


def _shown(plan: Plan) -> dict[str, Any]:
    """The plan without the interpreters, which are elsewhere on another machine."""
    facts = {key: value for key, value in asdict(plan).items() if key != "environments"}
    for key in ("models", "archives"):
        facts[key] = [str(path) for path in facts[key]]
    return facts | {"image": None if plan.image is None else str(plan.image)}


class _Comparison:
    """The sides of one subject on one device; what they need and give is written into `found`."""

    def __init__(
        self,
        plan: Plan,
        subject: Subject,
        device: str,
        peers: Mapping[str, Path],
        scratch: Path,
        found: dict[str, Any],
    ) -> None:
        self._plan, self._subject, self._device, self._scratch, self._found = plan, subject, device, scratch, found
        # What takes one image at a time is measured with one, whatever the batches are.
        self._batches = list(dict.fromkeys(plan.batches)) if subject.batches else [1]
        self._known = sorted({1, *self._batches})  # sides run once with one image when they start
        self._peers = dict(peers)
        self._turns: dict[int, dict[str, list[dict[str, Any]]]] = {batch: {} for batch in self._batches}
        self._starts: dict[str, list[dict[str, Any]]] = {}
        self._numbers: dict[str, float | None] = {}
        self._memory: dict[str, dict[str, float]] = {}
        self._failed: dict[str, int] = {}  # the least batch that an alternative failed with
        self._request: dict[str, Any] = {
            "subject": subject.request(self._known, plan.image),
            "device": _ALIASES.get(device, device),
            "threads": plan.threads or usable_cpus(),
        }

    def measure(self) -> None:
        """Start all sides again and again, and let each set of processes take its share of the turns.

        Where the memory of a process happens to lie makes it a tenth faster or slower as long as it lives.
        """
        for rounds in _shares(self._plan.rounds, self._plan.starts):
            with contextlib.ExitStack() as stack:
                sides = self._start_all(stack)
                for batch in sorted(self._batches):  # what fails with a large one has the turns of the small ones
                    self._take_turns(sides, batch, rounds)
        for batch in self._batches:
            self._found["rows"].append(self._row(batch))
        for name, known in self._starts.items():
            start = _start(known) | {"memory": self._memory.get(name, known[-1]["memory"])}
            self._found["starts"].append(self._where() | {"side": name} | start)

    def _start_all(self, stack: contextlib.ExitStack) -> dict[str, Side]:
        """Start a process of each side; the first of ours says what the others do."""
        sides = {OURS: stack.enter_context(self._side(OURS))}
        if not self._starts:
            ours = sides[OURS]
            self._request["settings"] = ours.settings
            self._request["runs"] = {batch: ours.record(batch, self._scratch) for batch in self._known}
        sides[BARE] = stack.enter_context(self._side(BARE))
        for name in list(self._peers):
            if (side := self._peer(name)) is not None:
                sides[name] = stack.enter_context(side)
        for name, side in sides.items():
            self._starts.setdefault(name, []).append(side.start)
            self._numbers.setdefault(name, side.found)
        return sides

    def _where(self) -> dict[str, Any]:
        return {
            "subject": self._subject.name,
            "pipeline": self._subject.is_pipeline,
            "models": [folder.name for folder in self._subject.folders.values()],
            "device": self._device,
        }

    def _side(self, name: str) -> Side:
        if name in PEERS:
            return Side(PEERS[name].title, self._peers[name], PEERS[name].side, self._request, self._scratch)
        title = {OURS: "ovseg", BARE: "ONNX Runtime"}[name]
        return Side(title, Path(sys.executable), f"{name}_side", self._request, self._scratch)

    def _peer(self, name: str) -> Side | None:
        """Start an alternative; None, and never again, where it has no counterpart or fails, which is noted."""
        try:
            if not PEERS[name].archives or self._has_archives(name):
                return self._side(name)
        except OvsError as error:
            self._note(name, error.cause)
        del self._peers[name]
        return None

    def _has_archives(self, name: str) -> bool:
        """Whether an alternative that reads Paddle archives can run the subject; they are made where they are not."""
        if not self._subject.whole:
            return False
        archives = {role: str(self._archive(folder)) for role, folder in self._subject.folders.items()}
        if name == "paddle" and set(archives) != {"model"}:
            return False  # it runs one program
        self._request["subject"]["paddle"] = archives
        return True

    def _archive(self, folder: ModelFolder) -> Path:
        given = dict(zip(self._plan.models, self._plan.archives, strict=False))
        return (given.get(folder.path) or forms.archive(folder)).absolute()

    def _note(self, name: str, text: str) -> None:
        note = f"{self._subject.name}, {PEERS[name].title}: {text}"
        if note not in self._found["notes"]:
            self._found["notes"].append(note)

    def _take_turns(self, sides: dict[str, Side], batch: int, rounds: int) -> None:
        turns = self._turns[batch]
        for _ in range(rounds):
            for name, side in list(sides.items()):
                if batch >= self._failed.get(name, math.inf):
                    continue
                try:
                    turn = side.turn(batch, self._plan.seconds, self._plan.clock)
                except OvsError as error:
                    if name not in PEERS:
                        raise
                    self._note(name, error.cause)
                    self._failed[name] = batch
                    if batch == min(self._batches):
                        del self._peers[name]  # there is nothing left to start it for
                    del sides[name]
                    continue
                turns.setdefault(name, []).append(turn)
                self._memory[name] = turn["memory"]
                if name in PEERS:
                    time.sleep(_SETTLE)

    def _row(self, batch: int) -> dict[str, Any]:
        """What a batch came to, of the sides that took all turns."""
        turns = {name: found for name, found in self._turns[batch].items() if len(found) == self._plan.rounds}
        ours = turns[OURS]
        row = self._where() | {"batch": batch, "sides": {name: _summary(found) for name, found in turns.items()}}
        row["ratios"] = {name: _ratio(ours, found) for name, found in turns.items() if name != OURS}
        row["stages"] = {
            stage: {clock: statistics.median(turn["stages"][stage][clock] for turn in ours) for clock in CLOCKS}
            for stage in ours[0]["stages"]
        }
        expected = self._numbers[OURS]
        # Sums of rounded products differ in their last digits, which moves a pixel of a mask's edge here and there.
        row["same"] = {
            name: abs(number - expected) <= 0.005 * abs(expected)
            for name, number in self._numbers.items()
            if name in row["ratios"] and number is not None and expected is not None
        }
        return row


def _shares(rounds: int, starts: int) -> list[int]:
    """Divide the rounds among the starts.

    >>> _shares(7, 3)
    [3, 2, 2]
    """
    return [rounds // starts + (number < rounds % starts) for number in range(starts)]


def _summary(turns: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Median and quartiles of the seconds of a call, by clock."""
    return {clock: spread([turn[clock] for turn in turns]) for clock in CLOCKS}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, lower and upper quartile.

    >>> spread([3.0, 1.0, 2.0])
    {'median': 2.0, 'low': 1.5, 'high': 2.5}
    """
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    return {"median": statistics.median(values), "low": low, "high": high}


def _ratio(ours: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Median over the rounds of our seconds over theirs in the same round, by clock."""
    pairs = list(zip(ours, others, strict=True))
    return {clock: statistics.median(our[clock] / other[clock] for our, other in pairs) for clock in CLOCKS}


def _start(known: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians over the fresh processes of a side."""
    found: dict[str, Any] = {
        part: {clock: statistics.median(start[part][clock] for start in known) for clock in CLOCKS}
        for part in ("cold", "imported", "loaded", "first")
    }
    device = [start["device_memory"] for start in known if "device_memory" in start]
    return found | ({"device_memory": statistics.median(device)} if device else {})
