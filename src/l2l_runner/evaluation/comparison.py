"""The comparison of an optimizer with tuned baselines: tune, run all on the same problems, write it down."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

from tqdm import tqdm

from l2l_runner import distributed
from l2l_runner.evaluation.curves import PICTURED, Comparison, Curves, run, summary_csv, summary_table, tune
from l2l_runner.optimizees import Optimizee
from l2l_runner.optimizers import HandDesigned, LearnedRule
from l2l_runner.plots import plotting
from l2l_runner.runs.checkpoint import write_atomically
from l2l_runner.runs.folder import RunFolder
from l2l_runner.runtime import Runtime
from l2l_runner.schema import Evaluation
from l2l_runner.stopping import raise_if_stopped

log = logging.getLogger(__name__)


def tuned_baselines(
    evaluation: Evaluation, optimizee: Optimizee, seed: int, steps: int, score: str, runtime: Runtime
) -> dict[str, HandDesigned]:
    """The baselines at their best learning rates on the validation problems.

    One that diverges at every rate keeps its lowest score's rate and will be shown as diverged.
    """
    problems = evaluation.tune.problems or optimizee.validation_problems
    seeds = optimizee.seeds(seed, "validation", 0, problems)
    tuned: dict[str, HandDesigned] = {}
    with tqdm(desc="tuning baselines", unit="run", leave=False, disable=distributed.bar_disabled()) as bar:
        for name, baseline in evaluation.baselines.items():

            def score_of(candidate: HandDesigned, name: str = name) -> float:
                bar.set_postfix_str(f"{name} lr={candidate.lr:.3g}")
                bar.update()
                return run(candidate, optimizee, seeds, steps, runtime, evaluation.chunk, raise_if_stopped).score(score)

            tuned[name], tried = tune(baseline, score_of, evaluation.tune)
            if tried and not math.isfinite(dict(tried)[tuned[name].lr]):
                log.warning("%s diverges at every learning rate that was tried.", name)
            if tried and tuned[name].lr in (tried[0][0], tried[-1][0]):
                log.warning(
                    "The best learning rate of %s, %.3g, lies at the end of the range that was tried: widen "
                    "evaluation.tune.low or evaluation.tune.high.",
                    name,
                    tuned[name].lr,
                )
    return tuned


def compare(
    learned: Mapping[str, LearnedRule],
    baselines: Mapping[str, HandDesigned],
    optimizee: Optimizee,
    seed: int,
    problems: int,
    steps: int,
    runtime: Runtime,
    chunk: int,
) -> Comparison:
    """All of them on the same problems of the held-out test stream."""
    seeds = optimizee.seeds(seed, "test", 0, problems)
    curves: dict[str, Curves] = {}
    own = len(seeds[distributed.shard(problems)])
    per_run = steps * math.ceil(own / max(1, chunk // optimizee.layout().size))
    total = per_run * (len(learned) + len(baselines))
    with tqdm(total=total, desc="comparing", unit="step", leave=False, disable=distributed.bar_disabled()) as bar:
        for name, optimizer in {**learned, **baselines}.items():
            bar.set_postfix_str(name)

            def on_step() -> None:
                bar.update()
                raise_if_stopped()

            curves[name] = run(optimizer, optimizee, seeds, steps, runtime, chunk, on_step)
    rates = dict.fromkeys(learned) | {name: baseline.lr for name, baseline in baselines.items()}
    pictured = any(one.pictures is not None for one in curves.values())
    sources = optimizee.sample(seeds[:PICTURED], runtime).sources() if pictured else {}
    shown = {name: picture.cpu() for name, picture in sources.items()}
    return Comparison(optimizee.name, curves, rates, shown, optimizee.gain)


def write_comparison(folder: RunFolder, comparison: Comparison) -> str:
    """comparison.json, .csv and .png, and pictures.png where there are any; the table and the paths, to be printed."""
    summary = comparison.summary()
    paths = [folder.write_json("comparison.json", summary)]
    paths.append(folder.path / "comparison.csv")
    write_atomically(paths[1], summary_csv(summary).encode())
    paths.append(folder.draw(plotting.comparison, "comparison.png", summary))
    reached = {name: curves.pictures for name, curves in comparison.curves.items() if curves.pictures is not None}
    if reached:
        losses = {name: comparison.curves[name].finals for name in reached}
        shown = (comparison.optimizee, comparison.sources, reached, losses, comparison.gain)
        paths.append(folder.draw(plotting.pictures, "pictures.png", *shown))
    return summary_table(summary) + "\n" + "\n".join(str(path) for path in paths)
