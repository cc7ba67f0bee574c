"""The output of the bench: bench.md, bench.json and bench.png."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks import problems
from benchmarks.workers import VARIANTS

# Okabe & Ito 2008: safe for colour-blind readers. Markers and lines distinguish variants without colour.
STYLES: dict[str, dict[str, Any]] = {
    "replay-cpp": {"color": "#D55E00", "marker": "o", "linestyle": "-"},
    "replay-torch": {"color": "#E69F00", "marker": "s", "linestyle": "-"},
    "graph": {"color": "#CC79A7", "marker": "^", "linestyle": "-"},
    "eager": {"color": "#0072B2", "marker": "D", "linestyle": "--"},
    "jax": {"color": "#009E73", "marker": "v", "linestyle": "--"},
    "jax-columns": {"color": "#009E73", "marker": "<", "linestyle": ":"},
    "seed": {"color": "#000000", "marker": "X", "linestyle": "--"},
    "forward-cpp": {"color": "#D55E00", "marker": "o", "linestyle": ":", "markerfacecolor": "white"},
    "forward-torch": {"color": "#E69F00", "marker": "s", "linestyle": ":", "markerfacecolor": "white"},
    "optimizee": {"color": "#999999", "marker": ".", "linestyle": ":"},
}
BOUND = "the bound: operations at peak"


def median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def threads(number: int) -> str:
    return f"{number} thread{'s' if number > 1 else ''}"


def figures(value: float) -> str:
    """Format a number with three figures and no exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


class Table:
    """The measurements of a run, by variant, size, unroll and threads."""

    def __init__(self, content: Mapping[str, Any]):
        self.content = content
        self.cells = {(m["variant"], m["coordinates"], m["steps"], m["threads"]): m for m in content["measurements"]}
        self.variants = list(dict.fromkeys(m["variant"] for m in content["measurements"]))
        self.shapes = list(dict.fromkeys((m["coordinates"], m["steps"]) for m in content["measurements"]))
        self.threads = sorted({m["threads"] for m in content["measurements"]})

    def seconds(self, variant: str, coordinates: int, steps: int, threads: int) -> float | None:
        found = self.cells.get((variant, coordinates, steps, threads))
        return None if found is None else found["median"]

    def times_faster(self, variant: str, than: str, coordinates: int, steps: int, threads: int) -> float | None:
        if not VARIANTS[variant].backward:  # a variant that does only part of the work
            return None
        mine, theirs = (self.seconds(name, coordinates, steps, threads) for name in (variant, than))
        return theirs / mine if mine and theirs else None

    def bound(self, coordinates: int, steps: int, threads: int, backward: bool = True) -> float | None:
        """Return the seconds that the floating-point operations take at the machine's peak."""
        gflops = max(self.content["gflops"].get(str(threads), {}).values(), default=None)
        return None if gflops is None else problems.flops(coordinates, steps, backward=backward) / (gflops * 1e9)

    def times_bound(self, variant: str, coordinates: int, steps: int, threads: int) -> float | None:
        if variant == "optimizee":
            return None
        bound = self.bound(coordinates, steps, threads, VARIANTS[variant].backward)
        mine = self.seconds(variant, coordinates, steps, threads)
        return mine / bound if mine and bound else None

    def megabytes(self, variant: str, coordinates: int, steps: int, threads: int) -> float | None:
        """Return the peak memory of a window above the optimizee's, or the optimizee's own."""
        found = self.cells.get((variant, coordinates, steps, threads), {}).get("memory")
        alone = self.cells.get(("optimizee", coordinates, steps, threads), {}).get("memory")
        if found is None or variant == "optimizee" or alone is None:
            return None if found is None or variant != "optimizee" else found / 1e6
        return max(0, found - alone) / 1e6


def spread(samples: Sequence[float]) -> str:
    low, high = figures(1e3 * min(samples)), figures(1e3 * max(samples))
    return f"{low}–{high}" if len(samples) > 1 else "once"


def markdown(content: Mapping[str, Any]) -> str:
    """Return the content of bench.md."""
    table = Table(content)
    machine, versions = content["machine"], content["versions"]
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = ["# The cost of a meta-training window", ""]
    lines += [f"{machine['processor']}, {machine['cores']} cores, {machine['system']}; {named}; "]
    lines[-1] += f"{machine['compiler'] or 'no C++ compiler'}; {content['begun'][:16].replace('T', ' ')} UTC."
    for number, measured in content["gflops"].items():
        kinds = ", ".join(f"{kind} {gflops:.0f}" for kind, gflops in measured.items())
        lines += ["", f"Peak with {threads(int(number))}, GFLOP/s: {kinds}; the bound uses the best."]
    if content["interrupted"]:
        lines += ["", "**Interrupted: some measurements are missing.**"]
    lines += ["", crowd(content)]
    slashes = " / ".join(threads(number) for number in table.threads)
    lines += [
        "",
        f"A window is an unroll of so many steps, its meta-gradient and an Adam step. Medians for {slashes}.",
    ]
    lines += ["Faster: time of eager PyTorch, JAX (one row per coordinate) or the seed's way over the variant's."]
    lines += ["Bound: time over that of the LSTM's operations at the peak. MB: peak above the optimizee's own."]
    for coordinates, steps in table.shapes:
        lines += ["", f"## {coordinates:,} coordinates ({problems.kind(coordinates)}), {steps} steps", ""]
        lines += rows(table, coordinates, steps)
    return "\n".join(lines) + "\n"


