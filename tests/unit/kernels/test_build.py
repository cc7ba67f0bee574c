"""Compiling on first use: the cache, its keys, compilers that are missing, broken or old, and builds at once."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from l2l_runner.kernels import build
from l2l_runner.kernels.build import BuildError, cache_folder, find_compiler, library_prefix, load_library

NEEDED = pytest.mark.skipif(not any(map(shutil.which, build.COMPILERS)), reason="there is no C++ compiler here")
pytestmark = pytest.mark.usefixtures("kernel_cache")


def source(folder: Path, answer: int = 42) -> Path:
    """A small library: `answer()`, and `openmp()`, which says whether it was compiled with OpenMP."""
    path = folder / "small.cpp"
    openmp = "#ifdef _OPENMP\n  return 1;\n#endif\n  return 0;"
    path.write_text(f'extern "C" int answer() {{ return {answer}; }}\nextern "C" int openmp() {{\n{openmp}\n}}\n')
    return path


def fresh(path: Path) -> ctypes.CDLL:
    """Load as a new process would."""
    load_library.cache_clear()
    try:
        return load_library(path)
    finally:
        load_library.cache_clear()


def builds(calls: Path) -> list[str]:
    """The calls that were to compile something."""
    return [line for line in calls.read_text().splitlines() if "-shared" in line] if calls.exists() else []


# Where it is kept


def test_the_cache_folder_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("L2L_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine" / "kernels"
    monkeypatch.delenv("L2L_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "l2l_runner" / "kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / ".cache" / "l2l_runner" / "kernels"


@NEEDED
def test_it_is_compiled_once(tmp_path: Path, kernel_cache: Path, compiler: Callable[[str], Path]) -> None:
    calls = compiler('exec "$REAL" "$@"')
    path = source(tmp_path)
    assert fresh(path).answer() == 42
    assert fresh(path).answer() == 42
    assert len(builds(calls)) == 1
    assert [item.suffix for item in kernel_cache.iterdir()] == [".so"]  # and nothing else was left there


@NEEDED
def test_another_source_compiler_version_cpu_or_set_of_flags_is_another_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: Callable[..., Path]
) -> None:
    path = source(tmp_path)
    places = {library_prefix(path, find_compiler())}

    def note() -> None:
        place = library_prefix(path, find_compiler())
        assert place not in places
        places.add(place)

    source(tmp_path, answer=43)
    note()
    compiler('[ "$1" = --version ] && echo "version 1"')
    note()
    compiler('[ "$1" = --version ] && echo "version 2"')
    note()
    monkeypatch.setattr(build, "cpu_description", lambda: "another CPU")
    note()
    monkeypatch.setattr(build, "ATTEMPTS", ((),))
    note()
    note_again = library_prefix(path, find_compiler())
    assert note_again in places  # the same, the same place


@NEEDED
def test_a_changed_source_is_compiled_anew(tmp_path: Path, kernel_cache: Path) -> None:
    assert fresh(source(tmp_path, answer=1)).answer() == 1
    assert fresh(source(tmp_path, answer=2)).answer() == 2
    assert len(list(kernel_cache.iterdir())) == 2


@NEEDED
@pytest.mark.parametrize("content", [b"", b"no library", b"\x7fELF half of one", None])
def test_a_damaged_library_is_made_anew(tmp_path: Path, kernel_cache: Path, content: bytes | None) -> None:
    path = source(tmp_path)
    fresh(path)
    (library,) = kernel_cache.iterdir()
    whole = library.read_bytes()
    library.unlink()  # it is loaded into this process, which would not survive a change of the file itself
    library.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if content is None else content)  # None: one bit is flipped
    library.chmod(0o755)
    assert fresh(path).answer() == 42
    assert [item.read_bytes() for item in kernel_cache.iterdir()] == [whole]


@NEEDED
@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_a_library_that_others_can_change_is_not_loaded(
    tmp_path: Path, kernel_cache: Path, mode: int, compiler: Callable[[str], Path]
) -> None:
    calls, path = compiler('exec "$REAL" "$@"'), source(tmp_path)
    fresh(path)
    (library,) = kernel_cache.iterdir()
    library.chmod(mode)
    assert fresh(path).answer() == 42
    assert len(builds(calls)) == 2
    (replaced,) = kernel_cache.iterdir()
    assert not replaced.stat().st_mode & 0o022


@NEEDED
@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root can give a file to another user")
def test_a_library_of_another_user_is_not_loaded(
    tmp_path: Path, kernel_cache: Path, compiler: Callable[[str], Path]
) -> None:
    calls, path = compiler('exec "$REAL" "$@"'), source(tmp_path)
    fresh(path)
    (library,) = kernel_cache.iterdir()
    os.chown(library, 12345, 12345)
    assert fresh(path).answer() == 42
    assert len(builds(calls)) == 2


@NEEDED
def test_a_cache_that_others_can_write_into_is_refused(tmp_path: Path, kernel_cache: Path) -> None:
    kernel_cache.mkdir(parents=True)
    kernel_cache.chmod(0o777)
    with pytest.raises(BuildError, match=r"others can write into .*set L2L_CACHE=FOLDER"):
        fresh(source(tmp_path))
    kernel_cache.chmod(0o1777)  # as /tmp is: nobody can replace another's file
    assert fresh(source(tmp_path)).answer() == 42


@NEEDED
def test_what_killed_builds_left_is_removed(tmp_path: Path, kernel_cache: Path) -> None:
    for name in ("build-old", "build-new"):
        (kernel_cache / name).mkdir(parents=True)
    os.utime(kernel_cache / "build-old", (0, 0))
    fresh(source(tmp_path))
    assert not (kernel_cache / "build-old").exists()
    assert (kernel_cache / "build-new").exists()  # another process may be at it


# Compilers


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="no C\\+\\+ compiler is on the PATH"):
        find_compiler()
    monkeypatch.setenv("CXX", "nowhere/c++")
    with pytest.raises(BuildError, match="the compiler CXX=nowhere/c\\+\\+ is not there"):
        find_compiler()


@NEEDED
@pytest.mark.parametrize(
    ("refused", "openmp"), [("-fopenmp", 0), ("-march=native", None), ("=native", 0), ("-mcpu=native", None)]
)
def test_flags_that_a_compiler_refuses_are_left_out(
    tmp_path: Path, compiler: Callable[[str], Path], refused: str, openmp: int | None
) -> None:
    calls = compiler(f'case "$*" in *{refused}*) echo "error: no $1" >&2; exit 1;; esac\nexec "$REAL" "$@"')
    library = fresh(source(tmp_path))
    assert library.answer() == 42
    if openmp is not None:
        assert library.openmp() == openmp
    assert refused not in builds(calls)[-1]


def test_a_compiler_that_fails_is_quoted(tmp_path: Path, kernel_cache: Path, compiler: Callable[[str], Path]) -> None:
    calls = compiler("echo one >&2; echo 'small.cpp:1: error: no space left' >&2; exit 3")
    with pytest.raises(BuildError, match=r"could not compile small.cpp: small.cpp:1: error: no space left$"):
        fresh(source(tmp_path))
    assert len(builds(calls)) == len(build.ATTEMPTS)
    assert list(kernel_cache.iterdir()) == []


def test_a_compiler_that_dies_silently_is_quoted_too(tmp_path: Path, compiler: Callable[[str], Path]) -> None:
    compiler("exit 9")
    with pytest.raises(BuildError, match=r"could not compile small.cpp: exit code 9$"):
        fresh(source(tmp_path))


def test_a_compiler_that_cannot_be_run(tmp_path: Path, compiler: Callable[[str], Path]) -> None:
    compiler("exit 0")
    (tmp_path / "cxx").write_text("#!/nowhere/interpreter\n")
    with pytest.raises(BuildError, match="could not be run"):
        fresh(source(tmp_path))


def test_a_compiler_that_does_not_end(
    tmp_path: Path, compiler: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler('[ "$1" = --version ] || exec sleep 60')
    monkeypatch.setattr(build, "TIME_LIMIT", 0.2)
    with pytest.raises(BuildError, match="did not end within"):
        fresh(source(tmp_path))


@NEEDED
def test_a_compiler_with_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: Callable[[str], Path]
) -> None:
    calls = compiler('exec "$REAL" "$@"')
    monkeypatch.setenv("CXX", f"env LANG=C {tmp_path / 'cxx'} -DMINE")
    assert fresh(source(tmp_path)).answer() == 42
    assert builds(calls)[0].startswith("-DMINE ")


@NEEDED
def test_messages_of_the_compiler_do_not_depend_on_the_locale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: Callable[[str], Path]
) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    compiler('echo "error: locale $LC_ALL" >&2; exit 1')
    with pytest.raises(BuildError, match=r"error: locale C$"):
        fresh(source(tmp_path))


@NEEDED
def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("L2L_CACHE", str(tmp_path / "file"))
    with pytest.raises(BuildError, match=r"cannot hold a compiled library .*set L2L_CACHE=FOLDER"):
        fresh(source(tmp_path))
