"""`report`: every run is told, what can be compared stands together and nothing else does, and the page is whole."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from l2l_runner import report as report_module
from l2l_runner.evaluation.sweep_points import sweep_points
from l2l_runner.pages.reporting import figures
from l2l_runner.pages.reporting.contents import read_runs
from l2l_runner.pages.reporting.page import write_report
from l2l_runner.pages.reporting.runs import Run, RunCurves
from l2l_runner.pages.reporting.settings import differing, flat
from l2l_runner.plots import style
from l2l_runner.plots.style import label_of
from l2l_runner.plots.sweeps import SweepPoint, draw_sweep
from l2l_runner.runs.reading import SweepJob
from l2l_runner.runs.results import Interval, RunResult
from running import EVAL, QUADRATIC, Ended, assert_one_sentence, call, evaluate, read_json, sketch, train

DIVERGED, FAILED = "1e30", "-1"


def report(out: Path, *folders: Path) -> Ended:
    """`python -m l2l_runner.report`, in this process."""
    return call(report_module.main, None, [*map(str, folders), "--out", str(out)])


class Page(HTMLParser):
    """A page's links, pictures, other files and cells; its elements are closed in order."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.pictures: list[str] = []
        self.names: list[str] = []
        self.columns: list[int] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert tag not in ("script", "link", "iframe")
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "img":
            assert given["alt"]
        self.pictures += [str(given["src"])] if "src" in given else []
        self.links += [str(given["href"])] if "href" in given else []
        self.names += [str(given["id"])] if "id" in given else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def tables(markdown: str) -> list[list[list[str]]]:
    """The tables of a page in Markdown, all of whose rows have as many cells as their header."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()]
        assert {len(row) for row in rows} == {len(rows[0])}
        assert set("".join(rows[1])) == {"-"}
        found.append([[cell.strip().replace("\\", "") for cell in row] for row in [rows[0], *rows[2:]]])
    return found


def rows_of(out: Path) -> list[dict[str, str]]:
    """The table of runs."""
    header, *rows = tables((out / "index.md").read_text())[0]
    return [dict(zip(header, row, strict=True)) for row in rows]


@pytest.fixture(scope="module")
def rates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep with a run that diverges and one that fails."""
    folder = tmp_path_factory.mktemp("rates") / "sweep"
    with pytest.MonkeyPatch.context() as patched:
        sketch(patched)
        swept = ["optimizer=sgd", f"optimizer.lr=0.001,0.01,{DIVERGED},{FAILED}"]
        assert train(None, "-m", *QUADRATIC, *swept, f"hydra.sweep.dir={folder}").code == 1
    return folder


