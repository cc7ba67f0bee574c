"""`reproduce`: what is run and what is not, what is claimed and whether it holds, and the page that says so."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterable, Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

from l2l_runner import reproduce as reproduce_module
from l2l_runner.errors import ConfigError, StorageError
from l2l_runner.pages import write as pages
from l2l_runner.pages.reproduction import page, running
from l2l_runner.pages.reproduction.figures import drawings
from l2l_runner.pages.reproduction.numbers import NUMBERS, SHOWN, claims
from l2l_runner.pages.reproduction.page import held_before, remember
from l2l_runner.pages.reproduction.results import Results
from l2l_runner.pages.reproduction.running import StageOutcome, run_stages
from l2l_runner.pages.reproduction.settings import FIGURES, ReproduceConfig, parse_reproduce
from l2l_runner.pages.reproduction.stages import Stage, folder_name, stages_of
from l2l_runner.runs.folder import RunFolder
from problems import CONF, DATA, art_files, needs_mnist
from running import ROOT, SERVER, Ended, assert_one_sentence, call, finish, read_json, run_command, spawn, wait_until

BUDGETS = sorted(path.stem for path in (CONF / "budget").glob("*.yaml"))

# A comparison in seconds: what `quick` has, still smaller.
TOY = ["budget=quick", "budget.hidden=[3]", "budget.layers=[1]", "device=cpu", "device.threads=1"]
TOY_TRAIN = ["meta.steps=1", "meta.validate_every=1", "unroll.steps=2", "unroll.length=2", "optimizee.batch=1"]
TOY_TRAIN += ["optimizee.validation_problems=2", "optimizee.test_problems=2", "evaluation.tune.enabled=false"]
TOY_EVAL = ["problems=2", "tune.enabled=false", "steps=2"]


def listed(settings: Iterable[str]) -> str:
    """A list in Hydra's grammar, in which an = wants quotes."""
    return "[" + ",".join(f"'{setting}'" for setting in settings) + "]"


TOY += [f"budget.train={listed(TOY_TRAIN)}", f"budget.eval={listed(TOY_EVAL)}"]


def budget_file(name: str) -> dict[str, Any]:
    node = OmegaConf.to_container(OmegaConf.load(CONF / "budget" / f"{name}.yaml"))
    assert isinstance(node, dict)
    return {str(key): value for key, value in node.items()}


TRAININGS = ("quadratic-*", "cifar", "cifar-sub", "art", "curriculum", "imitation", "pes")
TOY_SETTINGS = {name: TOY_TRAIN if name in TRAININGS else TOY_EVAL for name in budget_file("quick")["settings"]}
TOY_SETTINGS |= {name: [*TOY_TRAIN, "meta.curriculum=[1]"] for name in ("curriculum", "imitation")}
TOY += [f"budget.settings={{{','.join(f'{name}: {listed(these)}' for name, these in TOY_SETTINGS.items())}}}"]


def config(name: str = "quick", **changes: Any) -> ReproduceConfig:
    device = {"name": "cpu", "dtype": "float32", "threads": 1}
    data = {"root": "data", "download": False}
    settings = {"figure": "all", "seed": 0, "jobs": 1, "folder": "out", "against": None, "keep": None}
    art = {"content": "photographs", "style": "style.jpg", "new_style": "new.jpg", "weights": None}
    settings |= {"art": art, "budget": budget_file(name)}
    return parse_reproduce({**settings, "device": device, "data": data, **changes})


# --- what is to be run -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", BUDGETS)
def test_stages_come_after_those_that_they_need(budget: str) -> None:
    stages = stages_of(config(budget))
    names = [stage.name for stage in stages]
    assert len(set(names)) == len(names)
    for place, stage in enumerate(stages):
        assert set(stage.needs) <= set(names[:place]), stage.name
    shown = {figure for stage in stages for figure in stage.figures}
    assert shown == set(FIGURES)


def test_a_figure_takes_its_stages_and_what_they_need_alone() -> None:
    assert [stage.name for stage in stages_of(config(figure=5))] == [
        "mnist-14x14",
        "mnist",
        "mnist-40-units",
        "mnist-2-layers",
        "mnist-relu",
    ]
    both = {stage.name for stage in stages_of(config(figure=[5, "6"]))}
    assert both >= {"mnist-relu", "mnist-2x20"}
    assert not both & {"quadratic-uniform", "cifar-10"}


