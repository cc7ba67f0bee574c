"""Test that the examples run and that the documentation shows what they print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from problems import DATA, needs_mnist
from running import ROOT


def test_the_inner_update_prints_what_the_documentation_shows(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / "inner_update.py")]
    ended = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr
    exact, differences, first_order = (float(line.split()[-1]) for line in ended.stdout.splitlines()[3:6])
    assert abs(exact - differences) < 1e-5
    assert abs(exact - first_order) > 1e-2
    losses = [float(line.split()[-1]) for line in ended.stdout.splitlines() if "meta-step" in line]
    assert losses[-1] < losses[0] / 2
    shown = (ROOT / "docs" / "modules.md").read_text()
    # The last digits of a long training depend on the machine; what comes before does not.
    for line in ended.stdout.splitlines():
        if "meta-step" not in line:
            assert line in shown


def test_the_pretrained_optimizer_prints_what_the_documentation_shows(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / "drop_in.py")]
    ended = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr
    mine = re.findall(r"^(.{10}) loss (\d\.\d{3})", ended.stdout, re.MULTILINE)
    shown = re.findall(r"^(.{10}) loss (\d\.\d{3})", (ROOT / "docs" / "pretrained.md").read_text(), re.MULTILINE)
    assert [name for name, _ in mine] == [name for name, _ in shown]
    for (_, loss), (_, documented) in zip(mine, shown, strict=True):
        assert abs(float(loss) - float(documented)) < 0.1 * float(documented)


def test_learned_rates_print_what_the_documentation_shows(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / "learned_rates.py")]
    ended = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr
    shown = (ROOT / "docs" / "transforms.md").read_text().split("learned_rates.py\n")[1]
    fixed, learned = (float(part) for part in re.findall(r"\d\.\d{3}", ended.stdout)[:2])
    assert learned > fixed + 0.2
    # The last digits depend on the machine.
    for mine, documented in zip(
        re.findall(r"-?\d\.\d{3}", ended.stdout), re.findall(r"-?\d\.\d{3}", shown), strict=False
    ):
        assert abs(float(mine) - float(documented)) < 0.03


def test_meta_training_and_comparing_need_python_alone(tmp_path: Path) -> None:
    script = ROOT / "examples" / "bare_api.py"
    assert len(script.read_text().splitlines()) <= 60
    saved = tmp_path / "lstm.pt"
    command = [sys.executable, "-W", "error", str(script), "--meta-steps", "2", "--problems", "8", "--save", str(saved)]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}  # threads that spin slow each other down where cores are few
    ended = subprocess.run(command, cwd=tmp_path, env=alone, text=True, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert re.findall(r"^(lstm|nag|adam) ", ended.stdout, re.MULTILINE) == ["lstm", "nag", "adam"]
    assert saved.exists()


@needs_mnist
def test_a_model_of_torchvision_learns_with_a_learned_optimizer_and_with_adam(tmp_path: Path) -> None:
    script = str(ROOT / "examples" / "torchvision_model.py")
    command = [sys.executable, "-W", "error", script, str(DATA.absolute()), "shufflenet_v2_x0_5", "12"]
    ended = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr
    found = re.findall(
        r"^(\w+).* mean loss (\d\.\d{3}), of the last ten steps (\d\.\d{3})$", ended.stdout, re.MULTILINE
    )
    assert [name for name, *_ in found] == ["learned", "adam", "adam", "adam", "adam"]
    # After so few steps, ten classes still cost log 10 = 2.3 at the lowest rate, and more where first steps are large.
    means = [float(mean) for _, mean, _ in found]
    assert abs(means[1] - 2.3) < 0.1
    assert all(2 < mean < 8 for mean in means)
    assert len(set(means)) == 5
