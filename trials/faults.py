"""``make faults``: checks what happens when processes are killed, disks are full and graphs are hostile;
writes ``results/reliability.json``.
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console

import wasmgraph as wg
from trials.faulting import conditions, kills, limits
from trials.fuzz import ROOT, record
from wasmgraph.files import cache_dir

RESULTS = ROOT / "results" / "baseline.json"
KILLS = {"compile": 60, "fetch": 50, "fetch, downloading": 15, "history add": 40, "bench": 40}
INTERRUPTS = {"compile": 20, "fetch": 5, "bench": 10}
PARTS = ("limits", "conditions", "kills", "interrupts")
OVERSHOOT_S, OVERHEAD_MS, CHECKS_MS = 0.5, 1.0, 5.0  # goals
_PACKAGE = "rapidocr_onnxruntime-*.whl"  # of ppocr_direction


def scenes(place: Path) -> dict[str, Callable[[Path], kills.Scene]]:
    """The scenes to disturb, by name; each gets a separate folder."""
    model = wg.fetch("light_squeezenet")
    wg.fetch("ppocr_direction")
    packages = place / "packages"
    packages.mkdir()
    for package in cache_dir("packages").glob(_PACKAGE):
        shutil.copy(package, packages)
    many = place / "many.json"
    kills.write_many(RESULTS, many)
    return {
        "compile": lambda folder: kills.compiling(folder, model),
        "fetch": lambda folder: kills.fetching(folder, "ppocr_direction", packages),
        "fetch, downloading": lambda folder: kills.fetching(folder, "ppocr_direction", None),
        "history add": lambda folder: kills.remembering(folder, many),
        "bench": lambda folder: kills.benching(folder, model, RESULTS),
    }


def disturb(
    counts: dict[str, int], how: signal.Signals, place: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Kill or interrupt commands; return figures by scene, and the faults found."""
    made = scenes(place)
    figures: dict[str, Any] = {"finds": []}
    for number, (name, count) in enumerate(counts.items()):
        folder = place / f"{how.name}-{number}"
        folder.mkdir()
        done = list(kills.blows(made[name](folder), count, number, how))
        figures[name] = {"runs": count, "during_a_write": sum(blow.writing for blow in done)}
        figures["finds"] += [f"{name}: {blow.find}" for blow in done if blow.find]
        say(f"{how.name} in {name}: {figures[name]}")
    return figures


def under_conditions(say: Callable[[str], None]) -> dict[str, str]:
    """Run every condition and return what was observed; AssertionError if a check fails."""
    model = wg.fetch("light_squeezenet")
    seen = {}
    made: dict[str, Callable[[Path], str]] = {
        "disk full": lambda place: conditions.full_disk(model, RESULTS, place),
        "cache read-only": lambda place: conditions.read_only_cache(model, place),
        "clock jumps": lambda place: conditions.jumping_clock(model, place),
        "out of memory": lambda place: conditions.little_memory(model, place),
        "several processes": lambda place: conditions.crowd(model, place),
    }
    for name, condition in made.items():
        with tempfile.TemporaryDirectory() as place:
            try:
                seen[name] = condition(Path(place))
            except conditions.UnavailableError as reason:
                seen[name] = f"SKIPPED: {reason}"
        say(f"{name}: {seen[name]}")
    return seen


def hostile(quick: bool, say: Callable[[str], None]) -> tuple[dict[str, Any], list[str]]:
    """Measure the limits of untrusted graphs and their cost; return figures, and the goals that are
    missed."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        light = wg.compile(wg.fetch("light_squeezenet")).save(place / "light.wasm")
        resnet = wg.compile(wg.fetch("resnet50")).save(place / "resnet50.wasm")
        figures: dict[str, Any] = {
            "attacks": limits.overshoots(light, place, 1 if quick else 5),
            "overhead_resnet50": limits.overhead(resnet, place, 8 if quick else 100),
            "checks_resnet50_ms": limits.checking(resnet),
        }
    for name, said in figures.items():
        say(f"{name}: {said}")
    finds = [
        f"{name}: {said['worst_overshoot_s']} s beyond its limit"
        for name, said in figures["attacks"].items()
        if said.get("worst_overshoot_s", 0) > OVERSHOOT_S
    ]
    cost = figures["overhead_resnet50"]
    if max(cost["idle"]["median_ms"], cost["graph"]["low_ms"]) > OVERHEAD_MS:
        finds.append(f"a call costs {cost} more")
    if figures["checks_resnet50_ms"] > CHECKS_MS:
        finds.append(f"checks at load take {figures['checks_resnet50_ms']} ms")
    return figures, finds


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(PARTS))
@click.option("--quick", is_flag=True, help="A tenth of the runs, recorded nowhere.")
def main(parts: tuple[str, ...], quick: bool) -> None:
    """Do PARTS, or all of it: about half an hour."""
    console, finds = Console(), list[str]()
    # A shell's background job ignores Ctrl-C, and so would the commands that are to be interrupted.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def say(text: str) -> None:
        console.print(text, markup=False)

    def keep(section: str, figures: dict[str, Any]) -> None:
        if not quick:
            record(section, figures)

    for part in parts or PARTS:
        if part == "limits":
            figures, missed = hostile(quick, say)
            finds += missed
            keep("untrusted", figures)
        elif part == "conditions":
            keep("faults_conditions", under_conditions(say))
        else:
            how, counts = {"kills": (signal.SIGKILL, KILLS), "interrupts": (signal.SIGINT, INTERRUPTS)}[
                part
            ]
            with tempfile.TemporaryDirectory() as folder:
                counts = {name: max(1, count // 10) for name, count in counts.items()} if quick else counts
                figures = disturb(counts, how, Path(folder), say)
            finds += figures["finds"]
            keep(f"faults_{how.name}", figures)
    for find in finds:
        say(find)
    sys.exit(1 if finds else 0)


if __name__ == "__main__":
    main()