def test_other_arguments_mean_another_folder() -> None:
    stage = Stage("mnist", (), "train", ("optimizee=mnist", "init=<first>"))
    assert stage.needs == ("first",)
    assert stage.resolved({"first": "a folder"}) == ["optimizee=mnist", "init=a folder"]
    names = {folder_name(stage, stage.resolved({"first": folder})) for folder in ("a", "b", "a")}
    assert len(names) == 2
    assert all(re.fullmatch(r"mnist-[0-9a-f]{8}", name) for name in names)


def test_a_budgets_settings_count_where_they_fit_and_the_last_of_a_key_wins() -> None:
    node = budget_file("quick") | {"train": ["meta.steps=1", "meta.lr=2"], "eval": ["steps=3"]}
    node["settings"] = {"mnist*": ["meta.lr=4"], "mnist-200": ["steps=5"]}
    stages = {stage.name: stage.arguments for stage in stages_of(config(budget=node, seed=7))}
    assert stages["quadratic-gaussian"] == ("optimizee=quadratic", "meta.steps=1", "meta.lr=2", "seed=7")
    assert stages["mnist"][-3:] == ("meta.steps=1", "meta.lr=4", "seed=7")
    assert stages["mnist-200"] == ("checkpoint=<mnist>", "steps=5", "meta.lr=4")
    node["settings"] = {"mnst": []}
    with pytest.raises(ConfigError, match=r"budget\.settings\.mnst matches none of the stages .* Did you mean mnist\?"):
        stages_of(config(budget=node))


@pytest.mark.parametrize("figure", ["3", "", None, [], [4, 10], {"4": 5}])
def test_figures_that_there_are_not_are_refused(figure: Any) -> None:
    with pytest.raises(ConfigError, match=r"figure is .*; expected all, or some of 4, 5, 6, 7, 8, 9, long\."):
        config(figure=figure)


# --- running it ------------------------------------------------------------------------------------------------------


