"""What TensorBoard and MLflow show is read back from their own files, and is what metrics.jsonl says."""

from __future__ import annotations

import io
import math
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from l2l_runner import schema
from l2l_runner.runs.folder import RunFolder
from l2l_runner.runs.resuming import FREE_KEYS
from l2l_runner.runs.tracking import tracked
from l2l_runner.stopping import Stopped
from running import (
    EVAL,
    QUADRATIC,
    QUICK,
    TINY,
    Death,
    assert_one_sentence,
    assert_same_run,
    die_when_replacing,
    evaluate,
    read_json,
    records,
    snapshot,
    train,
)

pytestmark = pytest.mark.usefixtures("sketches")

needs_tensorboard = pytest.mark.skipif(
    find_spec("tensorboard") is None, reason="TensorBoard is not installed: pip install -e '.[tensorboard]'"
)
needs_mlflow = pytest.mark.skipif(
    not all(find_spec(name) for name in schema.MLflowLogger.needs),
    reason="MLflow or what its store needs is not installed: pip install -e '.[mlflow]'",
)

Curves = dict[tuple[str, str], list[tuple[int, float]]]
"""(line, tag) → (step, value), as they were written."""

ONLINE = ["meta=online", "optimizee=digits", "optimizee.hidden=[3]", "optimizee.minibatch=4", "optimizer=hypergradient"]
ONLINE += ["unroll=online", "unroll.steps=4", "meta.runs=2", "meta.read_every=2", "device=cpu", "device.threads=1"]
REWEIGHT = ["meta=reweight", "optimizee=imbalance", "optimizee.data=digits", "optimizee.classes=[9,4]"]
REWEIGHT += ["optimizee.images=40", "optimizee.clean=2", "optimizee.minibatch=6", "optimizee.side=16", "optimizer=sgd"]
REWEIGHT += ["unroll.steps=4", "meta.runs=1", "meta.read_every=2", "meta.proportions=[0.8,0.9]", "device=cpu"]
RUNS = {
    "meta-training": TINY,
    "imitation": [*QUICK, "meta.imitation=0.5"],
    "hand-designed": [*QUADRATIC, "optimizer=adam"],
    "online": ONLINE,
    "reweight": REWEIGHT,
}


def flat(path: str, value: Any) -> dict[str, float]:
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {tag: number for key, item in items for tag, number in flat(f"{path}/{key}", item).items()}
    return {} if isinstance(value, str) else {path: math.nan if value is None else value}


def expected(run: Path) -> Curves:
    """All that the files of a run's folder hold, to be shown."""
    curves: Curves = {}
    step = 0
    for record in records(run):
        names = [f"{name}-{record.pop(name)}" for name in ("run", "proportion", "arm") if name in record]
        event, at, curve = record.pop("event"), record.pop("step"), record.pop("curve", None)
        step = step + 1 if names else at
        if curve is not None and record["best_step"] == at:
            pairs = zip(curve["steps"], curve["loss"], strict=True)
            curves[f"validation-{at:08d}", "validation/curve"] = list(pairs)
        for tag, value in flat(event, record).items():
            curves.setdefault(("/".join(names), tag), []).append((at, value))
    if (run / "comparison.json").exists():
        compared = read_json(run / "comparison.json")
        for name, entry in compared["optimizers"].items():
            curves[f"comparison-{name}", "comparison/loss"] = list(enumerate(entry["curve"]))
            figures = {key: entry[key] for key in ("sum", "final", "diverged", "metrics")}
            for tag, value in flat("comparison", figures).items():
                curves[f"comparison-{name}", tag] = [(compared["steps"], value)]
    for tag, value in flat("result", read_json(run / "result.json")).items():
        curves["", tag] = [(step, value)]
    return curves


def assert_same_curves(found: Curves, wanted: Curves, rel: float = 0.0) -> None:
    assert wanted
    assert found.keys() == wanted.keys()
    for key, points in wanted.items():
        assert [step for step, _ in found[key]] == [step for step, _ in points], key
        values = [value for _, value in points]
        assert [value for _, value in found[key]] == pytest.approx(values, rel=rel, abs=0, nan_ok=True), key


