"""The end of a multirun: a table, a CSV, a JSON and a plot of its jobs, and an exit code that tells of failures."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

log = logging.getLogger(__name__)


def read_jobs(folder: Path) -> list[dict[str, Any]]:
    """The jobs of a sweep's folder, in order; a job without a result counts as failed.

    Each has `job`, `values` (of all overrides), `status`, `score`, `final`, `sum` and `error`.
    """
    jobs = []
    for overrides in sorted(folder.glob("*/.hydra/overrides.yaml"), key=lambda path: place(path.parents[1].name)):
        job = overrides.parents[1]
        result = job / "result.json"
        record: dict[str, Any] = {"status": "failed", "score": None, "error": "it left no result"}
        if result.exists():
            record = json.loads(result.read_text())
        values = overridden(overrides)
        jobs.append({"final": None, "sum": None, "error": None, **record, "job": job.name, "values": values})
    return jobs


def overridden(path: Path) -> dict[str, str]:
    """The keys and values of an overrides.yaml."""
    pairs = [str(item).partition("=") for item in OmegaConf.load(path)]
    return {key.lstrip("+"): value for key, _, value in pairs}


def keep_swept(jobs: Sequence[dict[str, Any]]) -> list[str]:
    """Leave of the jobs' `values` those that differ between jobs (all where none does); their keys."""
    keys = list(dict.fromkeys(key for job in jobs for key in job["values"]))
    swept = [key for key in keys if len({job["values"].get(key) for job in jobs}) > 1] or keys
    for job in jobs:
        job["values"] = {key: job["values"].get(key, "default") for key in swept}
    return swept


def place(name: str) -> tuple[int, str]:
    """What folders are sorted by: numbers as numbers, before names."""
    return (int(name), "") if name.isdigit() else (1 << 30, name)


class SweepSummary(Callback):
    """Hydra's callback that sums a sweep up once all its jobs have ended."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write sweep.csv, .json and .png, print the table; exit with 1 if a job failed."""
        from l2l_runner import plotting
        from l2l_runner.evaluation import align
        from l2l_runner.folder import RunFolder

        folder = Path(str(config.hydra.sweep.dir)).absolute()
        jobs = read_jobs(folder)
        if not jobs:
            return
        swept = keep_swept(jobs)
        rows = [["job", *swept, "final loss", "sum of losses", "status"]]
        for job in jobs:
            figures = [_figure(job[key]) for key in ("final", "sum")]
            rows.append([job["job"], *(job["values"][key] for key in swept), *figures, job["status"]])
        RunFolder(folder).write_json("sweep.json", jobs)
        with open(folder / "sweep.csv", "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            figures = ["final_mean", "final_ci95", "sum_mean", "sum_ci95", "score"]
            writer.writerow(["job", *swept, *figures, "status", "error"])
            for job in jobs:
                parts = [(job[key] or {}).get(part) for key in ("final", "sum") for part in ("mean", "ci95")]
                values = [job["values"][key] for key in swept]
                writer.writerow([job["job"], *values, *parts, job["score"], job["status"], job["error"]])
        if swept:
            plotting.sweep(folder / "sweep.png", swept, jobs)
        print("\n".join(["", *align(rows)]))
        scored = [job for job in jobs if job["score"] is not None]
        if scored:
            best = min(scored, key=lambda job: float(job["score"]))
            print("best:", ", ".join(f"{key}={value}" for key, value in best["values"].items()), f"(job {best['job']})")
        print("\n".join(str(folder / name) for name in ("sweep.csv", "sweep.json", "sweep.png")))
        failed = [job for job in jobs if job["status"] == "failed"]
        for job in failed:
            print(f"job {job['job']} failed: {job['error']}")
        if failed:
            raise SystemExit(1)


def _figure(value: dict[str, float | None] | None) -> str:
    if value is None:
        return "-"
    if value["mean"] is None:
        return "diverged"
    return f"{value['mean']:.4g}" + (f" ± {value['ci95']:.2g}" if value["ci95"] is not None else "")
