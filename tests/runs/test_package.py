"""The wheel holds the configuration, and runs away from the repository."""

from __future__ import annotations

import ast
import email
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import l2l_runner
from problems import OPTIMIZEE_FILES
from running import ROOT, SMALL, read_json

pytest.importorskip("build", reason="the package `build` is not installed")
pytest.importorskip("hatchling", reason="the package `hatchling` is not installed")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without fetching anything."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the wheel is installed, by itself."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(folder), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def test_the_wheel_holds_all_code_and_all_configuration(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    conf = {f"l2l_runner/conf/{path.relative_to(ROOT / 'conf')}" for path in (ROOT / "conf").rglob("*.yaml")}
    source = ROOT / "src" / "l2l_runner"
    files = [path for suffix in ("py", "cpp", "pt", "json") for path in source.rglob(f"*.{suffix}")]
    code = {f"l2l_runner/{path.relative_to(source)}" for path in files} | {"l2l_runner/py.typed"}
    assert {"l2l_runner/kernels/lstm.cpp", "l2l_runner/weights/mnist.pt", "l2l_runner/weights/cards.json"} <= code
    assert len(conf) > 15
    assert conf <= names
    assert code <= names
    assert {name for name in names if not name.startswith("l2l_runner")} == set()


def test_the_wheel_names_its_version_its_needs_and_its_commands(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        message = email.message_from_string(archive.read(metadata).decode())
        commands = archive.read(metadata.replace("METADATA", "entry_points.txt")).decode()
        licensed = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    assert message["Version"] == l2l_runner.__version__
    needs = {re.split(r"[<>=; ]", item)[0] for item in message.get_all("Requires-Dist")}
    assert {"torch", "torchvision", "hydra-core", "matplotlib", "numpy", "scikit-learn", "scipy", "tqdm"} <= needs
    assert "l2l-train = l2l_runner.train:main" in commands
    assert "l2l-eval = l2l_runner.eval:main" in commands
    assert "l2l-report = l2l_runner.report:main" in commands
    assert licensed


def test_every_import_of_another_package_is_declared(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        needs = email.message_from_string(archive.read(metadata).decode()).get_all("Requires-Dist")
    declared = {re.split(r"[<>=; ]", item)[0] for item in needs if "extra ==" not in item}
    extra = {re.split(r"[<>=; \[]", item)[0].lower() for item in needs if "extra ==" in item and "dev" not in item}
    named = {"hydra": "hydra-core", "sklearn": "scikit-learn", "PIL": "pillow", "mlflow": "mlflow-skinny"}
    imported = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).split(".")[0])
    optional = {"l2l_runner", "triton"}  # Triton comes with PyTorch where it can be used
    others = {name for name in imported if name not in sys.stdlib_module_names} - optional
    used = {named.get(name, name) for name in others}
    assert declared <= used <= declared | extra


def test_the_installed_package_trains_and_evaluates_away_from_the_repository(installed: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(installed)}  # which comes before the repository's own installation

    def run(module: str, *arguments: str) -> str:
        command = [sys.executable, "-m", module, *arguments, "device=cpu", "device.threads=1"]
        ended = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, check=False)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    small = [item for item in SMALL if not item.startswith("device")]
    run("l2l_runner.train", *small, "optimizee.dim=3", "meta.steps=1", "evaluate=false", "hydra.run.dir=run")
    run("l2l_runner.eval", "checkpoint=run", "tune.enabled=false", "hydra.run.dir=eval")
    assert read_json(tmp_path / "eval" / "comparison.json")["steps"] == 10
    # It was that installation, with the configuration in it.
    assert str(installed / "l2l_runner" / "conf") in (tmp_path / "run" / ".hydra" / "hydra.yaml").read_text()
    assert str(ROOT) not in (tmp_path / "run" / ".hydra" / "hydra.yaml").read_text()


def test_the_installed_commands_start(installed: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(installed)}
    for name in ("l2l-train", "l2l-eval"):
        command = [sys.executable, str(installed / "bin" / name), "--help"]
        ended = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, check=False)
        assert ended.returncode == 0, ended.stderr
        assert f"optimizee: {', '.join(OPTIMIZEE_FILES)}" in ended.stdout