def accumulators(run: Path) -> dict[str, Any]:
    """TensorBoard's own readers of the lines of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    root = run / "tensorboard"
    folders = {path.parent for path in root.rglob("events.*")}
    everything = {"scalars": 0, "images": 0, "tensors": 0}
    return {
        "" if folder == root else folder.relative_to(root).as_posix(): EventAccumulator(str(folder), everything)
        for folder in folders
    }


def tensorboard(run: Path) -> Curves:
    curves: Curves = {}
    for line, reader in accumulators(run).items():
        reader.Reload()
        for tag in reader.Tags()["scalars"]:
            curves[line, tag] = [(event.step, event.value) for event in reader.Scalars(tag)]
    return curves


def pictures(run: Path, tag: str) -> dict[int, np.ndarray]:
    """A TensorBoard picture by its steps."""
    reader = accumulators(run)[""]
    reader.Reload()
    shown = [(event.step, event.encoded_image_string) for event in reader.Images(tag)]
    assert len(dict(shown)) == len(set(shown))  # what is drawn again at a step is the same
    return {step: np.asarray(Image.open(io.BytesIO(content))) for step, content in shown}


def killed(monkeypatch: pytest.MonkeyPatch, save: int, run: Path, *arguments: str) -> None:
    """A run that dies while it saves its last checkpoint for the given time."""
    with monkeypatch.context() as dying:
        die_when_replacing(dying, "last.pt", save)
        with pytest.raises(Death):
            train(None, *arguments, f"hydra.run.dir={run}")


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


@needs_tensorboard
@pytest.mark.parametrize("kind", RUNS)
def test_tensorboard_shows_what_metrics_say(tmp_path: Path, kind: str) -> None:
    run = tmp_path / "run"
    ended = train(run, *RUNS[kind], "logger=tensorboard")
    assert ended.code == 0, ended.err
    found = tensorboard(run)
    assert_same_curves(found, expected(run), rel=1e-6)  # TensorBoard has single precision
    last = {"online": "online.png", "reweight": "reweighting.png", "hand-designed": "curve.png"}
    name = last.get(kind, "learning.png")
    shown = pictures(run, Path(name).stem)
    assert np.array_equal(shown[max(shown)], pixels(run / name))
    if kind == "meta-training":
        assert list(shown) == [0, 2, 4, 6]
        assert {"meta_step/meta_loss", "meta_step/grad_norm", "meta_step/lr"} <= {
            tag for line, tag in found if not line
        }
        assert {"validation/score", "validation/final/mean", "validation/sum/mean"} <= {tag for _, tag in found}
        assert ("comparison-lstm", "comparison/loss") in found
        (compared,) = pictures(run, "comparison").values()
        assert np.array_equal(compared, pixels(run / "comparison.png"))


@needs_tensorboard
def test_tensorboard_has_the_settings_beside_the_final_score(tmp_path: Path) -> None:
    from tensorboard.plugins.hparams import plugin_data_pb2

    run = tmp_path / "run"
    assert train(run, *QUICK, "logger=tensorboard", "seed=3").code == 0
    reader = accumulators(run)[""]
    reader.Reload()
    content = reader.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    settings = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["seed"].number_value == 3
    assert settings["optimizer.name"].string_value == "lstm"
    assert settings["meta.curriculum"].string_value == "None"
    assert not [key for key in settings if key.startswith(("logger", "resume"))]
    content = reader.summary_metadata["_hparams_/experiment"].plugin_data.content
    metrics = plugin_data_pb2.HParamsPluginData.FromString(content).experiment.metric_infos
    assert "result/score" in {metric.name.tag for metric in metrics}
    (score,) = reader.Scalars("result/score")
    assert score.value == pytest.approx(read_json(run / "result.json")["score"], rel=1e-6)


@needs_tensorboard
def test_a_killed_run_goes_on_in_the_same_tensorboard_folder_with_no_point_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    killed(monkeypatch, 3, run, *QUICK, "logger=tensorboard")  # metrics.jsonl has meta-steps that no checkpoint has
    watching = accumulators(run)[""]  # an open TensorBoard
    watching.Reload()
    assert [event.step for event in watching.Scalars("meta_step/lr")] == [1, 2, 3, 4]
    ended = train(None, f"resume={run}", "meta.steps=8")  # with another decay of the rate
    assert ended.code == 0, ended.err
    assert_same_curves(tensorboard(run), expected(run), rel=1e-6)
    assert list(pictures(run, "learning")) == [0, 2, 4, 6, 8]
    watching.Reload()
    rates = [(event.step, event.value) for event in watching.Scalars("meta_step/lr")]
    assert rates == [(record["step"], pytest.approx(record["lr"])) for record in records(run, "meta_step")]


@needs_tensorboard
@pytest.mark.parametrize("kind", ["online", "reweight"])
def test_trajectories_that_were_interrupted_have_no_point_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    run = tmp_path / "run"
    killed(monkeypatch, 4, run, *RUNS[kind], "logger=tensorboard")
    assert len(records(run, "reading")) > 4
    ended = train(None, f"resume={run}")
    assert ended.code == 0, ended.err
    assert_same_curves(tensorboard(run), expected(run), rel=1e-6)


@needs_tensorboard
def test_a_logger_shows_all_of_a_run_that_had_none(tmp_path: Path, quick: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(quick, run)
    assert not (run / "tensorboard").exists()
    assert train(None, f"resume={run}", "logger=tensorboard", "meta.steps=8").code == 0
    assert_same_curves(tensorboard(run), expected(run), rel=1e-6)
    shown = pictures(run, "learning")
    assert list(shown) == [0, 2, 4, 6, 8]
    assert np.array_equal(shown[2], pixels(run / "frames" / "00000002.png"))


@needs_tensorboard
def test_a_run_computes_the_same_whatever_shows_it(tmp_path: Path, sketched: Path) -> None:
    assert train(tmp_path / "run", *TINY, "logger=tensorboard").code == 0
    assert_same_run(tmp_path / "run", sketched)
    assert "logger" in FREE_KEYS


@needs_tensorboard
def test_an_evaluation_is_shown_too(tmp_path: Path) -> None:
    run = tmp_path / "eval"
    ended = evaluate(
        run, "checkpoint=quadratic", "problems=4", "steps=5", *EVAL, "tune.problems=4", "logger=tensorboard"
    )
    assert ended.code == 0, ended.err
    (run / "metrics.jsonl").touch()
    assert_same_curves(tensorboard(run), expected(run), rel=1e-6)
    (shown,) = pictures(run, "comparison").values()
    assert np.array_equal(shown, pixels(run / "comparison.png"))


# MLflow. Making a store takes seconds, so that there is one for all tests, as there is for all runs.


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("a store's") / "mlflow"


@pytest.fixture
def client(store: Path) -> Iterator[Any]:
    from mlflow.tracking import MlflowClient

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*``noload`` loader", category=DeprecationWarning)
        yield MlflowClient(f"sqlite:///{store / 'mlflow.db'}")


def runs_of(client: Any, run: Path) -> list[Any]:
    """MLflow's runs of a folder, the newest first."""
    (experiment,) = [one for one in client.search_experiments() if one.name == "trials"]
    found = client.search_runs([experiment.experiment_id])
    return [one for one in found if one.data.tags["l2l_runner.folder"] == str(run)]