@pytest.fixture(scope="module")
def whole(rates: Path, sketched: Path, quick: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder with a sweep, two meta-trainings and an evaluation for more steps; and its report."""
    root = tmp_path_factory.mktemp("whole")
    shutil.copytree(rates, root / "runs" / "rates", copy_function=shutil.copy2)
    shutil.copytree(sketched, root / "runs" / "deep" / "compared", copy_function=shutil.copy2)
    shutil.copytree(quick, root / "runs" / "quick run", copy_function=shutil.copy2)
    with pytest.MonkeyPatch.context() as patched:
        sketch(patched)
        ended = evaluate(root / "runs" / "longer", f"checkpoint={sketched}", "steps=12", "tune.enabled=false", *EVAL)
        assert ended.code == 0, ended.err
    ended = report(root / "report", root / "runs")
    assert ended.code == 0, ended.err
    return root / "runs", root / "report"


def test_every_run_is_in_the_table_with_what_it_reached(whole: tuple[Path, Path]) -> None:
    runs, out = whole
    rows = {re.sub(r"\[(.*)\]\(.*", r"\1", row["run"]): row for row in rows_of(out)}
    assert set(rows) == {"deep/compared", "longer", "quick run", *(f"rates/{i}" for i in range(4))}
    for name, row in rows.items():
        result = read_json(runs / name / "result.json")
        score = "" if result["score"] is None else f"{result['score']:.4g}"
        assert row["score"] == score
    validated, tested = rows["quick run"], rows["deep/compared"]
    assert validated["over"] == "4 validation problems, seed 0"
    assert tested["over"] == "4 test problems, seed 0"
    mine = read_json(runs / "deep" / "compared" / "comparison.json")["optimizers"]["lstm"]["final"]
    assert tested["final loss"] == f"{mine['mean']:.4g} ± {mine['ci95']:.2g}"
    mine = read_json(runs / "quick run" / "result.json")["sum"]
    assert validated["sum of losses"] == f"{mine['mean']:.4g} ± {mine['ci95']:.2g}"
    assert rows["longer"]["over"] == "4 test problems, seed 0"  # the seed of the checkpoint


def test_divergence_and_failure_are_shown(whole: tuple[Path, Path]) -> None:
    _, out = whole
    rows = rows_of(out)
    (diverged,) = [row for row in rows if row["optimizer.lr"] == "1e+30"]
    assert (diverged["status"], diverged["final loss"]) == ("**diverged**", "diverged")
    (failed,) = [row for row in rows if row["optimizer.lr"] == FAILED]
    assert failed["status"] == "**failed**: optimizer.lr is -1; expected a number > 0."
    assert "4 completed" not in (out / "index.md").read_text()
    for text in ((out / "index.md").read_text(), (out / "index.html").read_text()):
        assert "1 diverged" in text
        assert "1 failed" in text
        assert "5 completed" in text


def test_the_settings_are_those_that_differ(whole: tuple[Path, Path]) -> None:
    _, out = whole
    rows = rows_of(out)
    assert {"optimizer", "optimizer.lr", "evaluate"} <= set(rows[0])
    assert not {"optimizee.dim", "seed", "resume", "meta.lr"} & set(rows[0])
    assert {row["optimizer"] for row in rows} == {"lstm", "sgd", ""}


def test_only_what_is_comparable_stands_in_one_panel(whole: tuple[Path, Path], tmp_path: Path) -> None:
    runs, _ = read_runs([whole[0]])
    numbers = {run.name: run.number for run in runs}
    told = [picture.title for picture in figures.curve_pictures(tmp_path, runs)]
    swept = ", ".join(str(numbers[f"rates/{i}"]) for i in range(3))
    assert sorted(told) == sorted(
        [
            f"quadratic, 10 steps, held-out test problems: run {numbers['deep/compared']}",
            f"quadratic, 12 steps, held-out test problems: run {numbers['longer']}",
            f"quadratic, 10 steps, validation problems: runs {swept}",
        ]
    )
    told = [picture.title for picture in figures.validation_pictures(tmp_path, runs)]
    both = sorted([numbers["deep/compared"], numbers["quick run"]])
    assert told == [f"quadratic, 10 steps, final loss: runs {both[0]}, {both[1]}"]
    runs[both[0] - 1].config["optimizee"]["dim"] = 7
    told = [picture.title for picture in figures.validation_pictures(tmp_path, runs)]
    assert sorted(told) == sorted(
        f"quadratic dim={dim}, 10 steps, final loss: run {number}" for dim, number in zip((7, 3), both, strict=True)
    )


def test_numbers_of_problems_dont_make_runs_incomparable(whole: tuple[Path, Path], tmp_path: Path) -> None:
    runs, _ = read_runs([whole[0]])
    before = len(figures.validation_pictures(tmp_path, runs))
    runs[0].config["optimizee"] |= {"batch": 9, "validation_problems": 9, "test_problems": 9}
    assert len(figures.validation_pictures(tmp_path, runs)) == before


def test_many_runs_are_drawn_in_several_pictures_and_none_is_left_out(sketched: Path, tmp_path: Path) -> None:
    ((run,), _) = read_runs([sketched])
    many = [Run(**{**vars(run), "number": number}) for number in range(1, 2 * figures.MOST + 2)]
    told = [picture.title for picture in figures.curve_pictures(tmp_path, many)]
    assert len(told) == 3
    assert [int(n) for title in told for n in re.findall(r"\d+", title.split(":")[1])] == [run.number for run in many]


def test_baselines_that_all_share_are_drawn_once_and_others_by_their_best(sketched: Path) -> None:
    ((run,), _) = read_runs([sketched])
    assert run.curves is not None
    other = Run(**{**vars(run), "number": 2})
    shown, _ = figures._entries([(run, run.curves), (other, run.curves)])
    assert set(shown) == {"1: LSTM", "2: LSTM", *run.curves.baselines}
    changed = {
        name: replace(entry, final=Interval(math.nan if place == 0 else float(10 - place)))
        for place, (name, entry) in enumerate(run.curves.baselines.items())
    }
    theirs = RunCurves(run.curves.of, 10, 4, run.curves.mine, changed)
    shown, _ = figures._entries([(run, run.curves), (other, theirs)])
    best = label_of(list(changed)[-1])
    assert {label for label in shown if "LSTM" not in label and label.startswith("2")} == {f"2: {best}"}
    assert sum("LSTM" not in label for label in shown) == 2


def test_the_html_is_whole_and_needs_nothing_else(whole: tuple[Path, Path]) -> None:
    runs, out = whole
    text = (out / "index.html").read_text()
    page = Page(text)
    assert page.pictures
    assert all(picture.startswith("data:image/png;base64,") for picture in page.pictures)
    assert "url(" not in text
    assert "@import" not in text
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.names)
    outside = [link for link in page.links if not link.startswith("#")]
    for link in outside:
        assert not re.match(r"\w+:|/", link)
        target = Path(os.path.normpath(out / link.replace("%20", " ")))
        assert target.exists()
        assert target.is_relative_to(runs)
    folders = {Path(os.path.normpath(out / link.replace("%20", " "))) for link in outside}
    assert {run.path for run in read_runs([runs])[0]} <= folders
    assert "python -m l2l_runner.eval checkpoint=" in text


def test_the_markdown_has_its_pictures_beside_it(whole: tuple[Path, Path]) -> None:
    _, out = whole
    text = (out / "index.md").read_text()
    assert len(tables(text)) >= 3  # runs, and the comparison of two of them
    pictures = re.findall(r"!\[[^\n]*\]\(([^)]*)\)", text)
    assert len(pictures) == len(Page((out / "index.html").read_text()).pictures)
    for picture in pictures:
        assert picture.startswith("pictures/")
        with Image.open(out / picture) as image:
            assert image.format == "PNG"


def test_a_comparison_stands_in_its_runs_fold_out(whole: tuple[Path, Path]) -> None:
    runs, out = whole
    (table,) = [
        table for table in tables((out / "index.md").read_text()) if table[0][0] == "optimizer" and "10" not in table[0]
    ][:1]
    comparison = read_json(runs / "deep" / "compared" / "comparison.json")
    assert [row[0] for row in table[1:]] == [label_of(name) for name in comparison["optimizers"]]


def test_the_same_report_again_is_the_same(whole: tuple[Path, Path]) -> None:
    runs, out = whole
    before = (out / "index.html").read_bytes()
    (out / "pictures" / "stale.png").write_bytes(b"")
    assert report(out, runs, runs / "rates").code == 0  # a run that is given twice is one
    assert (out / "index.html").read_bytes() == before
    assert not (out / "pictures" / "stale.png").exists()


def test_a_sweeps_values_on_a_log_axis_with_those_that_have_no_loss_at_the_top(
    rates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(style, "png", lambda figure, dpi: drawn.append(figure) or b"")
    runs, sweeps = read_runs([rates])
    assert sweeps == [rates]
    picture = figures.sweep_picture(tmp_path, "rates", 1, runs)
    assert picture is not None
    assert picture.caption == "Final loss with 95 % confidence intervals against optimizer.lr."
    (axes,) = drawn[0].axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("optimizer.lr", "final loss")
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    lines = {str(line.get_marker()): line for line in axes.lines if len(np.asarray(line.get_xdata()))}
    results = [read_json(rates / str(job) / "result.json") for job in range(2)]
    assert np.asarray(lines["o"].get_xdata()).tolist() == [0.001, 0.01]
    assert np.asarray(lines["o"].get_ydata()).tolist() == [result["final"]["mean"] for result in results]
    assert np.asarray(lines["X"].get_xdata()).tolist() == [float(DIVERGED)]
    assert float(np.asarray(lines["P"].get_xdata())[0]) < 0.001  # a rate below 0 has no place on this axis
    assert [text.get_text() for text in axes.texts] == [FAILED]
    assert set(axes.get_legend_handles_labels()[1]) == {"diverged", "failed"}


def test_a_line_for_each_value_of_a_second_key() -> None:
    def point(lr: str, dim: str, mean: float) -> SweepPoint:
        return SweepPoint({"dim": dim, "lr": lr}, mean=mean, ci95=0.5)

    axes = Figure().add_subplot()
    draw_sweep(axes, [point("0.1", "a", 3), point("0.01", "a", 2), point("0.1", "b", 1), point("0.01", "b", math.nan)])
    assert axes.get_xlabel() == "lr"
    lines = [line for line in axes.lines if line.get_marker() == "o" and len(np.asarray(line.get_xdata()))]
    assert [(np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist()) for line in lines] == [
        ([0.01, 0.1], [2.0, 3.0]),
        ([0.1], [1.0]),
    ]
    assert [label for label in axes.get_legend_handles_labels()[1] if "=" in label] == ["dim=a", "dim=b"]


# --- settings --------------------------------------------------------------------------------------------------------


def test_what_differs_only_because_of_a_choice_follows_it() -> None:
    lstm: dict[str, Any] = {
        "optimizer": {"name": "lstm", "hidden": 20, "lr": 1},
        "seed": 0,
        "data": {"root": "a"},
        "meta_batch": 3,
    }
    sgd = {"optimizer": {"name": "sgd", "lr": 0.5}, "seed": 0.0, "data": {"root": "b"}, "meta_batch": 3}
    settings = [flat(lstm), flat(sgd)]
    assert differing(settings, ["train", "train"], ()) == (["optimizer"], ["optimizer.lr"])
    assert differing(settings, ["train", "train"], {"optimizer.lr"}) == (["optimizer", "optimizer.lr"], [])
    third = flat({**lstm, "optimizer": {**lstm["optimizer"], "hidden": 8}})
    assert differing([*settings, third], ["train"] * 3, ())[0] == ["optimizer", "optimizer.hidden"]
    assert differing([flat(lstm), flat({**lstm, "seed": 5})], ["train", "eval"], ()) == ([], ["seed"])


# --- what is not whole -----------------------------------------------------------------------------------------------


def test_a_damaged_run_says_so_and_hides_no_other(quick: Path, sketched: Path, tmp_path: Path) -> None:
    damages = {
        "result.json": "{",
        "metrics.jsonl": '{"event": "validation"}\n',
        ".hydra/config.yaml": "a: [",
        "comparison.json": '{"steps": 3, "problems": 2}',
    }
    comparison = read_json(sketched / "comparison.json")
    comparison["optimizers"]["lstm"]["curve"].pop()
    damages |= {"./comparison.json": json.dumps(comparison)}
    for place, (name, content) in enumerate(damages.items()):
        run = Path(shutil.copytree(sketched, tmp_path / "runs" / str(place)))
        (run / name).write_text(content)
    (shutil.copytree(quick, tmp_path / "runs" / "no config") / ".hydra" / "config.yaml").unlink()
    shutil.copytree(quick, tmp_path / "runs" / "well")
    ended = report(tmp_path / "out", tmp_path / "runs")
    assert ended.code == 0, ended.err
    statuses = [row["status"] for row in rows_of(tmp_path / "out")]
    assert statuses[-1] == "**completed**"
    for status, name in zip(statuses, [*damages, ".hydra/config.yaml"], strict=False):
        assert status.startswith("**damaged**: ")
        assert name.removeprefix("./") in status or name == "metrics.jsonl"
    assert ended.out.count("is damaged") == 6
    Page((tmp_path / "out" / "index.html").read_text())


def test_a_run_without_a_result_says_how_far_it_came(quick: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(quick, tmp_path / "run"))
    (run / "result.json").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:-3]) + '{"event": "meta_s')  # one that is being written
    ((read,), _) = read_runs([run])
    assert (read.status, read.detail) == ("unfinished", "at meta-step 4 of 6")
    assert read.score == min(json.loads(line)["score"] for line in lines[:-3] if "validation" in line)
    with open(run / "train.log", "a") as log:
        log.write(
            "[2026-01-01 00:00:00,000][l2l_runner.launch][INFO] - Stopped at meta-step 5 of 6; everything is saved.\n"
        )
    ((read,), _) = read_runs([run])
    assert read.status == "stopped"


def test_the_time_is_told_where_it_is_known(quick: Path, tmp_path: Path) -> None:
    ((read,), _) = read_runs([quick])
    assert read.seconds is not None
    assert 0 < read.seconds < 60
    copied = Path(shutil.copytree(quick, tmp_path / "copied"))
    for name in (".run", "result.json"):
        os.utime(copied / name, (2e9, 2e9))
    ((read,), _) = read_runs([copied])
    assert read.seconds is None


def test_online_runs_and_reweighting_are_told(quick: Path, tmp_path: Path) -> None:
    loss = [{"mean": 2.0, "ci95": 0.1}, {"mean": 1.0, "ci95": None}]
    arm = {"steps": [0, 5], "runs": [2, 2], "diverged": 1, "loss": loss, "metrics": {"accuracy": loss}, "rates": {}}
    online: dict[str, Any] = {"optimizee": "digits", "gain": None, "optimizer": "lstm", "steps": 5}
    online["arms"] = {"learning": arm, "fixed": arm}
    mean = {"mean": 0.9, "ci95": 0.01, "accuracies": [0.9, 0.9, 0.9]}
    proportions = [{"proportion": 0.95, "arms": {"plain": mean, "reweighted": mean}}, {"proportion": 0.99, "arms": {}}]
    reweighting = {"optimizee": "imbalance", "optimizer": "sgd", "steps": 9, "proportions": proportions}
    for name, content in (("online", online), ("reweighting", reweighting)):
        run = Path(shutil.copytree(quick, tmp_path / "runs" / name))
        (run / f"{name}.json").write_text(json.dumps(content))
        (run / f"{name}.png").write_bytes(style.png(Figure((1, 1)), 10))
    assert report(tmp_path / "out", tmp_path / "runs").code == 0
    text = (tmp_path / "out" / "index.md").read_text()
    assert [row["over"] for row in rows_of(tmp_path / "out")] == [
        "2 trajectories, training loss, seed 0",
        "3 trajectories, error on test images, seed 0",
    ]
    found = tables(text)
    assert ["learning", "5", "1", "accuracy 1", "1 of 2"] in found[1]
    assert found[2][1:] == [["0.95", "0.9 ± 0.01", "0.9 ± 0.01"], ["0.99", "not run", "not run"]]
    for name in ("run-1-online.png", "run-2-reweighting.png"):
        assert f"(pictures/{name})" in text
        assert (tmp_path / "out" / "pictures" / name).exists()


def test_bad_folders_are_refused_in_one_sentence(quick: Path, tmp_path: Path) -> None:
    assert_one_sentence(report(tmp_path / "out", tmp_path / "nowhere"), "nowhere is not a folder")
    (tmp_path / "empty").mkdir()
    assert_one_sentence(report(tmp_path / "out", quick, tmp_path / "empty"), "empty holds no run")
    assert_one_sentence(report(quick, quick), "belongs to a run", "--out")
    (tmp_path / "file").write_text("")
    assert_one_sentence(report(tmp_path / "file" / "out", quick), "could not be written", "--out")
    assert_one_sentence(call(report_module.main, None, []), "DIR", "--help")
    assert_one_sentence(call(report_module.main, None, [str(quick), "--outt", "x"]), "--outt")
    other = Path(shutil.copytree(quick, tmp_path / "other"))
    (other / ".hydra" / "config.yaml").write_text("figure: all\n")
    assert_one_sentence(report(tmp_path / "out", other), "other commands")
    assert not (tmp_path / "out").exists()


def test_a_run_with_odd_names_keeps_the_tables_whole(quick: Path, tmp_path: Path) -> None:
    shutil.copytree(quick, tmp_path / "runs" / "a|b <i>[c](d)")
    runs, sweeps = read_runs([tmp_path / "runs"])
    write_report(tmp_path / "out", runs, sweeps)
    (row,) = tables((tmp_path / "out" / "index.md").read_text())[0][1:]
    assert "a|b <i>[c](d)" in row[1]
    assert "<i>[c]" not in (tmp_path / "out" / "index.html").read_text()


def test_jobs_that_differ_in_their_seed_alone_are_one_point():
    def job(seed: int, lr: str, mean: float | None) -> SweepJob:
        status = "failed" if mean is None else "completed"
        final = None if mean is None else Interval(mean, 9.0)
        return SweepJob("0", {"seed": str(seed), "lr": lr}, status, result=RunResult(status, math.nan, final))

    jobs = [job(0, "1", 2.0), job(1, "1", 4.0), job(2, "1", 6.0), job(0, "2", 5.0), job(1, "2", None)]
    first, second = sweep_points(jobs, "final")
    assert first.ci95 == pytest.approx(4.302653 * 2 / 3**0.5)
    assert first == SweepPoint({"lr": "1"}, False, 4.0, first.ci95)
    assert second.failed
    assert second.values == {"lr": "2"}