def crowd(content: Mapping[str, Any]) -> str:
    """Describe the load from other processes, on which the accuracy of the measurements depends."""
    others = [value for m in content["measurements"] for value in m["others"]]
    if not others:
        return "The load from other processes is unknown."
    mean, crowded = statistics.mean(others), sum(value > 0.25 for value in others)
    text = f"Other processes kept {mean:.2f} cores busy on average, over 0.25 in {crowded} of {len(others)} samples."
    waiting = "all spun as briefly as ours" if content["settings"]["brief_peers"] else "peers had their defaults"
    return f"{text} Threads: {waiting}."


def rows(table: Table, coordinates: int, steps: int) -> list[str]:
    """Return the table of one size and unroll."""
    columns: dict[str, Callable[..., float | None]] = {
        "faster than eager": lambda name, *cell: table.times_faster(name, "eager", *cell),
        "than JAX": lambda name, *cell: table.times_faster(name, "jax", *cell),
        "than the seed's": lambda name, *cell: table.times_faster(name, "seed", *cell),
        "× bound": table.times_bound,
        "MB": table.megabytes,
    }
    out = ["| variant | ms | range | " + " | ".join(columns) + " |", "|---" * (len(columns) + 3) + "|"]
    notes: dict[str, list[str]] = {}
    for name in table.variants:
        cells = [(coordinates, steps, number) for number in table.threads]
        found = [m for cell in cells if (m := table.cells.get((name, *cell))) is not None]
        for m in found:
            for note in filter(None, (m["skipped"], m["note"])):
                notes.setdefault(f"{VARIANTS[name].label}: {note}", []).append(threads(m["threads"]))
        if not any(m["samples"] for m in found):
            continue
        spreads = " / ".join(spread(m["samples"]) if m["samples"] else "–" for m in found)
        values = [joined([table.seconds(name, *cell) for cell in cells], 1e3), spreads]
        values += [joined([column(name, *cell) for cell in cells]) for column in columns.values()]
        out.append(f"| {VARIANTS[name].label} | " + " | ".join(values) + " |")
    bounds = [table.bound(coordinates, steps, number) for number in table.threads]
    out.append(f"| the bound | {joined(bounds, 1e3)} |" + " |" * (len(columns) + 1))
    if notes:
        measured = {m["threads"] for m in table.content["measurements"]}
        out.append("")
        for note, which in notes.items():
            out.append(f"- {note}" + (f" ({', '.join(which)})" if len(set(which)) < len(measured) else ""))
    return out


def joined(values: Sequence[float | None], factor: float = 1.0) -> str:
    if all(value is None for value in values):
        return "–"
    return " / ".join("–" if value is None else figures(value * factor) for value in values)


def picture(path: Path, content: Mapping[str, Any]) -> None:
    """Draw bench.png: cost against coordinates (left) and unroll (right), one row for each number of threads."""
    table = Table(content)
    sizes, unrolls = (sorted({shape[axis] for shape in table.shapes}) for axis in (0, 1))
    if not table.shapes:
        return
    unroll = unrolls[0]
    size = problems.MLP if problems.MLP in sizes else sizes[0]
    figure = Figure(figsize=(11.5, 3.9 * len(table.threads)), layout="constrained")
    grid = figure.subplots(len(table.threads), 2, squeeze=False, sharey=True)
    for number, (left, right) in zip(table.threads, grid, strict=True):
        title = f"windows of {unroll} steps, {threads(number)}"
        draw(left, table, [(n, unroll, number) for n in sizes], sizes, "coordinates", title)
        title = f"{size:,} coordinates, {threads(number)}"
        draw(right, table, [(size, n, number) for n in unrolls], unrolls, "steps of a window", title)
    handles: dict[str, Any] = {}
    for axes in grid.flat:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    labels = sorted(handles, key=[*(VARIANTS[name].label for name in table.variants), BOUND].index)
    figure.legend([handles[label] for label in labels], labels, loc="outside right center", frameon=False, fontsize=9)
    machine = content["machine"]
    figure.suptitle(f"Cost of a meta-training window, {machine['processor']}, {machine['cores']} cores", fontsize=11)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=130)


def draw(
    axes: Axes, table: Table, cells: Sequence[tuple[int, int, int]], ticks: Sequence[int], xlabel: str, title: str
) -> None:
    """Draw lines of ms per window; a variant measured only once along the axis is a single marker."""
    for name in reversed(table.variants):  # the first is drawn last, on top
        points = [(x, 1e3 * y) for x, cell in zip(ticks, cells, strict=True) if (y := table.seconds(name, *cell))]
        if points:
            axes.plot(*zip(*points, strict=True), label=VARIANTS[name].label, markersize=6, **STYLES[name])
    bounds = [(x, 1e3 * y) for x, cell in zip(ticks, cells, strict=True) if (y := table.bound(*cell))]
    if bounds:
        axes.plot(*zip(*bounds, strict=True), color="black", linewidth=3, alpha=0.25, label=BOUND)
    axes.set(xscale="log", yscale="log", xlabel=xlabel, ylabel="ms per window")
    axes.set_title(title, fontsize=10, loc="left")
    axes.yaxis.set_tick_params(labelleft=True)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)


def write(folder: Path, content: Mapping[str, Any]) -> str:
    """Write all three files, and return the text to print at the end."""
    text = markdown(content)
    (folder / "bench.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / "bench.md").write_text(text)
    picture(folder / "bench.png", content)
    return f"{text}\n{folder / 'bench.md'}\n{folder / 'bench.json'}\n{folder / 'bench.png'}"
