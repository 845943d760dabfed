"""A folder of pictures: the same files whatever happens, and what is wrong with one costs only that one."""

import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import icc_profiles as profiles
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import repaint_jax as rp
from repaint_jax.cli.main import main
from repaint_jax.folder.chains import ChainRunner
from repaint_jax.folder.run import inpaint_folder
from repaint_jax.models.guidance import Classifier
from repaint_jax.pictures.plots import HOLE_COLOUR

NUM_PICTURES = 7
CALLS = 8
BATCH_SIZE = 2


@pytest.fixture(scope="module")
def pipe(model_folder) -> rp.RePaintPipeline:
    return rp.RePaintPipeline.from_pretrained(model_folder)


@pytest.fixture
def work(tmp_path) -> Path:
    """Pictures `in` and `masks`, in a folder and below it, with spaces and unicode in their names."""
    rng = np.random.default_rng(0)
    for index in range(NUM_PICTURES):
        name = f"photo {index} ü" if index % 2 else f"deeper/{index}.v2"
        hole = np.where(rng.random((8, 8)) < 0.5, 0, 255)
        for kind, pixels in (("in", rng.integers(0, 256, (8, 8))), ("masks", hole)):
            path = tmp_path / kind / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return tmp_path


SETTINGS = {"schedule": {"num_model_calls": CALLS}, "batch_size": BATCH_SIZE}


def run(pipe, work: Path, output: str, **options) -> dict[str, str]:
    options = {**SETTINGS, **options}
    return inpaint_folder(pipe, work / "in", work / "masks", work / output, **options)


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "repaint.json"
    }


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


# What it writes


def test_results_stand_under_their_pictures_names_with_known_pixels_as_they_were(pipe, work):
    assert run(pipe, work, "out") == {}
    names = {path.relative_to(work / "in").as_posix() for path in (work / "in").rglob("*.png")}
    assert set(files_below(work / "out")) == names and len(names) == NUM_PICTURES
    for name in names:
        known = pixels(work / "masks" / name) == 255
        result, original = pixels(work / "out" / name), pixels(work / "in" / name)
        np.testing.assert_array_equal(result[known], original[known])
        assert (result != original).any()


def test_several_samples_are_numbered_and_differ(pipe, work):
    run(pipe, work, "out", num_samples=3)
    written = files_below(work / "out")
    assert len(written) == 3 * NUM_PICTURES
    assert len({written[f"photo 1 ü-{sample}.png"] for sample in (1, 2, 3)}) == 3


def test_a_result_does_not_depend_on_the_other_pictures_or_the_batch_size(pipe, work):
    run(pipe, work, "out")
    (work / "in" / "aaa.png").write_bytes((work / "in" / "photo 1 ü.png").read_bytes())
    (work / "masks" / "aaa.png").write_bytes((work / "masks" / "photo 1 ü.png").read_bytes())
    run(pipe, work, "more", batch_size=3)
    for name in files_below(work / "out"):
        ours, theirs = (pixels(work / output / name).astype(int) for output in ("out", "more"))
        assert abs(ours - theirs).max() <= 1, "only the rounding of the network's arithmetic may differ"
    assert (pixels(work / "more" / "aaa.png") != pixels(work / "more" / "photo 1 ü.png")).any()


