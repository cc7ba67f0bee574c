"""Whatever a user gets wrong becomes exit code 1 and one sentence that names it, and never a traceback."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from problems import needs_mnist
from running import EVAL, QUICK, SMALL, TINY, assert_one_sentence, best, evaluate, finish, snapshot, spawn, train

pytestmark = pytest.mark.usefixtures("sketches")

# One of each kind of error; the others are composed and parsed alone, in tests/unit.
BAD = [
    (["optimizee=quadratc"], ["optimizee=quadratc", "Did you mean quadratic?"]),
    (["optimizer.foo=1"], ["optimizer.foo"]),
    (["+optimizer.foo=1"], ["optimizer.foo", "hidden"]),
    (["~meta.lr"], ["meta.lr is missing"]),
    (["optimizee.dim=ten"], ["optimizee.dim", "'ten'", "integer"]),
    (["unroll.length=0"], ["unroll.length", "0", "≥ 1"]),
    (["meta.lr=nan"], ["meta.lr", "nan", "number"]),
    (["meta.weights=final"], ["meta.weights=final", "unroll.length=4", "unroll.steps=10"]),
    (["meta.curriculum=[4,11]"], ["meta.curriculum is [4, 11]", "unroll.steps=10"]),
    (
        ["+optimizer@evaluation.baselines.lstm=lstm"],
        ["evaluation.baselines.lstm.name", "'lstm'", "sgd, momentum, nag, rms, adam"],
    ),
    (["optimizee.dim=1,2"], ["optimizee.dim=1,2", "--multirun"]),
    (["optimizee.dim=["], ["["]),
    (["optimizee.dim=${nowhere}"], ["nowhere"]),
    (["data.root=${oc.env:NO_SUCH_VARIABLE_AT_ALL}"], ["NO_SUCH_VARIABLE_AT_ALL"]),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_a_bad_setting_is_one_sentence(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    # Small settings first: what slips through must fail the test, not train for an hour.
    assert_one_sentence(train(tmp_path / "run", *SMALL, "evaluate=false", *arguments), *words)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_an_unknown_configuration_is_one_sentence(tmp_path: Path) -> None:
    assert_one_sentence(train(None, "--config-name=none_such", *QUICK, f"hydra.run.dir={tmp_path}"), "none_such")


def test_a_process_says_so_too(tmp_path: Path) -> None:
    ended = finish(spawn(*QUICK, "optimizee.dim=ten", cwd=tmp_path))
    assert_one_sentence(ended, "optimizee.dim", "'ten'", "integer")
    assert ended.out == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["checkpoint is missing", "checkpoint="]),
        (["checkpoint=nowhere.pt"], ["nowhere.pt", "no checkpoint"]),
        (["--config-dir=.", "checkpoint=RUN", "optimizee=foo"], ["optimizee=foo", "quadratic"]),
        (["checkpoint=RUN", "optimizee.dim=ten"], ["optimizee.dim", "'ten'"]),
        (["checkpoint=RUN", "foo=3"], ["foo"]),
    ],
)
def test_a_bad_evaluation_is_one_sentence(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [argument.replace("RUN", str(reference)) for argument in arguments]
    assert_one_sentence(evaluate(tmp_path / "eval", *arguments), *words)
    assert not (tmp_path / "eval" / "comparison.json").exists()


def test_an_empty_checkpoint_is_not_the_one_that_happens_to_lie_here(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(reference / "checkpoints" / "best.pt", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert_one_sentence(evaluate(tmp_path / "eval", "checkpoint="), "checkpoint is empty")


def test_a_whole_problem_optimizer_is_refused_on_another_size(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, *QUICK, "optimizer.coordinatewise=false", "meta.steps=1").code == 0
    for arguments in (["optimizee.dim=5"], ["optimizee=rosenbrock"]):
        ended = evaluate(tmp_path / arguments[0], f"checkpoint={run}", *arguments)
        assert_one_sentence(ended, "not coordinatewise", "3 coordinates", "5" if "dim" in arguments[0] else "2")
    assert evaluate(tmp_path / "same", f"checkpoint={run}", "tune.enabled=false", *EVAL).code == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_one_sentence(reference: Path, tmp_path: Path) -> None:
    assert_one_sentence(train(tmp_path / "run", *TINY, "device=cuda"), "device=cuda", "device=cpu")
    assert_one_sentence(evaluate(tmp_path / "eval", f"checkpoint={reference}", "device=cuda"), "device=cuda")


MNIST_FILES = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]


@pytest.mark.parametrize("download", ["false", "true"])
def test_mnist_that_is_not_there_says_which_files_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, download: str
) -> None:
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])  # where nothing listens: the network is down
    settings = [*QUICK[1:], "optimizee=mnist", f"data.root={tmp_path / 'data'}", f"data.download={download}"]
    ended = train(tmp_path / "run", *settings)
    assert_one_sentence(ended, str(tmp_path / "data" / "MNIST" / "raw"), "L2L_DATA", "data.root", *MNIST_FILES, code=3)


@needs_mnist
def test_mnist_files_that_are_cut_short_are_one_sentence(tmp_path: Path) -> None:
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in MNIST_FILES:
        whole = Path(os.environ["L2L_DATA"], "MNIST", "raw", name)
        if not whole.exists():
            pytest.skip("MNIST lies here in packed files only")
        with open(whole, "rb") as file:
            (raw / name).write_bytes(file.read(5000))
    settings = [*QUICK[1:], "optimizee=mnist", f"data.root={tmp_path / 'data'}", "data.download=false"]
    assert_one_sentence(train(tmp_path / "run", *settings), str(raw), code=3)


@pytest.mark.parametrize("below", ["", "/below", "/below/further"])
def test_an_output_folder_that_cannot_be_is_one_sentence(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("kept")
    assert_one_sentence(train(Path(f"{tmp_path}/file{below}"), *QUICK), f"{tmp_path}/file", "hydra.run.dir")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_folder_without_permission_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    assert_one_sentence(train(tmp_path / "closed" / "run", *QUICK), str(tmp_path / "closed"), "hydra.run.dir")


def test_an_evaluation_in_anothers_folder_is_refused_and_loses_nothing(reference: Path) -> None:
    before = snapshot(reference)
    assert_one_sentence(evaluate(reference, f"checkpoint={reference}"), str(reference), "already belongs")
    assert snapshot(reference) == before


def test_a_refused_run_leaves_the_next_one_free_to_go(tmp_path: Path) -> None:
    # Errors must not leave anything behind in the process, such as Hydra's state or the environment.
    assert train(tmp_path / "bad", "optimizee=foo").code == 1
    before = dict(os.environ)
    assert train(tmp_path / "worse", "optimizee.dim=ten").code == 1
    assert dict(os.environ) == before
    assert train(tmp_path / "good", *QUICK, "meta.steps=0").code == 0
    assert best(tmp_path / "good")["progress"]["step"] == 0


def test_keys_that_a_run_ignores_are_refused(tmp_path: Path) -> None:
    ended = train(tmp_path / "run", "meta=online", "optimizer=hypergradient", "evaluate=false", "device=cpu")
    assert_one_sentence(ended, "meta=online ignores evaluate here: leave that out")


def test_a_damaged_checkpoint_is_one_sentence(reference: Path, tmp_path: Path) -> None:
    whole, path = (reference / "checkpoints" / "best.pt").read_bytes(), tmp_path / "damaged.pt"
    path.write_bytes(whole[: len(whole) // 2])
    assert_one_sentence(evaluate(tmp_path / "eval", f"checkpoint={path}"), str(path), "damaged")