class Ran:
    """A process that needs no import of its own, and has ended when it begins."""

    runs: list[list[str]] = []  # noqa: RUF012 - of all instances

    def __init__(self, command: list[str], stdout: Any, **kwargs: Any):
        self.runs.append(command)
        process = SERVER.Process(target=run_command, args=(command, stdout.name))
        process.start()
        process.join()
        assert process.exitcode is not None
        self.code = process.exitcode

    def poll(self) -> int:
        return self.code

    wait = poll


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stages are run in this process; the commands that were run."""
    monkeypatch.setattr(running, "Popen", Ran)
    monkeypatch.setattr(running, "POLL", 0)
    monkeypatch.setattr(Ran, "runs", [])
    return Ran.runs


QUADRATIC = ("optimizee=quadratic", "optimizee.dim=2", "optimizer.hidden=2", "evaluate=false", *TOY_TRAIN[:-1])
CPU = ["device=cpu", "device.threads=1"]
FIRST = Stage("first", (), "train", QUADRATIC)
SECOND = Stage("second", (), "eval", ("checkpoint=<first>", *TOY_EVAL))
BROKEN = Stage("broken", (), "train", ("optimizee=quadratic", "optimizee.dim=0"))
NO_DATA = Stage("no-data", (), "train", ("optimizee=mnist", "data.root=nowhere", "data.download=false"))


@pytest.mark.usefixtures("sketches")
def test_what_is_finished_is_not_run_again_and_no_failure_ends_the_others(tmp_path: Path, ran: list[list[str]]) -> None:
    after = [Stage(f"after-{name}", (), "eval", (f"checkpoint=<{name}>",)) for name in ("broken", "no-data")]
    last = Stage("last", (), "eval", ("checkpoint=<after-broken>",))
    stages = [BROKEN, NO_DATA, *after, last, FIRST, SECOND]
    outcomes = run_stages(stages, tmp_path, CPU, 2)
    statuses = {name: outcome.status for name, outcome in outcomes.items()}
    assert statuses == {
        "broken": "failed",
        "no-data": "without data",
        "after-broken": "skipped",
        "after-no-data": "skipped",
        "last": "skipped",
        "first": "finished",
        "second": "finished",
    }
    assert outcomes["broken"].error == "optimizee.dim is 0; expected an integer ≥ 1."
    assert str(outcomes["no-data"].error).startswith("MNIST is not in ")
    assert outcomes["last"].error == "it needs after-broken"
    assert outcomes["second"].arguments[0] == f"checkpoint={outcomes['first'].folder.path}"
    assert len(ran) == 4
    ran.clear()
    again = run_stages([FIRST, SECOND], tmp_path, CPU, 1)
    assert not ran
    assert {outcome.status for outcome in again.values()} == {"finished"}
    assert {n: o.seconds for n, o in again.items()} == {n: outcomes[n].seconds for n in again}
    other = Stage("first", (), "train", (*QUADRATIC, "seed=1"))
    assert run_stages([other, SECOND], tmp_path, CPU, 1)["second"].folder.path != again["second"].folder.path
    assert len(ran) == 2


@pytest.mark.usefixtures("sketches")
def test_what_was_stopped_goes_on_where_it_was(tmp_path: Path, ran: list[list[str]]) -> None:
    folder = run_stages([FIRST], tmp_path, CPU, 1)["first"].folder
    (folder.path / "result.json").unlink()  # as if it had been killed after its last checkpoint
    ran.clear()
    elsewhere = [*CPU, "data.root=elsewhere"]
    assert run_stages([FIRST], tmp_path, elsewhere, 1)["first"].status == "finished"
    assert ran[0][3:] == [f"resume={folder.path}", *elsewhere]
    assert "root: elsewhere" in (folder.path / ".hydra" / "config.yaml").read_text()
    # What has left no checkpoint begins anew, in the same folder.
    (folder.path / "result.json").unlink()
    folder.last.unlink()
    (folder.path / "leftover").touch()
    ran.clear()
    assert run_stages([FIRST], tmp_path, CPU, 1)["first"].status == "finished"
    assert ran[0][-1] == f"hydra.run.dir={folder.path}"
    assert not (folder.path / "leftover").exists()


def test_two_at_once_in_one_folder_are_refused(tmp_path: Path) -> None:
    with running._alone(tmp_path), pytest.raises(StorageError, match="Another process works in"):
        run_stages([FIRST], tmp_path, CPU, 1)


def test_no_stage_outlives_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Endless:
        poll = staticmethod(lambda: None)

        def __init__(self, *args: Any, **kwargs: Any):
            calls.append("begin")

        def terminate(self) -> None:
            calls.append("terminate")

        def wait(self) -> int:
            with pytest.raises(StorageError), running._alone(tmp_path):  # still locked
                pass
            calls.append("wait")
            return -signal.SIGTERM

    def full(outcome: StageOutcome) -> str:
        raise OSError("the disk is full")

    monkeypatch.setattr(running, "Popen", Endless)
    monkeypatch.setattr(running, "_where", full)
    with pytest.raises(OSError, match="the disk is full"):
        run_stages([FIRST, NO_DATA], tmp_path, CPU, 2)
    assert calls == ["begin", "begin", "terminate", "terminate", "wait", "wait"]


def test_ctrl_c_stops_the_stages_and_the_same_command_goes_on(tmp_path: Path) -> None:
    long = [*QUADRATIC[:-4], "meta.steps=100000"]
    command = [f"folder={tmp_path}", "figure=4", "against=null", *TOY, *["data.root=nowhere", "data.download=false"]]
    command += [f"budget.settings={{quadratic-*: {listed([*long[1:], 'evaluate=false'])}}}"]
    process = spawn(*command, f"hydra.run.dir={tmp_path / 'log'}", module="l2l_runner.reproduce")
    wait_until(process, lambda: any(tmp_path.glob("stages/quadratic-uniform-*/checkpoints/last.pt")))
    process.send_signal(signal.SIGINT)
    ended = finish(process)
    assert (ended.code, ended.err) == (130, "")
    assert "To resume, repeat the command" in ended.out
    (folder,) = tmp_path.glob("stages/quadratic-uniform-*/")
    assert "Stopped at meta-step" in folder.with_name(folder.name + ".log").read_text()
    statuses = {stage["name"]: stage["status"] for stage in read_json(tmp_path / "report.json")["stages"]}
    assert statuses["quadratic-uniform"] == statuses["quadratic-gaussian"] == "stopped"


# --- what came out ---------------------------------------------------------------------------------------------------


def entry(final: float, lr: float | None, steps: int, gap: float = 0.0, ci95: float = 0.01) -> dict[str, Any]:
    curve = [2.0 + (final - 2.0) * step / steps for step in range(steps + 1)]
    entry: dict[str, Any] = {
        "lr": lr,
        "sum": {"mean": sum(curve[:-1]), "ci95": 1.0},
        "final": {"mean": final, "ci95": ci95},
    }
    entry |= {"diverged": 0, "curve": curve, "ci95": [ci95] * (steps + 1), "metrics": {}}
    if lr is not None:
        entry["paired"] = {"against": "lstm", "sum": {"mean": 0, "ci95": 0}, "final": {"mean": gap, "ci95": ci95}}
    return entry


def comparison(learned: float, *, name: str = "lstm", steps: int = 100, **baselines: float) -> dict[str, Any]:
    optimizers = {name: entry(learned, None, steps)}
    optimizers |= {n: entry(final, 0.1, steps, final - learned) for n, final in baselines.items()}
    return {"optimizee": "mnist", "steps": steps, "problems": 8, "optimizers": optimizers}


def results_of(folder: Path, **comparisons: Mapping[str, Any]) -> Results:
    """Finished stages (underscores stand for hyphens) with these comparisons."""
    outcomes = {}
    for key, content in comparisons.items():
        name = key.replace("_", "-")
        run = RunFolder(folder / name)
        run.path.mkdir()
        run.write_json("comparison.json", content)
        outcomes[name] = StageOutcome(Stage(name, (), "eval", ()), run, [], "finished")
    return Results(outcomes)


def verdict(key: str, results: Results) -> Any:
    (claim,) = [claim for claim in claims(config().budget) if claim.key == key]
    found = claim.check(results)
    return None if found is None else found.holds


def test_what_was_not_run_is_neither_claimed_nor_denied(tmp_path: Path) -> None:
    nothing = Results({})
    assert {claim.check(nothing) for claim in claims(config().budget)} == {None}


def test_below_all_baselines_means_with_confidence_below_each(tmp_path: Path) -> None:
    for place, (mine, adam, expected) in enumerate([(0.2, 0.3, True), (0.295, 0.3, False), (0.31, 0.3, False)]):
        (tmp_path / str(place)).mkdir()
        results = results_of(tmp_path / str(place), mnist=comparison(mine, nag=0.5, adam=adam))
        assert verdict("mnist-best", results) is expected


def test_a_baseline_that_diverged_is_above_and_a_learned_one_below_nothing(tmp_path: Path) -> None:
    results = results_of(
        tmp_path,
        mnist=comparison(0.2, nag=0.5, adam=float("nan")),
        mnist_200=comparison(float("inf"), nag=0.5, adam=0.4),
        mnist_relu=comparison(float("nan"), nag=0.5),
    )
    assert verdict("mnist-best", results) is True
    assert verdict("mnist-200-best", results) is False
    assert verdict("relu-fails", results) is True
    assert results.best_baseline("mnist") == "nag"


@pytest.mark.parametrize(("final", "steps", "expected"), [(0.255, 100, True), (0.256, 100, False), (0.2, 40, None)])
def test_a_bound_is_one_for_so_many_steps(tmp_path: Path, final: float, steps: int, expected: bool | None) -> None:
    assert verdict("mnist-loss", results_of(tmp_path, mnist=comparison(final, steps=steps, nag=1.0))) is expected


@pytest.mark.parametrize(("mine", "expected"), [(0.1, True), (0.14, False)])
def test_the_ratio_is_to_the_best_baseline(tmp_path: Path, mine: float, expected: bool) -> None:
    results = results_of(tmp_path, quadratic_uniform=comparison(mine, nag=0.3, adam=0.9))
    assert verdict("quadratic-ratio", results) is expected


def test_the_whole_horizon_is_every_step(tmp_path: Path) -> None:
    content = comparison(0.1, nag=0.3)
    assert verdict("cifar-horizon", results_of(tmp_path, cifar_10=content)) is True
    content["optimizers"]["nag"]["curve"][3] = 0.0
    (tmp_path / "more").mkdir()
    results = results_of(tmp_path / "more", cifar_10=content)
    assert verdict("cifar-horizon", results) is False
    (claim,) = [claim for claim in claims(config().budget) if claim.key == "cifar-horizon"]
    found = claim.check(results)
    assert found is not None
    assert found.obtained == "below all at 99 of 100 steps, at all from step 4 on"


def test_what_diverges_on_the_way_is_below_nothing_from_there_on(tmp_path: Path) -> None:
    content = comparison(0.1, nag=0.3)
    content["optimizers"]["lstm"]["curve"][50:] = [float("nan")] * 51
    results = results_of(tmp_path, cifar_10=content)
    assert verdict("cifar-horizon", results) is False
    content["optimizers"]["nag"]["curve"][40:] = [float("nan")] * 61
    (tmp_path / "both").mkdir()
    assert verdict("cifar-horizon", results_of(tmp_path / "both", cifar_10=content)) is False


@pytest.mark.parametrize(
    "content", [comparison(0.1), comparison(0.1, name="rnnprop", nag=0.3)], ids=["lstm", "rnnprop"]
)
def test_what_a_budget_has_left_out_is_neither_claimed_nor_denied_nor_drawn(
    tmp_path: Path, content: dict[str, Any]
) -> None:
    """Without baselines nothing is told of them, and without the LSTM nothing of it."""
    names = ["quadratic_uniform", "mnist_relu", "cifar_10", "mnist_1x10", "mnist_1x20", "mnist_2x10", "mnist_2x20"]
    results = results_of(tmp_path, **dict.fromkeys(names, content))
    for key in ("quadratic-ratio", "relu-fails", "grid"):
        assert verdict(key, results) is None, key
    if "lstm" in content["optimizers"]:
        assert verdict("quadratic-best", results) is verdict("cifar-horizon", results) is None
    else:
        assert verdict("quadratic-loss", results) is None
    (sizes,) = [drawing for drawing in drawings(config().budget) if drawing.figure == "6"]
    assert sizes.draw(results, tmp_path / "6.png") is False


def test_a_grid_without_a_cell_is_no_claim() -> None:
    node = budget_file("quick") | {"hidden": [], "layers": []}
    (grid,) = [claim for claim in claims(config(budget=node).budget) if claim.key == "grid"]
    assert grid.check(Results({})) is None


def test_most_architectures_are_more_than_half_of_all(tmp_path: Path) -> None:
    cells = ["mnist_1x10", "mnist_1x20", "mnist_2x10", "mnist_2x20"]
    for place, (below, expected) in enumerate([(3, True), (2, False)]):
        (tmp_path / str(place)).mkdir()
        finals = [0.1] * below + [0.9] * (4 - below)
        content = {cell: comparison(final, nag=0.5) for cell, final in zip(cells, finals, strict=True)}
        assert verdict("grid", results_of(tmp_path / str(place), **content)) is expected
    (tmp_path / "part").mkdir()
    assert verdict("grid", results_of(tmp_path / "part", mnist_1x10=comparison(0.1, nag=0.5))) is None


@pytest.mark.parametrize(("mine", "diverged", "stable", "no_worse"), [(0.3, 0, True, True), (0.4, 2, False, False)])
def test_the_long_horizon(tmp_path: Path, mine: float, diverged: int, stable: bool, no_worse: bool) -> None:
    content = comparison(mine, name="rnnprop", steps=1000, adam=0.35)
    content["optimizers"]["rnnprop"]["diverged"] = diverged
    results = results_of(tmp_path, long=content)
    assert verdict("robust-stable", results) is stable
    assert verdict("robust-adam", results) is no_worse


def test_the_papers_numbers_are_those_of_the_same_optimizers_and_steps(tmp_path: Path) -> None:
    results = results_of(tmp_path, mnist=comparison(0.2, nag=0.3, adam=0.4, rms=0.5, sgd=0.6))
    for row in NUMBERS:
        assert tuple(row.losses) == SHOWN
        assert all(loss > 0 for loss in row.losses.values())
    value = results.loss("mnist", "nag", 50)
    assert value is not None
    assert value.mean == pytest.approx(1.15)
    assert results.loss("mnist", "nag", 101) is None
    assert results.loss("mnist-200", "nag", 1) is None


def test_losses_far_out_are_means_of_the_last_tenth(tmp_path: Path) -> None:
    content = comparison(0.2, name="rnnprop", steps=200, adam=0.4)
    content["optimizers"]["adam"]["curve"] = [float(step) for step in range(201)]
    relu = comparison(0.3, name="rnnprop", adam=0.5)
    results = results_of(tmp_path, long=content, long_relu=relu)
    assert results.recent("long", "adam", 100) == sum(range(90, 101)) / 11
    assert results.recent("long", "adam", 1) == 1.0
    assert results.recent("long", "adam", 201) is None
    mine, adam = page._horizons(results)
    assert (mine["optimizer"], adam["optimizer"]) == ("RNNprop", "Adam")
    assert adam["losses"] == {100: "95", 200: "190", 1000: "", 10_000: ""}
    assert adam["relu"] == "0.5 ± 0.01"


def test_a_claim_that_held_is_remembered_until_it_is_judged_again(tmp_path: Path) -> None:
    def report(budget: str, **holds: bool | None) -> dict[str, Any]:
        return {"budget": budget, "claims": [{"key": key, "holds": value} for key, value in holds.items()]}

    before = tmp_path / "held.json"
    assert held_before(before, "cpu") == set()
    remember(before, report("cpu", a=True, b=False, c=True, d=True, e=None))
    assert held_before(before, "cpu") == {"a", "c", "d"}
    assert held_before(before, "quick") == set()
    remember(before, report("cpu", a=False, b=True, c=None))  # of one figure, say, where d has no place
    assert held_before(before, "cpu") == {"b", "c", "d"}


@pytest.mark.parametrize("text", ["no JSON", "{}", "[1]", '{"budget": "cpu", "claims": [{}]}', "directory"])
def test_what_is_no_report_is_refused_before_anything_is_run(tmp_path: Path, text: str) -> None:
    path = tmp_path / "report.json"
    path.mkdir() if text == "directory" else path.write_text(text)
    with pytest.raises(ConfigError, match=r"against: .*report\.json is no report \(.*\); expected a report\.json of"):
        held_before(path, "cpu")


@pytest.mark.parametrize(("seconds", "words"), [(4.4, "4 s"), (89, "89 s"), (91, "2 min"), (5400, "1 h 30 min")])
def test_times_are_told_as_one_reads_them(seconds: float, words: str) -> None:
    assert pages.duration(seconds) == words


# --- all of it -------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The elements of a page: that all are closed, and what its pictures and links are."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[str] = []
        self.links: list[str] = []
        self.names: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        given = dict(attrs)
        if tag == "img":
            assert given["alt"]
            self.pictures.append(str(given["src"]))
        if "href" in given:
            self.links.append(str(given["href"]))
        if "id" in given:
            self.names.append(str(given["id"]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def reproduce(*arguments: str) -> Ended:
    """`python -m l2l_runner.reproduce`, in this process."""
    return call(reproduce_module.main, None, arguments)


@pytest.fixture(scope="module")
def without_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Ended]]:
    """Figures 4 and 5 where there are no data sets: only the quadratics can be had."""
    root = tmp_path_factory.mktemp("reproduction")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(running, "Popen", Ran)
        patched.setattr(running, "POLL", 0)
        nowhere = [f"data.root={root / 'nowhere'}", "data.download=false", f"hydra.run.dir={root / 'log'}"]
        yield root, reproduce("figure=[4,5]", f"folder={root}", f"keep={root / 'kept'}", *TOY, *nowhere)


def test_what_cannot_be_had_is_told_and_the_rest_is_there(without_data: tuple[Path, Ended]) -> None:
    root, ended = without_data
    assert ended.code == 0, ended.err
    report = read_json(root / "report.json")
    statuses = {stage["name"]: stage["status"] for stage in report["stages"]}
    assert statuses["quadratic-uniform"] == statuses["quadratic-gaussian"] == "finished"
    assert statuses["mnist-14x14"] == "without data"
    assert statuses["mnist"] == statuses["mnist-relu"] == "skipped"
    for text in (ended.out, (root / "index.html").read_text(), (root / "index.md").read_text()):
        assert "MNIST is not in" in text
    holds = {claim["key"]: claim["holds"] for claim in report["claims"]}
    assert holds["mnist-best"] is None
    assert holds["quadratic-best"] in (True, False)
    assert {claim["figure"] for claim in report["claims"]} == {"4", "5"}
    assert [figure["file"] is not None for figure in report["figures"]] == [True, False]


def test_the_page_is_complete(without_data: tuple[Path, Ended]) -> None:
    root, _ = without_data
    text = (root / "index.html").read_text()
    parsed = Page(text)
    assert parsed.open == []
    assert len(parsed.pictures) == 1
    assert parsed.pictures[0].startswith("data:image/png;base64,")
    assert {link for link in parsed.links if link.startswith("#")} <= {f"#{name}" for name in parsed.names}
    assert "{{" not in text
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]*)\)", (root / "index.md").read_text()):
        with Image.open(root / picture) as image:
            assert image.format == "PNG"


def test_what_is_kept_stands_by_itself(without_data: tuple[Path, Ended]) -> None:
    root, _ = without_data
    kept = {str(path.relative_to(root / "kept")) for path in (root / "kept").rglob("*") if path.is_file()}
    assert kept == {"index.md", "report.json", "figures/figure-4.png"}
    assert (root / "kept" / "report.json").read_bytes() == (root / "report.json").read_bytes()


def test_the_same_again_computes_nothing_and_a_lost_claim_is_an_error(
    without_data: tuple[Path, Ended], ran: list[list[str]], tmp_path: Path
) -> None:
    root, _ = without_data
    same = ["figure=4", f"folder={root}", *TOY, f"data.root={root / 'nowhere'}", "data.download=false"]
    ended = reproduce(*same, f"hydra.run.dir={tmp_path / 'a'}")
    assert ended.code == 0, ended.err
    assert ["optimizee=quadratic" in command for command in ran] == [False]  # MNIST is looked for again
    report = read_json(root / "report.json")
    (failing, *_) = [claim for claim in report["claims"] if claim["holds"] is False]
    failing["holds"] = True
    (tmp_path / "before.json").write_text(json.dumps(report))
    against = f"against={tmp_path / 'before.json'}"
    assert_one_sentence(reproduce(*same, against, f"hydra.run.dir={tmp_path / 'b'}"), failing["key"], "held before")
    accepted = reproduce(*same, "against=null", f"hydra.run.dir={tmp_path / 'c'}")
    assert accepted.code == 0, accepted.err


@needs_mnist
@pytest.mark.usefixtures("ran")
def test_every_figure_from_end_to_end(tmp_path: Path) -> None:
    arguments = [
        "figure=all",
        f"folder={tmp_path}",
        f"hydra.run.dir={tmp_path / 'log'}",
        *TOY,
        "jobs=2",
        "against=null",
    ]
    files = art_files()
    arguments += [f"art.{key}={files[key]}" for key in ("content", "style", "weights")] + [
        f"art.new_style={files['style']}"
    ]
    ended = reproduce(*arguments, f"data.root={DATA}", "data.download=false")
    assert ended.code == 0, ended.err + ended.out
    report = read_json(tmp_path / "report.json")
    assert {stage["name"]: stage["status"] for stage in report["stages"] if stage["status"] != "finished"} == {}
    assert all(figure["file"] for figure in report["figures"])
    parsed = Page((tmp_path / "index.html").read_text())
    assert len(parsed.pictures) == len(FIGURES)
    assert all(claim["obtained"] for claim in report["claims"])


def test_the_makefile_has_the_command() -> None:
    text = (ROOT / "Makefile").read_text()
    assert "reproduce-paper:" in text
    assert "-m l2l_runner.reproduce" in text