def test_pictures_of_any_size_are_filled_window_by_window_and_resumed(pipe, work):
    rng = np.random.default_rng(1)
    for name, (height, width) in {
        "photo 1 ü": (40, 60),
        "photo 3 ü": (5, 90),
        "deeper/0.v2": (1, 1),
    }.items():
        hole = np.full((height, width), 255, np.uint8)
        hole[height // 2, ::9] = hole[: height // 4, : width // 4] = 0
        for kind, array in (("in", rng.integers(0, 256, (height, width), np.uint8)), ("masks", hole)):
            Image.fromarray(array).save(work / kind / f"{name}.png")
    options = {"fit": "crop", "num_samples": 2, "checkpoint_every": 3}
    assert run(pipe, work, "out", **options) == {}
    written = files_below(work / "out")
    assert len(written) == 2 * NUM_PICTURES
    for name in ("photo 1 ü", "photo 3 ü", "deeper/0.v2"):
        result, original = pixels(work / "out" / f"{name}-2.png"), pixels(work / "in" / f"{name}.png")
        known = pixels(work / "masks" / f"{name}.png") == 255
        np.testing.assert_array_equal(result[known], original[known])
        assert result.size < 100 or (result != original)[~known].any()
    (work / "out" / "photo 1 ü-2.png").unlink()
    assert run(pipe, work, "out", **options) == {}
    assert files_below(work / "out") == written
    with pytest.raises(ValueError, match="fit is 'crop' there and 'exact' here"):
        run(pipe, work, "out", num_samples=2, checkpoint_every=3)


def test_a_sheet_shows_pictures_of_any_size_with_their_holes_and_results(pipe, work):
    Image.new("L", (70, 30), 90).save(work / "in" / "photo 1 ü.png")
    Image.new("L", (70, 30), 0).save(work / "masks" / "photo 1 ü.png")
    (work / "in" / "photo 5 ü.png").write_bytes(b"no picture")
    run(pipe, work, "out", fit="crop", num_samples=2, sheet=work / "sheet.png")
    sheet = np.asarray(Image.open(work / "sheet.png"))
    rows = NUM_PICTURES - 1  # each has its hole and two results, of 160 pixels with a margin of 6
    assert sheet.shape[0] == 24 + rows * 166
    hole = sheet[24:184, -3 * 166 : -2 * 166]
    assert (hole == HOLE_COLOUR).all(-1).mean() > 0.1


def test_colour_profiles_stay_with_the_results(pipe, work):
    picture = work / "in" / "photo 1 ü.png"
    with Image.open(picture) as image:
        image.load()
    image.save(picture, icc_profile=profiles.LINEAR_GREY)
    run(pipe, work, "out", official_layout=True)
    kept = profiles.LINEAR_GREY
    for kind, profile in (("inpainted", kept), ("gt", kept), ("gt_keep_mask", None)):
        assert Image.open(work / "out" / kind / picture.name).info.get("icc_profile") == profile
    assert "icc_profile" not in Image.open(work / "out" / "inpainted" / "photo 3 ü.png").info


def transparent_picture(work: Path) -> np.ndarray:
    """Make a picture partly transparent, and return its alpha channel."""
    path = work / "in" / "photo 1 ü.png"
    alpha = np.where(np.indices((8, 8)).sum(0) % 2, 255, 0).astype(np.uint8)
    picture = Image.fromarray(np.zeros((8, 8), np.uint8))
    picture.putalpha(Image.fromarray(alpha))
    picture.save(path)
    return alpha


def test_transparency_becomes_white_or_another_colour_and_comes_back_on_request(pipe, work):
    alpha = transparent_picture(work)
    known = pixels(work / "masks" / "photo 1 ü.png") == 255
    run(pipe, work, "white", official_layout=True)
    assert (pixels(work / "white" / "inpainted" / "photo 1 ü.png") == 255 - alpha)[known].all()
    run(pipe, work, "kept", background="#808080", keep_alpha=True, official_layout=True)
    result = pixels(work / "kept" / "inpainted" / "photo 1 ü.png")
    assert (result[..., 0] == np.where(alpha, 0, 128))[known].all()
    np.testing.assert_array_equal(result[..., 1], alpha)
    assert pixels(work / "kept" / "gt" / "photo 1 ü.png").shape == (8, 8)
    assert pixels(work / "kept" / "inpainted" / "photo 3 ü.png").shape == (8, 8)


def test_a_second_run_on_another_background_is_refused(pipe, work):
    run(pipe, work, "out")
    assert run(pipe, work, "out", background=(255, 255, 255)) == {}, "the same colour"
    message = "holds results of other settings: background is '#ffffff' there and '#000000' here"
    with pytest.raises(ValueError, match=message):
        run(pipe, work, "out", background="black")
    with pytest.raises(ValueError, match="other settings: keep_alpha is False there and True here"):
        run(pipe, work, "out", keep_alpha=True)
    with pytest.raises(ValueError, match="background is 'no', expected an opaque colour"):
        run(pipe, work, "out", background="no")


def test_numbers_may_be_numpys(pipe, work):
    run(pipe, work, "out")
    numpys = {"schedule": {"num_model_calls": np.int64(CALLS)}, "batch_size": np.int64(BATCH_SIZE)}
    assert run(pipe, work, "out", **numpys, seed=np.uint32(0)) == {}


def test_one_mask_for_all(pipe, work):
    only = work / "only.png"
    shutil.copy(work / "masks" / "photo 1 ü.png", only)
    assert inpaint_folder(pipe, work / "in", only, work / "out", schedule={"num_model_calls": CALLS}) == {}
    assert len(files_below(work / "out")) == NUM_PICTURES


def test_a_mask_whose_name_has_another_unicode_form_is_found(pipe, work):
    """macOS writes "ü" as a "u" and a mark, other systems as one character."""
    composed = work / "masks" / unicodedata.normalize("NFC", "photo 1 ü.png")
    composed.rename(work / "masks" / unicodedata.normalize("NFD", composed.name))
    assert run(pipe, work, "out") == {}
    assert len(files_below(work / "out")) == NUM_PICTURES


def test_holes_grow_and_results_fade_as_in_the_pipeline(pipe, work):
    run(pipe, work, "grown", grow_mask=1)
    run(pipe, work, "soft", feather=1, official_layout=True)
    for name in files_below(work / "grown"):
        hole = pixels(work / "masks" / name) == 0
        larger = np.pad(hole, 1)
        near = np.any([larger[i : i + 8, j : j + 8] for i in range(3) for j in range(3)], axis=0)
        original, filling = pixels(work / "in" / name), pixels(work / "grown" / name)
        np.testing.assert_array_equal(filling[~near], original[~near])
        soft = pixels(work / "soft" / "inpainted" / name)
        weights = np.where(hole, 0, np.where(near, 0.5, 1))
        np.testing.assert_allclose(soft, weights * original + (1 - weights) * filling, atol=1)
        np.testing.assert_array_equal(soft[~near], original[~near])
        np.testing.assert_array_equal(pixels(work / "soft" / "gt_keep_mask" / name) == 0, near)
    message = "holds results of other settings: grow_mask is 1 there and 2 here"
    with pytest.raises(ValueError, match=message):
        run(pipe, work, "grown", grow_mask=2)


def inpaint_with(pipe, work: Path, masks: str, output: str, **options) -> dict[str, str]:
    return inpaint_folder(pipe, work / "in", masks, work / output, **SETTINGS, **options)


def test_a_mask_may_be_described_for_every_picture(pipe, work):
    names = [path.relative_to(work / "in").as_posix() for path in (work / "in").rglob("*.png")]
    for words, known in (("half", np.s_[:, :4]), ("box=0,0,8,2", np.s_[2:])):
        assert inpaint_with(pipe, work, words, words) == {}
        for name in names:
            result, original = pixels(work / words / name), pixels(work / "in" / name)
            np.testing.assert_array_equal(result[known], original[known])
            assert (result != original).any()
    assert json.loads((work / "half" / "repaint.json").read_text())["settings"]["masks"] == "half"


def test_a_random_mask_is_another_one_for_each_picture_and_the_same_in_each_run(pipe, work):
    for output, batch_size in (("out", 2), ("again", 3)):
        inpaint_folder(
            pipe,
            work / "in",
            "wide",
            work / output,
            schedule=SETTINGS["schedule"],
            batch_size=batch_size,
            official_layout=True,
        )
    masks_of_runs = [files_below(work / output / "gt_keep_mask") for output in ("out", "again")]
    assert masks_of_runs[0] == masks_of_runs[1]
    assert len(set(masks_of_runs[0].values())) > NUM_PICTURES // 2


def test_pictures_are_outpainted(pipe, work):
    for path in (work / "in").rglob("*.png"):
        Image.open(path).crop((0, 0, 5, 8)).save(path)
    assert inpaint_with(pipe, work, "outpaint=1,0,2,0", "out", feather=1) == {}
    for name in files_below(work / "out"):
        result, original = pixels(work / "out" / name), pixels(work / "in" / name)
        np.testing.assert_array_equal(result[:, 2:5], original[:, 1:4], "but for the columns that fade")
        assert result.shape == (8, 8)


def test_masks_may_be_transparent_painted_coloured_and_inverted(pipe, work, unbroken):
    for name in files_below(work / "masks"):
        known, original = pixels(work / "masks" / name), pixels(work / "in" / name)
        colours = np.stack([np.where(known, original, 255), *[np.where(known, original, 0)] * 2], -1)
        inverse = np.where(known, 0, 255).astype(np.uint8)
        for kind, picture in (
            ("erased", np.dstack([original, known])),
            ("red", colours),
            ("inverse", inverse),
        ):
            (work / kind / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.astype(np.uint8)).save(work / kind / name)
    for number, (words, options) in enumerate(
        (
            (f"alpha={work / 'erased'}", {}),
            (f"painted={work / 'red'}", {}),
            (str(work / "red"), {"mask_colour": "red"}),
            (work / "inverse", {"invert_mask": True}),
        )
    ):
        failures = inpaint_with(pipe, work, words, f"{number}", **options)
        assert failures == {}
        assert files_below(work / f"{number}") == unbroken
    with pytest.raises(
        ValueError, match="other settings: mask_colour is '#ff0000' there and '#0000ff' here"
    ):
        inpaint_with(pipe, work, str(work / "red"), "2", mask_colour="blue")


def test_a_folder_of_the_name_of_a_mask_is_a_folder(pipe, work, unbroken, monkeypatch):
    monkeypatch.chdir(work)
    (work / "masks").rename(work / "half")
    assert inpaint_with(pipe, work, "half", "out") == {}
    assert files_below(work / "out") == unbroken


def test_pictures_are_resized_with_their_masks_on_request(pipe, work):
    for kind in ("in", "masks"):
        Image.new("L", (20, 30), 255).save(work / kind / "large.png")
    assert list(run(pipe, work, "out")) == ["large.png"]
    assert run(pipe, work, "resized", fit="resize") == {}
    assert Image.open(work / "resized" / "large.png").size == (8, 8)


def test_the_official_layout(pipe, work):
    run(pipe, work, "out", official_layout=True, num_samples=2)
    written = files_below(work / "out")
    kinds = {name.split("/")[0] for name in written}
    assert kinds == {"inpainted", "gt", "gt_masked", "gt_keep_mask"}
    assert len(written) == (2 + 3) * NUM_PICTURES
    original, mask = pixels(work / "in" / "photo 1 ü.png"), pixels(work / "masks" / "photo 1 ü.png")
    np.testing.assert_array_equal(pixels(work / "out/gt/photo 1 ü.png"), original)
    np.testing.assert_array_equal(pixels(work / "out/gt_keep_mask/photo 1 ü.png"), mask)
    np.testing.assert_array_equal(
        pixels(work / "out/gt_masked/photo 1 ü.png"), np.where(mask == 255, original, 0)
    )


# The same files


@pytest.fixture
def unbroken(pipe, work) -> dict[str, bytes]:
    run(pipe, work, "unbroken")
    return files_below(work / "unbroken")


def test_a_second_run_makes_only_what_is_missing(pipe, work, unbroken):
    output = work / "unbroken"
    lost = output / "photo 3 ü.png"
    lost.unlink()
    kept = {path: path.stat().st_mtime_ns for path in output.rglob("*.png")}
    run(pipe, work, "unbroken")
    assert files_below(output) == unbroken
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_second_run_computes_nothing_for_pictures_that_stay_broken(pipe, work, monkeypatch):
    (work / "in" / "text.png").write_text("no picture")
    assert list(run(pipe, work, "out")) == ["text.png"]
    monkeypatch.setattr("repaint_jax.folder.chains.continue_chain", None)
    assert list(run(pipe, work, "out")) == ["text.png"]


def test_saved_chains_change_nothing_and_are_gone_at_the_end(pipe, work, unbroken):
    run(pipe, work, "saved", checkpoint_every=3)
    assert files_below(work / "saved") == unbroken
    assert not (work / "saved" / ".chains").exists()


def test_a_chain_resumes_where_it_was_saved(pipe, work, unbroken, monkeypatch):
    monkeypatch.setattr("repaint_jax.folder.chains.continue_chain", interrupted_after([], 2))
    with pytest.raises(KeyboardInterrupt):
        run(pipe, work, "saved", checkpoint_every=3)
    assert list((work / "saved" / ".chains").glob("*.npz"))
    resumed: list[int] = []  # a new list: the interrupted thread may still add to the first
    monkeypatch.setattr("repaint_jax.folder.chains.continue_chain", interrupted_after(resumed, 1000))
    run(pipe, work, "saved", checkpoint_every=3)
    assert sum(resumed) < CALLS * 4, "all four batches from the start"
    assert files_below(work / "saved") == unbroken


def interrupted_after(calls: list[int], stretches: int):
    def continue_chain(*arguments, **options):
        if len(calls) == stretches:
            raise KeyboardInterrupt
        calls.append(arguments[-1])
        return rp.continue_chain(*arguments, **options)

    return continue_chain


def test_a_chain_of_other_pictures_is_not_resumed(pipe, work, unbroken, monkeypatch):
    late = work / "in" / "deeper" / "0.v2.png"
    late.rename(work / "late.png")
    monkeypatch.setattr("repaint_jax.folder.chains.continue_chain", interrupted_after([], 2))
    with pytest.raises(KeyboardInterrupt):
        run(pipe, work, "saved", checkpoint_every=3)
    monkeypatch.undo()
    (work / "late.png").rename(late)
    run(pipe, work, "saved", checkpoint_every=3)
    assert files_below(work / "saved") == unbroken


@pytest.mark.parametrize("damage", [b"", b"garbage", "cut", "other arrays"])
def test_a_damaged_chain_starts_anew(pipe, work, unbroken, monkeypatch, damage):
    monkeypatch.setattr("repaint_jax.folder.chains.continue_chain", interrupted_after([], 2))
    with pytest.raises(KeyboardInterrupt):
        run(pipe, work, "saved", checkpoint_every=3)
    monkeypatch.undo()
    (saved,) = (work / "saved" / ".chains").glob("*.npz")
    if damage == "other arrays":
        np.savez(saved, np.zeros(3))
    else:
        saved.write_bytes(saved.read_bytes()[:300] if damage == "cut" else damage)
    run(pipe, work, "saved", checkpoint_every=3)
    assert files_below(work / "saved") == unbroken


def test_files_of_others_among_the_chains_stay_there(pipe, work):
    run(pipe, work, "out")
    foreign = work / "out" / ".chains" / ".nfs0001"
    foreign.parent.mkdir()
    foreign.write_text("theirs")
    run(pipe, work, "out", checkpoint_every=3)
    assert foreign.read_text() == "theirs"


def test_an_empty_result_is_made_again(pipe, work, unbroken):
    (work / "unbroken" / "photo 3 ü.png").write_bytes(b"")
    run(pipe, work, "unbroken")
    assert files_below(work / "unbroken") == unbroken


def test_results_do_not_depend_on_the_default_kind_of_keys(pipe, work, unbroken):
    usual = jax.config.jax_default_prng_impl
    jax.config.update("jax_default_prng_impl", "rbg")  # of all threads, as in the environment
    try:
        run(pipe, work, "rbg")
    finally:
        jax.config.update("jax_default_prng_impl", usual)
    assert files_below(work / "rbg") == unbroken


def test_processes_share_the_work(pipe, work, unbroken):
    for index in range(3):
        run(pipe, work, "shared", process_index=index, process_count=3)
    assert files_below(work / "shared") == unbroken


def command(model_folder: Path, work: Path, output: str, *options: object, devices: int = 1):
    words = ["folder", work / "in", work / "masks", work / output, "--model", model_folder]
    words += ["--model-calls", CALLS, "--batch-size", BATCH_SIZE, *options]
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(work / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "repaint_jax", *map(str, words)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> str:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return errors


@pytest.mark.slow
def test_eight_devices_write_what_one_does(model_folder, work, unbroken):
    errors = finish(command(model_folder, work, "eight", devices=8))
    assert files_below(work / "eight") == unbroken
    assert "picture" not in errors, "no progress bar where there is no terminal"


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_processes_under_jax_distributed_write_what_one_does(model_folder, work, unbroken, count):
    port = 20_000 + os.getpid() % 20_000 + count
    hosts = ("--coordinator", f"localhost:{port}", "--num-processes", count, "--process-id")
    processes = [command(model_folder, work, "hosts", *hosts, index) for index in range(count)]
    for process in processes:
        finish(process)
    assert files_below(work / "hosts") == unbroken


@pytest.mark.slow
def test_started_twice_by_mistake(model_folder, work, unbroken):
    for process in [command(model_folder, work, "twice", "--checkpoint-every", 3) for _ in range(2)]:
        finish(process)
    assert files_below(work / "twice") == unbroken


@pytest.mark.slow
def test_interrupted_it_ends_at_once_and_goes_on_later(model_folder, pipe, work):
    run(pipe, work, "unbroken", num_samples=12)
    options = ("--num-samples", 12, "--checkpoint-every", 1)
    # Where tests run in the background SIGINT is ignored, and processes inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = command(model_folder, work, "out", *options)
    while not list((work / "out").rglob("[!.]*.png")):
        assert process.poll() is None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors == "repaint-jax folder: interrupted; the same command resumes it\n"
    finish(command(model_folder, work, "out", *options))
    assert files_below(work / "out") == files_below(work / "unbroken")


@pytest.mark.slow
def test_killed_at_twenty_moments_it_ends_with_the_same_files(model_folder, pipe, work):
    run(pipe, work, "unbroken", num_samples=12)
    unbroken = files_below(work / "unbroken")
    options = ("--num-samples", 12, "--checkpoint-every", 2)
    finish(command(model_folder, work, "compiles", *options))
    process = command(model_folder, work, "timed", *options)
    seconds = -until_it_works(process, work / "timed")
    finish(process)
    seconds += time.monotonic()
    moments = random.Random(0)
    found = set()
    for attempt in range(20):
        output = work / f"killed {attempt}"
        process = command(model_folder, work, output.name, *options)
        until_it_works(process, output)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds * moments.uniform(0, 1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        visible = list(output.rglob("[!.]*.png"))
        found.add(len(visible))
        for path in visible:
            assert path.read_bytes() == unbroken[path.relative_to(output).as_posix()]
        finish(command(model_folder, work, output.name, *options))
        assert files_below(output) == unbroken
    assert len(found) > 5, "most were killed in the middle"


def until_it_works(process: "subprocess.Popen[str]", output: Path) -> float:
    """Wait until the record of the run is there, and return the time."""
    while not (output / "repaint.json").exists():
        assert process.poll() is None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.01)
    return time.monotonic()


# What is wrong with a picture costs only that picture


def test_broken_pictures_are_reported_and_cost_only_themselves(model_folder, pipe, work, unbroken, capsys):
    whole = (work / "in" / "photo 1 ü.png").read_bytes()
    (work / "in" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (work / "in" / "text.png").write_text("no picture")
    Image.new("L", (1, 1)).save(work / "in" / "tiny.png")
    Image.new("1", (20_000, 20_000)).save(work / "in" / "bomb.png")
    for name in ("maskless", "small mask"):
        shutil.copy(work / "in" / "photo 1 ü.png", work / "in" / f"{name}.png")
    for name in ("cut", "text", "tiny", "bomb"):
        shutil.copy(work / "masks" / "photo 1 ü.png", work / "masks" / f"{name}.png")
    Image.new("L", (9, 8)).save(work / "masks" / "small mask.png")
    words = ["folder", work / "in", work / "masks", work / "out", "--model", model_folder]
    assert main(list(map(str, [*words, "--model-calls", CALLS, "--batch-size", BATCH_SIZE]))) == 1
    errors = capsys.readouterr().err.splitlines()
    for name, reason in {
        "cut.png": "is not a picture that can be read",
        "text.png": "is not a picture that can be read",
        "tiny.png": "image has shape (1, 1, 1), expected the model's (8, 8, 1)",
        "bomb.png": "exceeds limit",
        "maskless.png": "there is no mask of the same name",
        "small mask.png": "mask has shape (8, 9, 1), expected (8, 8, 1)",
    }.items():
        about = [line for line in errors if line.startswith(f"repaint-jax folder: {name}: ")]
        assert len(about) == 1 and reason in about[0]
    written = files_below(work / "out")
    assert set(written) == set(unbroken)


def test_results_that_are_not_finite_are_not_written(pipe, work):
    broken = rp.RePaintPipeline(lambda p, x, t: x * jnp.nan, None, pipe.state, pipe.image_shape)
    failures = run(broken, work, "out")
    assert set(failures.values()) == {"sample 1 has values that are not finite"}
    assert files_below(work / "out") == {}


@pytest.mark.skipif(os.name != "posix", reason="Windows limits whole paths")
def test_a_name_that_is_too_long_costs_only_that_picture(pipe, work, unbroken):
    longest = 251 * "x"
    for kind in ("in", "masks"):
        shutil.copy(work / kind / "photo 1 ü.png", work / kind / f"{longest}.png")
    assert list(run(pipe, work, "out", num_samples=2)) == [f"{longest}.png"]
    assert len(files_below(work / "out")) == 2 * len(unbroken)
    assert run(pipe, work, "single") == {}


def test_folders_are_no_pictures(pipe, work):
    (work / "in" / "folder.png").mkdir()
    assert run(pipe, work, "out") == {}


def test_labels_that_the_classifier_does_not_know_are_refused(pipe, work):
    classifier = Classifier(lambda params, sample, timestep: sample, None, 5)
    for label in (5, -1, 99_999_999_999):
        with pytest.raises(ValueError, match=f"class_label is {label}, expected labels from 0 to 4"):
            run(dataclasses.replace(pipe, classifier=classifier), work, "out", class_label=label)


def test_results_without_their_settings_are_refused(pipe, work):
    run(pipe, work, "out")
    (work / "out" / "repaint.json").unlink()
    with pytest.raises(ValueError, match=r"holds results without their settings in repaint\.json"):
        run(pipe, work, "out")


def test_settings_without_results_are_replaced(pipe, work):
    broken = rp.RePaintPipeline(lambda p, x, t: x * jnp.nan, None, pipe.state, pipe.image_shape)
    run(broken, work, "out", seed=1)
    assert run(pipe, work, "out") == {}


def test_results_of_other_weights_are_refused(pipe, work):
    run(pipe, work, "out")
    other = dataclasses.replace(pipe, params=jax.tree.map(lambda leaf: 1.01 * leaf, pipe.params))
    with pytest.raises(ValueError, match="holds results of other settings: digest of the model is"):
        run(other, work, "out")


def test_a_second_run_with_other_settings_is_refused(pipe, work):
    run(pipe, work, "out")
    with pytest.raises(ValueError, match="holds results of other settings: seed is 0 there and 1 here"):
        run(pipe, work, "out", seed=1)
    path = work / "out" / "repaint.json"
    record = json.loads(path.read_text())
    absent = {name: value for name, value in record["settings"].items() if value is not None}
    assert absent != record["settings"]
    path.write_text(json.dumps(record | {"settings": absent}))
    assert run(pipe, work, "out") == {}
    assert record["settings"]["num_model_calls"] == CALLS
    assert record["versions"]["jax"] == jax.__version__


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": "nowhere"}, "images is .*nowhere, which is not a folder"),
        ({"images": "empty"}, "images is .*empty, which holds no pictures"),
        ({"masks": "nowhere"}, "masks is .*nowhere, which is neither a picture nor a folder"),
        ({"masks": "text.png"}, "text.png is not a picture that can be read"),
        ({"masks": "in/masks"}, "masks is .*masks, expected it outside images"),
        ({"masks": "in"}, "masks is .*in, expected it outside images"),
        (
            {"masks": "others"},
            "masks is .*others, which holds no mask for any picture, such as deeper/0.v2.png",
        ),
        ({"output": "in/out"}, "output is .*out, expected a folder outside images"),
        ({"output": "masks"}, "output is .*masks, expected a folder outside masks"),
        ({"num_samples": 0}, "num_samples is 0, expected an integer of at least 1"),
        ({"batch_size": 0}, "batch_size is 0, expected an integer of at least 1"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0, expected an integer of at least 1"),
        (
            {"process_index": 2, "process_count": 2},
            "process_index is 2, expected less than process_count=2",
        ),
        ({"schedule": {"num_model_calls": 7}}, "num_model_calls is 7, expected an integer of at least 8"),
        ({"class_label": 1}, "class_labels is .*, but the model is not class-conditional"),
        ({"feather": -1}, "feather is -1, expected an integer of at least 0"),
        ({"mask_colour": "reed"}, "mask_colour is 'reed', expected an opaque colour"),
    ],
)
def test_what_is_refused_before_anything_is_computed(pipe, work, changed, message):
    for name in ("empty", "in/masks", "others"):
        (work / name).mkdir()
    (work / "text.png").write_text("no picture")
    Image.new("L", (8, 8)).save(work / "others" / "other.png")
    before = [*work.rglob("*")]
    folders = {name: work / changed.pop(name, default) for name, default in FOLDERS.items()}
    with pytest.raises(ValueError, match=message):
        inpaint_folder(pipe, *folders.values(), **changed)
    assert [*work.rglob("*")] == before


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        ("outpaint=1,2,3", {}, "mask is outpaint=1,2,3, expected outpaint=LEFT,TOP,RIGHT,BOTTOM in pixels"),
        ("outpaint=0,0,0,0", {}, "left, top, right, bottom are 0, expected at least one of them above 0"),
        ("outpaint=1,1,1,1", {"invert_mask": True}, "invert_mask is True and mask is outpaint=1,1,1,1"),
        ("half", {"mask_colour": "red"}, "mask_colour is red and mask is half, expected a picture"),
        ("painted=nowhere", {}, "masks is painted=nowhere, which is neither a picture nor a folder"),
        ("halves", {}, "masks is halves, which is neither a picture nor a folder"),
    ],
)
def test_descriptions_of_masks_that_are_refused_before_anything_is_computed(
    pipe, work, words, options, message
):
    with pytest.raises(ValueError, match=message):
        inpaint_with(pipe, work, words, "out", **options)
    assert not (work / "out").exists()


