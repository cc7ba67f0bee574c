"""Trackers: they show a run in TensorBoard, or in an MLflow store on this machine, while it runs.

Trackers copy what is in the run's folder and nothing else; metrics.jsonl stays the record. When a run is resumed, they
show that record anew. Nothing is shown twice or without a checkpoint, and a run without a logger can get one.
"""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
import time
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from PIL import Image

from l2l_runner import distributed
from l2l_runner.errors import StorageError, reason
from l2l_runner.fields import plain
from l2l_runner.files import jsonable
from l2l_runner.runs.folder import RunFolder, Tracker
from l2l_runner.runs.results import Summary
from l2l_runner.schema import Computed, MLflowLogger
from l2l_runner.stopping import Stopped

TRAJECTORY_FIELDS = ("run", "proportion", "arm")
"""Fields of records that identify their trajectory."""


class Scalar(NamedTuple):
    """A number to be shown.

    Attributes:
        line: the trajectory or the optimizer of the curve, in a chart of several curves; empty in a chart of one.
        tag: the chart.
        step: its position on the curve.
        value: NaN where it is not finite.
    """

    line: str
    tag: str
    step: int
    value: float


def scalars_of(record: Mapping[str, Any]) -> Iterator[Scalar]:
    """Yield all numbers of a record of metrics.jsonl, with the curve of a validation if it is the best so far."""
    event, step = str(record["event"]), int(record["step"])
    line = "/".join(f"{key}-{record[key]}" for key in TRAJECTORY_FIELDS if key in record)
    for key, value in record.items():
        if key not in ("event", "step", "curve", *TRAJECTORY_FIELDS):
            yield from (Scalar(line, tag, step, number) for tag, number in _numbers(f"{event}/{key}", value))
    if "curve" in record and record["best_step"] == step:  # curves of all validations would be too many
        for at, loss in zip(record["curve"]["steps"], record["curve"]["loss"], strict=True):
            yield Scalar(f"{event}-{step:08d}", f"{event}/curve", at, math.nan if loss is None else loss)


def scalars_of_comparison(summary: Summary) -> Iterator[Scalar]:
    """Yield the curves of a comparison, with its results at their ends."""
    for name, entry in summary.optimizers.items():
        line = f"comparison-{name}"
        for step, loss in enumerate(entry.curve):
            yield Scalar(line, "comparison/loss", step, loss)
        content = entry.to_json()
        for key in ("sum", "final", "diverged", "metrics"):
            numbers = _numbers(f"comparison/{key}", content[key])
            yield from (Scalar(line, tag, summary.steps, number) for tag, number in numbers)


def _numbers(path: str, value: Any) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a nested value with their paths; null stands for a number that was not finite."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(f"{path}/{key}", item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _numbers(f"{path}/{index}", item)
    elif not isinstance(value, str):
        yield path, math.nan if value is None else float(value)


