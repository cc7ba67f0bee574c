"""Whole runs with a kernel that is compiled anew, and processes that compile one at once."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from l2l_runner.kernels import build, cpp
from running import QUICK, assert_one_sentence, records, train

NEEDED = pytest.mark.skipif(not any(map(shutil.which, build.COMPILERS)), reason="there is no C++ compiler here")
pytestmark = pytest.mark.usefixtures("sketches")


def forget() -> None:
    """Make the next run load its kernel as a new process would."""
    build.load_library.cache_clear()
    cpp._function.cache_clear()


@pytest.fixture(autouse=True)
def forgotten(kernel_cache: Path) -> Iterator[None]:
    """No test's library is another's."""
    forget()
    yield
    forget()


def source(folder: Path, answer: int = 42) -> Path:
    """A small library: `answer()`, and `openmp()`, which says whether it was compiled with OpenMP."""
    path = folder / "small.cpp"
    openmp = "#ifdef _OPENMP\n  return 1;\n#endif\n  return 0;"
    path.write_text(f'extern "C" int answer() {{ return {answer}; }}\nextern "C" int openmp() {{\n{openmp}\n}}\n')
    return path


def builds(calls: Path) -> list[str]:
    """The calls that were to compile something."""
    return [line for line in calls.read_text().splitlines() if "-shared" in line] if calls.exists() else []


# The kernel itself


@NEEDED
def test_processes_that_build_at_once_all_load_a_whole_library(
    tmp_path: Path, kernel_cache: Path, compiler: Callable[[str], Path]
) -> None:
    # The compiler writes slowly, in two halves: whoever sees an unfinished file would fail to load it.
    calls = compiler(
        'for last; do :; done\n"$REAL" "$@" || exit 1\n[ "$1" = --version ] && exit 0\n'
        'mv "$last" "$last.whole"; head -c 3000 "$last.whole" > "$last"; sleep 0.3; cp "$last.whole" "$last"'
        '; rm "$last.whole"'
    )
    path = source(tmp_path)
    code = "from pathlib import Path\nfrom l2l_runner.kernels.build import load_library\n"
    code += f"assert load_library(Path({str(path)!r})).answer() == 42"
    together = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(4)]
    assert [process.wait() for process in together] == [0] * 4
    assert builds(calls)
    assert [item.suffix for item in kernel_cache.iterdir()] == [".so"]


def scores(folder: Path) -> list[float]:
    """Train with the compiled kernel; return the validation scores."""
    forget()
    ended = train(folder, *QUICK, "kernel=cpp", "optimizer.hidden=20")
    assert ended.code == 0, ended.err
    assert "kernel cpp," in ended.out
    return [record["score"] for record in records(folder, "validation")]


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The scores with the kernel as it is built for everybody, in the cache that other tests share."""
    return scores(tmp_path_factory.mktemp("best") / "run")


@NEEDED
@pytest.mark.parametrize("refused", ["-fopenmp", "native"])
def test_a_kernel_built_with_fewer_flags_trains_the_same(
    best: list[float], tmp_path: Path, compiler: Callable[[str], Path], refused: str
) -> None:
    calls = compiler(f'case "$*" in *{refused}*) exit 1;; esac\nexec "$REAL" "$@"')
    assert scores(tmp_path / "fewer") == pytest.approx(best, rel=1e-3)
    assert len(builds(calls)) == build.ATTEMPTS.index(("-march=native",) if refused == "-fopenmp" else ()) + 1


@pytest.mark.parametrize("broken", ["no compiler", "a compiler that fails"])
def test_a_run_without_a_compiler(
    tmp_path: Path, compiler: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    compiler("echo 'fatal error: broken' >&2; exit 1")
    words = "fatal error: broken"
    if broken == "no compiler":
        monkeypatch.setenv("CXX", "nowhere")
        words = "the compiler CXX=nowhere is not there"
    ended = train(tmp_path / "run", *QUICK)
    assert ended.code == 0, ended.err
    (line,) = [line for line in ended.out.splitlines() if "is not available" in line]
    assert words in line
    assert "kernel torch," in ended.out
    forced = train(tmp_path / "forced", *QUICK, "kernel=cpp")
    assert_one_sentence(forced, "kernel=cpp is not available", words, "kernel=torch")