FOLDERS = {"images": "in", "masks": "masks", "output": "out"}


def test_results_do_not_go_among_the_pictures_and_masks(pipe, work):
    (work / "out").mkdir()
    pictures, mask = work / "out" / "gt", work / "out" / "photo 1 ü.png"
    (work / "in").rename(pictures)
    shutil.copy(work / "masks" / mask.name, mask)
    with pytest.raises(ValueError, match=r"output is .*out, expected a folder outside images"):
        inpaint_folder(pipe, pictures, work / "masks", work / "out", official_layout=True)
    with pytest.raises(ValueError, match=r"output is .*out, expected a folder outside masks"):
        inpaint_folder(pipe, pictures, mask, work / "out")


TWO = ("--num-processes", 2, "--process-id")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--num-processes", 4), "--num-processes is 4 and --process-id is None, expected both or neither"),
        (
            ("--num-processes", 4, "--process-id", 4),
            "--process-id is 4, expected from 0 to 3",
        ),
        (
            ("--num-processes", 0, "--process-id", 0),
            "--num-processes is 0, expected an integer of at least 1",
        ),
        (("--coordinator", "foo", *TWO, 0), "--coordinator is foo, expected HOST:PORT"),
        (
            ("--coordinator", "localhost:70000", *TWO, 0),
            "--coordinator is localhost:70000, expected HOST:PORT",
        ),
        (
            ("--coordinator", "localhost:1"),
            "--coordinator is localhost:1, expected --num-processes and --process-id with it",
        ),
        (("--seed", -1), "--seed is -1, expected an integer from 0 to 2**32 - 1"),
    ],
)
def test_options_that_do_not_fit(model_folder, work, options, message, capsys):
    words = ["folder", work / "in", work / "masks", work / "out", "--model", model_folder, *options]
    assert main(list(map(str, words))) == 2
    assert capsys.readouterr().err == f"repaint-jax folder: {message}\n"