def settings_of(composed: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return the values of a configuration by their dotted keys, without keys that do not affect the result."""
    found: dict[str, Any] = {}
    for key, value in composed.items():
        if isinstance(value, Mapping) and value:
            found |= settings_of(value, f"{path}{key}.")
        elif f"{path}{key}" != "resume":
            found[f"{path}{key}"] = value
    return found if path else {key: value for key, value in found.items() if not key.startswith("logger.")}


@contextmanager
def tracked(folder: RunFolder, config: Computed) -> Iterator[Tracker]:
    """Show what is written to a run's folder within this context, after what it holds already.

    Only the first rank shows anything.

    Raises:
        StorageError: the logger's store cannot be written.
    """
    make = TRACKERS[config.logger.name]
    if make is not None and distributed.is_first():
        folder.tracker = make(folder, config)
    status = "FAILED"
    try:
        yield folder.tracker
        status = "FINISHED"
    except (Stopped, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        folder.tracker.close(status)
        folder.tracker = Tracker()


class Shown(Tracker):
    """A tracker that turns records, comparisons and results into points."""

    def __init__(self, folder: RunFolder):
        self.folder = folder
        # The step of pictures is that of the last record, or the number of records where steps start anew.
        self.step = 0
        for record in folder.records():
            self.record(record)

    @abstractmethod
    def show(self, points: Sequence[Scalar]) -> None:
        """Show points; those of each curve are in order."""

    def record(self, record: Mapping[str, Any]) -> None:
        self.step = self.step + 1 if any(label in record for label in TRAJECTORY_FIELDS) else int(record["step"])
        self.show(list(scalars_of(record)))

    def content(self, path: Path, content: Any) -> None:
        if path.name == "comparison.json":
            self.show(list(scalars_of_comparison(Summary.from_json(content))))

    def end(self, result: Mapping[str, Any]) -> None:
        self.finish(list(scalars_of({"event": "result", "step": self.step, **jsonable(dict(result))})))

    @abstractmethod
    def finish(self, figures: Sequence[Scalar]) -> None:
        """Show the numbers of the result, and everything else that was not shown yet."""


class TensorBoard(Shown):
    """Event files in the run's folder, with a subfolder for each line of a chart of several.

    After a resumption, new files start with the mark that makes TensorBoard discard what it read from older ones.
    """

    def __init__(self, folder: RunFolder, config: Computed):
        self.path, self.settings = folder.path / "tensorboard", settings_of(plain(config))
        self.writers: dict[str, Any] = {}
        self.lines: set[Path] = set()
        self._writer("")
        super().__init__(folder)
        frames = sorted(folder.frames.glob("*.png")) if folder.records() else []
        for frame in frames:
            if int(frame.stem) <= self.step:
                self._show_picture("learning", frame, int(frame.stem))

    def _writer(self, line: str) -> Any:
        """Return the writer of a line; close those of other lines, which have ended, but not the run's own."""
        from torch.utils.tensorboard import SummaryWriter

        if line not in self.writers:
            for ended in [other for other in self.writers if other]:
                self.writers.pop(ended).close()
            path = self.path / line
            before = [int(file.name.split(".")[3]) for file in path.glob("events.out.tfevents.*")]
            if before and max(before) >= int(time.time()):
                time.sleep(1)  # files are read in the order of their names, which hold the second of their creation
            self.writers[line] = SummaryWriter(str(path), purge_step=0 if before else None, flush_secs=10)
            self.lines.add(path)
        return self.writers[line]

    def show(self, points: Sequence[Scalar]) -> None:
        for line, tag, step, value in points:
            self._writer(line).add_scalar(tag, value, step)

    def picture(self, path: Path) -> None:
        if path.suffix == ".png":
            self._show_picture(path.stem, path, self.step)

    def _show_picture(self, tag: str, path: Path, step: int) -> None:
        with Image.open(path) as picture:
            self._writer("").add_image(tag, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def saved(self) -> None:
        for writer in self.writers.values():
            writer.flush()

    def finish(self, figures: Sequence[Scalar]) -> None:
        from torch.utils.tensorboard.summary import hparams

        self.show(figures)
        plain = {key: v if isinstance(v, (bool, int, float, str)) else str(v) for key, v in self.settings.items()}
        for summary in hparams(plain, {figure.tag: figure.value for figure in figures}):  # type: ignore[no-untyped-call]
            self._writer("").file_writer.add_summary(summary)

    def close(self, status: str) -> None:
        with suppress(OSError):  # a full disk was reported when metrics.jsonl was written
            for writer in self.writers.values():
                writer.close()
        for line in {file.parent for file in self.path.rglob("events.out.tfevents.*")} - self.lines - {self.path}:
            shutil.rmtree(line, ignore_errors=True)  # a line that the resumed run no longer has


class MLflow(Shown):
    """A run in an MLflow store: parameters, metrics, pictures, results and the best checkpoint.

    Points are written when a checkpoint is saved, because MLflow cannot delete points. So it never holds points that a
    resumed run computes again.
    """

    FOLDER = "l2l_runner.folder"  # the tag that identifies a run

    def __init__(self, folder: RunFolder, config: Computed):
        logger = config.logger
        assert isinstance(logger, MLflowLogger)
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when MLflow is imported
        self.store = Path(logger.store).expanduser().absolute()
        self.points: list[Scalar] = []
        self.files: dict[Path, None] = {}
        self.known: set[tuple[str, int, str]] = set()
        with self._writing():
            self.store.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self.store / "mlflow.lock")  # SQLite allows one writer, and does not wait for long
        super().__init__(folder)
        with self._writing(), self.lock:
            self._open(logger.experiment, settings_of(plain(config)))
            self._commit()

    def _open(self, name: str, settings: Mapping[str, Any]) -> None:
        """Continue the folder's run if the store has one and the folder has records, else create a run."""
        from mlflow.entities import Param, RunTag
        from mlflow.tracking import MlflowClient

        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        self.client = MlflowClient(f"sqlite:///{self.store / 'mlflow.db'}")
        experiment = self.client.get_experiment_by_name(name)
        number = (
            self.client.create_experiment(name, (self.store / "artifacts").as_uri())
            if experiment is None
            else experiment.experiment_id
        )
        path = str(self.folder.path)
        quote = '"' if "'" in path else "'"
        found = self.client.search_runs([number], f"tags.`{self.FOLDER}` = {quote}{path}{quote}", max_results=1)
        if found and self.points:
            run = found[0]
            self.client.update_run(run.info.run_id, status="RUNNING")
        else:
            run = self.client.create_run(number, tags={self.FOLDER: path}, run_name="/".join(Path(path).parts[-2:]))
        self.run = run.info.run_id
        for key in run.data.metrics:
            history = self.client.get_metric_history(self.run, key)
            self.known |= {(key, metric.step, repr(metric.value)) for metric in history}
        given = {key: str(value)[:6000] for key, value in settings.items()}
        params = [Param(key, value) for key, value in given.items() if key not in run.data.params]
        # MLflow's parameters cannot change, so settings that a resumption changed become tags.
        tags = [RunTag(k, v) for k, v in given.items() if run.data.params.get(k, v) != v]
        for at in range(0, len(params), 100):  # the limit of a batch
            self.client.log_batch(self.run, params=params[at : at + 100])
        self.client.log_batch(self.run, tags=tags)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn errors of the store into a StorageError."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            with warnings.catch_warnings():
                # MLflow uses a feature that newer versions of SQLAlchemy deprecate.
                warnings.filterwarnings("ignore", message=".*``noload`` loader", category=DeprecationWarning)
                yield
        except (MlflowException, SQLAlchemyError, OSError) as error:
            raise StorageError(
                f"The MLflow store {self.store} could not be used ({reason(error)}): make room or permit writing "
                "there, give another folder as logger.store=FOLDER, or use logger=none."
            ) from error

    def show(self, points: Sequence[Scalar]) -> None:
        self.points += points

    def picture(self, path: Path) -> None:
        self.files[path] = None

    def content(self, path: Path, content: Any) -> None:
        super().content(path, content)
        self.files[path] = None

    def saved(self) -> None:
        with self._writing(), self.lock:
            self._commit()

    def _commit(self) -> None:
        from mlflow.entities import Metric

        now, metrics = time.time_ns() // 1_000_000, []
        for line, tag, step, value in self.points:
            key = re.sub(r"[^/\w.\- :]", "_", f"{line}/{tag}" if line else tag)
            if (key, step, repr(value)) not in self.known:
                metrics.append(Metric(key, value, now, step))
        for at in range(0, len(metrics), 1000):
            self.client.log_batch(self.run, metrics=metrics[at : at + 1000])
        for path in self.files:
            inside = path.parent.relative_to(self.folder.path)
            self.client.log_artifact(self.run, str(path), None if inside == Path() else str(inside))
        self.points, self.files = [], {}

    def finish(self, figures: Sequence[Scalar]) -> None:
        self.show(figures)
        self.saved()

    def close(self, status: str) -> None:
        with self._writing(), self.lock:
            if self.folder.best.exists():
                self.client.log_artifact(self.run, str(self.folder.best), "checkpoints")
            self.client.set_terminated(self.run, status)


TRACKERS: dict[str, Callable[[RunFolder, Computed], Tracker] | None] = {
    "none": None,
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
}
"""The trackers, by the names of the loggers."""
