"""What Windows does otherwise, simulated: files, names, memory, and consoles with few characters."""

import errno
import io
import os
import sys
from pathlib import Path, PosixPath

import numpy as np
import pytest
from PIL import Image

import repaint_jax as rp
from repaint_jax import files
from repaint_jax.cli.main import main
from repaint_jax.files import whole_file
from repaint_jax.folder.results import RECORD, name_length
from repaint_jax.folder.run import inpaint_folder
from repaint_jax.pictures.datasets import name_bytes
from repaint_jax.pictures.images import save_picture
from repaint_jax.sampling import devices


def test_a_file_is_flushed_through_a_handle_that_can_write(tmp_path: Path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def fsync_of_windows(descriptor: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(os, "fsync", fsync_of_windows)
    save_picture(Image.new("L", (2, 2), 7), tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").getpixel((0, 0)) == 7


def opened_by_another_program(monkeypatch, times: int) -> None:
    """Let renaming fail a few times, as while a viewer or a virus scanner has the file open."""
    refused = iter(range(times))

    def replace(path: Path, target: Path) -> None:
        if next(refused, None) is not None:
            raise PermissionError(errno.EACCES, "Access is denied", str(target))
        os.replace(path, target)

    monkeypatch.setattr(PosixPath if os.name == "posix" else type(Path()), "replace", replace)
    monkeypatch.setattr(files, "_ON_WINDOWS", True)
    monkeypatch.setattr(files, "_WAITS", (0.0, 0.0, 0.0))


def test_a_file_that_another_program_has_open_for_a_moment_is_replaced(tmp_path: Path, monkeypatch):
    opened_by_another_program(monkeypatch, 2)
    with whole_file(tmp_path / "a.txt") as unfinished:
        unfinished.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_that_stays_open_elsewhere_is_named(tmp_path: Path, monkeypatch):
    opened_by_another_program(monkeypatch, 9)
    (tmp_path / "a.txt").write_text("before")
    with pytest.raises(PermissionError, match=r"a\.txt"), whole_file(tmp_path / "a.txt") as unfinished:
        unfinished.write_text("whole")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "before")]


class Device:
    def __init__(self, statistics):
        self.memory_stats = lambda: statistics


def test_memory_is_asked_of_the_system_only_where_the_device_says_nothing(monkeypatch):
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert devices.memory_of_device(Device({"bytes_limit": 17})) == 17
    for statistics in (None, {}):
        with pytest.raises(
            NotImplementedError, match="bytes_limit is None, expected a number: this system"
        ):
            devices.memory_of_device(Device(statistics))
    state = rp.set_timesteps_for_budget(rp.create_state(), 8)
    model_fn = lambda params, sample, timestep: sample  # noqa: E731
    assert rp.largest_batch_size(state, model_fn, None, (4, 4, 1), bytes_limit=2**20) > 0


def test_the_memory_of_an_unknown_system_is_asked_for(monkeypatch):
    def sysconf(name: str) -> int:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", sysconf, raising=False)
    with pytest.raises(NotImplementedError, match="bytes_limit is None"):
        devices.memory_of_device(Device(None))


# Names


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Pictures whose names differ in case alone, and a mask for all."""
    for name in ("Photo.png", "photo.jpg", "other.png"):
        save_picture(Image.new("L", (8, 8), 100), tmp_path / "in" / name)
    if len(list((tmp_path / "in").iterdir())) < 3:
        pytest.skip("this file system ignores case")
    save_picture(Image.fromarray(np.eye(8, dtype=bool)), tmp_path / "mask.png")
    return tmp_path


def fill(pipe, work: Path, **options):
    schedule = {"num_model_calls": 8}
    return inpaint_folder(pipe, work / "in", work / "mask.png", work / "out", schedule=schedule, **options)


@pytest.mark.parametrize("official_layout", [False, True])
def test_results_that_a_file_system_without_case_would_merge_are_refused(pipe, work, official_layout):
    (work / "out").mkdir()
    (work / "out" / RECORD.upper()).symlink_to(work / "out" / RECORD)  # as if case were ignored
    message = r"images has Photo\.png and photo\.jpg, expected names that differ in more than case"
    with pytest.raises(ValueError, match=message):
        fill(pipe, work, official_layout=official_layout)
    assert not list((work / "out").rglob("*.png"))
    (work / "in" / "photo.jpg").unlink()
    assert fill(pipe, work, num_samples=2, official_layout=official_layout) == {}


def test_results_that_differ_in_case_are_written_where_case_counts(pipe, work):
    assert fill(pipe, work) == {}
    assert {path.name for path in (work / "out").glob("*.png")} == {"Photo.png", "photo.png", "other.png"}


def test_a_name_that_the_file_system_refuses_costs_only_that_picture(pipe, work, monkeypatch):
    (work / "in" / "photo.jpg").rename(work / "in" / "12:30.png")
    replace = Path.replace

    def replace_of_fat(path: Path, target: Path) -> None:
        if ":" in Path(target).name:
            raise OSError(errno.EINVAL, "Invalid argument", str(target))
        replace(path, target)

    monkeypatch.setattr(Path, "replace", replace_of_fat)
    failures = fill(pipe, work)
    assert failures == {
        "12:30.png": "the file system of the output refuses the name of its result, 12:30.png"
    }
    assert {path.name for path in (work / "out").glob("*.png")} == {"Photo.png", "other.png"}


posix_only = pytest.mark.skipif(os.name != "posix", reason="compares with the names of POSIX")


@posix_only
def test_names_are_measured_as_the_file_system_does(monkeypatch):
    assert name_length("photo ü") == 8
    monkeypatch.setattr("repaint_jax.folder.results.os", type("Windows", (), {"name": "nt"}))
    assert name_length("写真") == 2
    assert name_length("\udc80") == 1, "half of a character"


@posix_only
def test_the_bytes_of_a_name_are_the_same_on_all_systems(monkeypatch):
    for name in ("photo ü.png", "写真.png"):
        assert name_bytes(name) == name.encode()
    assert name_bytes("\udc80") == b"\x80"
    monkeypatch.setattr("repaint_jax.pictures.datasets.os", type("Windows", (), {"name": "nt"}))
    assert name_bytes("photo ü.png") == "photo ü.png".encode()
    assert name_bytes("\ud800") == b"\xed\xa0\x80"


# Consoles


@pytest.mark.parametrize("encoding", ["ascii", "cp437"])
def test_a_console_that_lacks_a_character_shows_another(model_folder, tmp_path, monkeypatch, encoding):
    consoles = [io.TextIOWrapper(io.BytesIO(), encoding, newline="\n") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", consoles[0])
    monkeypatch.setattr(sys, "stderr", consoles[1])
    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8)).save("写真.png")
    words = [
        "inpaint",
        "写真.png",
        "half",
        "-o",
        "±.png",
        "--model",
        str(model_folder),
        "--model-calls",
        "8",
    ]
    assert main(words) == 0
    assert main(["inpaint", "无.png", *words[2:]]) == 2
    written, errors = (
        console.buffer.getvalue().decode(encoding) for console in consoles if not console.flush()
    )
    assert written == f"wrote {'?' if encoding == 'ascii' else '±'}.png\n"
    assert errors.endswith("repaint-jax inpaint: ?.png does not exist\n")