def test_two_pictures_of_one_name_are_refused(pipe, work):
    Image.new("L", (8, 8)).save(work / "in" / "photo 1 ü.jpg")
    with pytest.raises(ValueError, match="expected names that differ before their suffix"):
        run(pipe, work, "out")


# What is wrong with the disk or the device


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files as POSIX does")
def test_a_full_disk_ends_the_run_with_one_sentence(model_folder, work):
    limited = "import resource, signal, sys; from repaint_jax.cli.main import main; "
    limited += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); sys.exit(main(sys.argv[1:]))"
    (work / "out").mkdir()
    words = ["folder", work / "in", work / "masks", work / "out", "--model", model_folder]
    done = subprocess.run(
        [sys.executable, "-c", limited, *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("repaint-jax folder: ") and done.stderr.count("\n") == 1
    assert files_below(work / "out") == {}


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of its own, with room for the record and a few results."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20k", "tmpfs", disk], check=False)
    if mounted.returncode:
        pytest.skip("this user may not mount a file system")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_a_disk_that_fills_up_or_becomes_read_only_loses_nothing(pipe, work, unbroken, small_disk, trouble):
    output = small_disk / "out"
    if trouble == "read-only":
        inpaint_folder(pipe, work / "in", work / "masks", output, **SETTINGS, process_count=4)
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    before = files_below(small_disk)
    with pytest.raises(OSError, match={"full": "No space left", "read-only": "Read-only"}[trouble]):
        inpaint_folder(pipe, work / "in", work / "masks", output, **SETTINGS)
    after = files_below(output)
    assert set(before) <= {f"out/{name}" for name in after}
    assert all(unbroken[name] == content for name, content in after.items())
    subprocess.run(["mount", "-o", "remount,rw,size=1m", small_disk], check=True)
    assert inpaint_folder(pipe, work / "in", work / "masks", output, **SETTINGS) == {}
    assert files_below(output) == unbroken