def mlflow(client: Any, run: Path) -> Curves:
    """The metrics of a folder's only run, which has ended."""
    (found,) = runs_of(client, run)
    assert found.info.status == "FINISHED"
    curves: Curves = {}
    for key in found.data.metrics:
        history = sorted(client.get_metric_history(found.info.run_id, key), key=lambda metric: metric.step)
        curves["", key] = [(metric.step, metric.value) for metric in history]
    return curves


def joined(curves: Curves) -> Curves:
    return {("", f"{line}/{tag}" if line else tag): points for (line, tag), points in curves.items()}


def artifacts(client: Any, run: Path) -> dict[str, bytes]:
    (found,) = runs_of(client, run)
    assert found.info.artifact_uri.startswith("file://")
    return snapshot(Path(unquote(urlparse(found.info.artifact_uri).path)))


@needs_mlflow
@pytest.mark.parametrize("kind", ["meta-training", "online", "hand-designed"])
def test_mlflow_holds_what_metrics_say(tmp_path: Path, store: Path, client: Any, kind: str) -> None:
    run = tmp_path / "run"
    ended = train(run, *RUNS[kind], "logger=mlflow", f"logger.store={store}", "logger.experiment=trials")
    assert ended.code == 0, ended.err
    assert_same_curves(mlflow(client, run), joined(expected(run)))
    (found,) = runs_of(client, run)
    config = read_json_config(run)
    assert found.data.params["optimizer.name"] == config["optimizer"]["name"]
    assert found.data.params["unroll.steps"] == str(config["unroll"]["steps"])
    assert not [key for key in found.data.params if key.startswith(("logger", "resume"))]
    kept, files = artifacts(client, run), snapshot(run)
    wanted = {name for name in files if name.endswith((".png", ".gif", "best.pt")) and not name.startswith("frames")}
    wanted |= {name for name in files if name.endswith(".json")} - {"result.json"}
    assert kept == {name: files[name] for name in wanted}


def read_json_config(run: Path) -> dict[str, Any]:
    config = OmegaConf.to_container(OmegaConf.load(run / ".hydra" / "config.yaml"), resolve=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


@needs_mlflow
def test_a_killed_run_goes_on_in_the_same_mlflow_run_with_no_point_twice(
    tmp_path: Path, store: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "it's a run"
    arguments = ["logger=mlflow", f"logger.store={store}", "logger.experiment=trials"]
    killed(monkeypatch, 3, run, *QUICK, *arguments)
    (before,) = runs_of(client, run)
    assert before.info.status == "RUNNING"  # nobody was left to tell
    assert [m.step for m in client.get_metric_history(before.info.run_id, "meta_step/lr")] == [1, 2]
    ended = train(None, f"resume={run}", "meta.steps=8")
    assert ended.code == 0, ended.err
    assert_same_curves(mlflow(client, run), joined(expected(run)))
    (after,) = runs_of(client, run)
    assert after.info.run_id == before.info.run_id
    assert after.data.params["meta.steps"] == "6"
    assert after.data.tags["meta.steps"] == "8"
    assert train(None, f"resume={run}").code == 0  # nothing is left to be done
    assert_same_curves(mlflow(client, run), joined(expected(run)))
    ended = train(None, f"resume={run}", "logger=none")  # which has no logger.store
    assert ended.code == 0, ended.err


@needs_mlflow
def test_mlflow_tells_nobody_that_it_is_used(tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from l2l_runner import schema
from l2l_runner.runs import tracking
from l2l_runner.runs.folder import RunFolder
logger = schema.MLflowLogger(name="mlflow", store={str(tmp_path / "store")!r}, experiment="trials")
device, data = schema.Device(name="cpu", dtype="float32", threads=1), schema.Data(root="data", download=False)
config = schema.Computed(device=device, kernel="torch", data=data, logger=logger)
with tracking.tracked(RunFolder(Path({str(tmp_path)!r})), config):
    from mlflow.telemetry import get_telemetry_client
    print(get_telemetry_client())
"""
    plain = {key: value for key, value in os.environ.items() if key in ("PATH", "PYTHONPATH", "HOME")}  # no CI, no test
    ended = subprocess.run([sys.executable, "-c", script], env=plain, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["None"]


@needs_mlflow
@pytest.mark.parametrize(
    ("error", "status"), [(Stopped("by Ctrl-C", 130), "KILLED"), (ValueError("a bug"), "FAILED")], ids=str
)
def test_mlflow_tells_how_a_run_has_ended(
    tmp_path: Path, store: Path, client: Any, error: Exception, status: str
) -> None:
    folder = RunFolder(tmp_path)
    logger = schema.MLflowLogger(name="mlflow", store=str(store), experiment="trials")
    device, data = schema.Device(name="cpu", dtype="float32", threads=1), schema.Data(root="data", download=False)
    config = schema.Computed(device=device, kernel="torch", data=data, logger=logger)

    def run() -> None:
        with tracked(folder, config):
            folder.log({"event": "step", "step": 0, "loss": 1.0})
            raise error

    with pytest.raises(type(error)):
        run()
    (found,) = runs_of(client, tmp_path)
    assert found.info.status == status
    assert found.data.params["device.threads"] == "1"
    assert found.data.metrics == {}  # no checkpoint knows of it


@needs_mlflow
def test_an_evaluation_is_kept_in_mlflow_too(tmp_path: Path, store: Path, client: Any) -> None:
    run = tmp_path / "eval"
    few = ["problems=4", "steps=5", *EVAL, "tune.problems=4"]
    logger = ["logger=mlflow", f"logger.store={store}", "logger.experiment=trials"]
    assert evaluate(run, "checkpoint=quadratic", *few, *logger).code == 0
    (run / "metrics.jsonl").touch()
    assert_same_curves(mlflow(client, run), joined(expected(run)))
    assert set(artifacts(client, run)) == {"comparison.json", "comparison.png"}


@needs_mlflow
def test_a_store_that_cannot_be_used_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = train(tmp_path / "run", *QUICK, "logger=mlflow", f"logger.store={tmp_path / 'file'}")
    assert_one_sentence(ended, "MLflow store", "logger.store=FOLDER", "logger=none")
    assert_one_sentence(train(tmp_path / "other", *QUICK, "logger=mlflow", "logger.store=''"), "logger.store is ''")


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_package_that_is_missing_is_named_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: Path, name: str
) -> None:
    monkeypatch.setattr(schema, "find_spec", lambda package: None)
    ended = train(tmp_path / "run", *QUICK, f"logger={name}")
    assert_one_sentence(ended, f"logger={name} needs {name}", f"pip install 'l2l_runner[{name}]'", "logger=none")
    assert_one_sentence(evaluate(tmp_path / "eval", "checkpoint=quadratic", f"logger={name}"), f"needs {name}")
    run = tmp_path / "copy"
    shutil.copytree(quick, run)
    assert_one_sentence(train(None, f"resume={run}", f"logger={name}"), f"needs {name}")
    assert snapshot(run) == snapshot(quick) | {"train.log": (run / "train.log").read_bytes()}