def test_an_output_that_is_a_file_is_refused(model_folder, work, capsys):
    (work / "out").write_text("mine")
    words = ["folder", work / "in", work / "masks", work / "out", "--model", model_folder]
    assert main(list(map(str, words))) == 2
    assert capsys.readouterr().err.startswith("repaint-jax folder: ")
    assert (work / "out").read_text() == "mine"


@pytest.mark.slow
def test_too_large_batches_are_halved_until_they_fit(work):
    def greedy(params, sample, timestep):  # 8 rows would take 2 TiB, 4 a quarter of a GiB
        heap = jnp.arange(len(sample) ** 13, dtype=jnp.float32) * sample[0, 0, 0, 0]
        return sample + 0 * (heap @ jnp.sin(heap))

    state = rp.set_timesteps_for_budget(rp.create_state(), 8)
    chains = ChainRunner(state, lambda rows: (greedy, None), 8, None, work)
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (8, 4, 4, 1)).astype(np.float32)
    masks = np.zeros_like(images)
    keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(0), 8)))
    expected = rp.inpaint(
        state, lambda params, sample, timestep: sample, None, images, masks, jax.random.wrap_key_data(keys)
    )
    np.testing.assert_allclose(chains("batch", images, masks, keys), expected, atol=1e-5)
