"""The command line: what it writes, and its one sentence when it cannot."""

import contextlib
import functools
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import icc_profiles as profiles
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from repaint_jax import RePaintPipeline
from repaint_jax.cli.main import main
from repaint_jax.models.pretrained import bundled_folder
from repaint_jax.pictures.plots import HOLE_COLOUR

QUICK = ("--steps", "3", "--jump-length", "1", "--jump-n-sample", "2")


@pytest.fixture(scope="module", autouse=True)
def _each_model_is_loaded_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RePaintPipeline, "from_pretrained", functools.cache(RePaintPipeline.from_pretrained))
        yield


@pytest.fixture
def folder(tmp_path, model_folder, image, mask) -> Path:
    """A folder with a picture and a mask of the model's size, and things that are neither."""
    pixels = np.round((image[..., 0] + 1) * 127.5).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    Image.fromarray((mask[..., 0] * 255).astype(np.uint8)).save(tmp_path / "mask.png")
    Image.new("L", (9, 8)).save(tmp_path / "wide.png")
    Image.new("F", (8, 8)).save(tmp_path / "deep.tiff")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty").mkdir()
    (tmp_path / "subfolder.png").mkdir()
    return tmp_path


def inpaint(
    model_folder: Path, folder: Path, *options: object, mask: str = "mask.png", output: str = "out.png"
) -> int:
    words = ["inpaint", "image.png", mask, "-o", output, "--model", model_folder, *QUICK, *options]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return main(list(map(str, words)))


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_inpaint_writes_a_picture_with_the_known_pixels_as_they_were(model_folder, folder, capsys) -> None:
    assert inpaint(model_folder, folder) == 0
    captured = capsys.readouterr()
    assert captured.out == "wrote out.png\n"
    assert "5/5" in captured.err, "the progress bar counts model calls"
    known = pixels(folder / "mask.png") == 255
    np.testing.assert_array_equal(pixels(folder / "out.png")[known], pixels(folder / "image.png")[known])
    assert (pixels(folder / "out.png") != pixels(folder / "image.png")).any()


def test_several_samples_become_numbered_pictures_that_differ(model_folder, folder, capsys) -> None:
    assert inpaint(model_folder, folder, "--num-samples", 2) == 0
    assert capsys.readouterr().out == "wrote out-1.png\nwrote out-2.png\n"
    assert (pixels(folder / "out-1.png") != pixels(folder / "out-2.png")).any()
    assert not (folder / "out.png").exists()


def test_seed_decides_the_picture(model_folder, folder) -> None:
    for seed, output in ((7, "a.png"), (7, "b.png"), (8, "c.png")):
        assert inpaint(model_folder, folder, "--seed", seed, output=output) == 0
    a, b, c = (pixels(folder / name) for name in ("a.png", "b.png", "c.png"))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_preview_shows_the_calls_on_the_way_to_the_result(model_folder, folder, capsys) -> None:
    for preview in ("how.png", "how.gif"):
        assert inpaint(model_folder, folder, "--num-samples", 2, "--preview", preview) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"wrote {preview}"
    tile, margin = 12 * 8 + 6, 6  # pictures of 8 pixels, 12 times enlarged
    grid, animation = Image.open(folder / "how.png"), Image.open(folder / "how.gif")
    assert grid.size == (margin + 7 * tile, 24 + 2 * tile), "the hole, five calls and the result"
    assert (animation.n_frames, animation.size) == (7, (margin + 2 * tile, 24 + tile))
    left = margin + 6 * tile
    last = grid.crop((left, 24, left + 96, 24 + 96)).resize((8, 8), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(np.asarray(last)[..., 0], pixels(folder / "out-1.png"))


def test_comparison_has_a_row_of_samples_for_each_setting(model_folder, folder, capsys) -> None:
    words = ["inpaint", "image.png", "mask.png", "-o", "out.png", "--model", model_folder]
    words += ["--num-samples", 2, "--compare", "8", "3/1/2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(list(map(str, words))) == 0
    captured = capsys.readouterr()
    assert captured.out == "wrote out.png\n"
    assert "8/8" in captured.err and "5/5" in captured.err
    assert Image.open(folder / "out.png").height == 24 + 2 * (12 * 8 + 6)


def test_pictures_of_another_size_are_resized_on_request(model_folder, folder, capsys) -> None:
    Image.new("RGB", (20, 30), "white").save(folder / "image.png")
    Image.new("L", (20, 30), 0).save(folder / "mask.png")
    assert inpaint(model_folder, folder) == 2
    assert "(30, 20, 1)" in only_line(capsys)
    assert inpaint(model_folder, folder, "--resize") == 0
    assert pixels(folder / "out.png").shape == (8, 8)


def test_windows_of_a_large_picture_are_put_back_at_full_resolution(model_folder, folder, capsys) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (600, 700), np.uint8)
    hole = np.full((600, 700), 255, np.uint8)
    hole[100:130, 200:220] = hole[400:404, 300:303] = 0
    for name, array in (("image", photo), ("mask", hole)):
        Image.fromarray(array).save(folder / f"{name}.png")
    assert inpaint(model_folder, folder) == 2
    assert "--fit crop" in only_line(capsys)
    assert inpaint(model_folder, folder, "--fit", "crop", "--preview", "how.png") == 0
    result = pixels(folder / "out.png")
    np.testing.assert_array_equal(result[hole == 255], photo[hole == 255])
    assert (result != photo)[hole == 0].mean() > 0.5
    assert Image.open(folder / "how.png").height < 600, "previews of large pictures are reduced"
    capsys.readouterr()
    assert inpaint(model_folder, folder, "--fit", "crop", "--context", "-1") == 2
    assert "context is -1.0, expected a number from 0 on" in only_line(capsys)


def test_picture_of_more_than_8_bits_is_refused_by_its_name(model_folder, folder, capsys) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(folder / "image.png")
    assert inpaint(model_folder, folder) == 2
    assert "image.png has more than 8 bits per channel, expected 8" in only_line(capsys)


def test_mask_may_be_a_box_and_inverted(model_folder, folder) -> None:
    assert inpaint(model_folder, folder, "--invert-mask", mask="box=2,0,8,8") == 0
    same = pixels(folder / "out.png") == pixels(folder / "image.png")
    assert same[:, 2:].all() and not same[:, :2].all()


def test_the_hole_grows_and_the_result_fades(model_folder, folder) -> None:
    original = pixels(folder / "image.png")
    assert inpaint(model_folder, folder, "--grow-mask", "2", output="grown.png") == 0
    options = ("--grow-mask", "1", "--feather", "1", "--preview", "how.png")
    assert inpaint(model_folder, folder, *options) == 0
    grown, soft = pixels(folder / "grown.png"), pixels(folder / "out.png")
    np.testing.assert_array_equal(grown[:, :2], original[:, :2])
    np.testing.assert_array_equal(soft[:, :2], original[:, :2])
    np.testing.assert_array_equal(soft[:, 3:], grown[:, 3:])
    np.testing.assert_allclose(soft[:, 2], (original[:, 2] + grown[:, 2].astype(float)) / 2, atol=1)
    tile = 12 * 8
    shown = pixels(folder / "how.png")[24 : 24 + tile, 6 : 6 + tile].reshape(8, 12, 8, 12, 3)[:, 0, :, 0]
    assert (shown[:, 2:] == HOLE_COLOUR).all() and not (shown[:, :2] == HOLE_COLOUR).all(-1).any()


def test_a_comparison_grows_the_hole_once(model_folder, folder) -> None:
    words = ["inpaint", "image.png", "mask.png", "--model", model_folder, "--grow-mask", 1, "--feather", 1]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for kind in (["--compare", 8, "-o", "grid.png"], ["--model-calls", 8, "-o", "one.png"]):
            assert main(list(map(str, words + kind))) == 0
    tile = pixels(folder / "grid.png")[24 : 24 + 96, -6 - 96 : -6]
    np.testing.assert_array_equal(tile[::12, ::12, 0], pixels(folder / "one.png"))


def test_the_canvas_is_enlarged_and_refused_as_any_picture_of_another_size(
    model_folder, folder, capsys
) -> None:
    original = pixels(folder / "image.png")
    Image.fromarray(original[:, :5]).save(folder / "image.png")
    assert inpaint(model_folder, folder, mask="outpaint=1,0,2,0") == 0
    np.testing.assert_array_equal(pixels(folder / "out.png")[:, 1:6], original[:, :5])
    capsys.readouterr()
    assert inpaint(model_folder, folder, mask="outpaint=1,0,3,0") == 2
    assert "image has shape (8, 9, 1), expected the model's (8, 8, 1)" in only_line(capsys)
    assert inpaint(model_folder, folder, "--resize", mask="outpaint=1,0,3,0") == 0
    assert pixels(folder / "out.png").shape == (8, 8)


def test_a_mask_may_be_the_red_or_the_transparent_part_of_a_picture(model_folder, folder) -> None:
    original, known = pixels(folder / "image.png"), pixels(folder / "mask.png") == 255
    assert inpaint(model_folder, folder, output="expected.png") == 0
    red = np.where(known[..., None], original[..., None], np.uint8([255, 0, 0]))
    Image.fromarray(red).save(folder / "red.png")
    Image.fromarray(np.dstack([original, 255 * known.astype(np.uint8)])).save(folder / "erased.png")
    for mask, options in (
        ("red.png", ("--mask-colour", "#ff0000")),
        ("alpha=erased.png", ("--keep-alpha",)),
    ):
        assert inpaint(model_folder, folder, *options, mask=mask) == 0
        np.testing.assert_array_equal(pixels(folder / "out.png"), pixels(folder / "expected.png"))


def transparent(folder: Path) -> np.ndarray:
    """Make the left column of the picture transparent, and return the alpha channel."""
    alpha = np.full((8, 8), 255, np.uint8)
    alpha[:, 0] = 0
    picture = Image.open(folder / "image.png")
    picture.putalpha(Image.fromarray(alpha))
    picture.save(folder / "image.png")
    return alpha


def test_transparent_pixels_are_white_or_of_the_colour_that_is_asked_for(model_folder, folder) -> None:
    transparent(folder)
    assert inpaint(model_folder, folder) == 0
    assert (pixels(folder / "out.png")[:, 0] == 255).all() and pixels(folder / "out.png").shape == (8, 8)
    assert inpaint(model_folder, folder, "--background", "#404040") == 0
    assert (pixels(folder / "out.png")[:, 0] == 64).all()


def test_the_alpha_channel_is_kept_on_request(model_folder, folder) -> None:
    alpha = transparent(folder)
    for output in ("out.png", "out.tif"):
        assert inpaint(model_folder, folder, "--keep-alpha", "--preview", "how.png", output=output) == 0
        np.testing.assert_array_equal(pixels(folder / output)[..., 1], alpha)
    assert inpaint(model_folder, folder, "--keep-alpha", "--resize", mask="half") == 0
    np.testing.assert_array_equal(pixels(folder / "out.png")[..., 1], alpha)


@pytest.mark.parametrize(
    ("options", "hole", "output", "expected"),
    [
        (
            ["--background", "clear"],
            "half",
            "out.png",
            "--background is 'clear', expected an opaque colour",
        ),
        (
            ["--keep-alpha"],
            "half",
            "out.jpg",
            "--output is out.jpg, expected a picture's name that ends in .png",
        ),
        (["--keep-alpha"], "alpha", "out.png", "mask is alpha, expected another one with --keep-alpha"),
        (
            ["--keep-alpha", "--compare", "8"],
            "half",
            "out.png",
            "--compare is 8, expected it without --keep",
        ),
    ],
)
def test_what_does_not_go_with_transparency(
    model_folder, folder, capsys, options, hole, output, expected
) -> None:
    before = sorted(folder.iterdir())
    words = ["inpaint", "image.png", hole, "-o", output, "--model", str(model_folder), *options]
    with contextlib.chdir(folder):
        assert main(words) == 2
    assert expected in only_line(capsys)
    assert sorted(folder.iterdir()) == before


def test_a_picture_in_cmyk_becomes_grey_through_its_profile(model_folder, folder) -> None:
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(folder / "image.tif", icc_profile=profiles.CMYK)
    words = ["inpaint", "image.tif", "half", "-o", "out.png", "--model", str(model_folder), *QUICK]
    with contextlib.chdir(folder):
        assert main(words) == 0
    out = Image.open(folder / "out.png")
    assert "icc_profile" not in out.info
    assert (np.asarray(out)[:, :4] == 162).all()


def test_a_profile_does_not_survive_the_change_to_grey_by_resizing(model_folder, folder) -> None:
    Image.new("RGB", (16, 16)).save(folder / "image.png", icc_profile=profiles.SRGB)
    assert inpaint(model_folder, folder, "--resize", mask="half") == 0
    assert "icc_profile" not in Image.open(folder / "out.png").info


def test_an_animation_is_read_with_one_line_of_warning(model_folder, folder, capsys) -> None:
    frames = [Image.new("L", (8, 8), level) for level in (0, 99)]
    frames[0].save(folder / "image.gif", save_all=True, append_images=frames[1:])
    words = ["inpaint", "image.gif", "half", "-o", "out.png", "--model", str(model_folder), *QUICK]
    with contextlib.chdir(folder):
        assert main(words) == 0
    assert capsys.readouterr().err.splitlines()[0] == (
        "repaint-jax inpaint: warning: image.gif has 2 frames or pages, of which the first is used"
    )


def test_an_output_of_another_name_for_an_input_is_refused(model_folder, folder, capsys) -> None:
    (folder / "IMAGE.png").hardlink_to(folder / "image.png")  # as where the file system ignores case
    before = (folder / "image.png").read_bytes()
    assert inpaint(model_folder, folder, output="IMAGE.png") == 2
    assert "--output is IMAGE.png, expected a file with no other use" in only_line(capsys)
    assert (folder / "image.png").read_bytes() == before


def test_train_and_evaluate_put_pictures_on_the_background(
    model_folder, folder, capsys, monkeypatch
) -> None:
    (folder / "pictures").mkdir()
    Image.new("LA", (8, 8)).save(folder / "pictures" / "a.png")
    seen = []
    monkeypatch.setattr(
        "repaint_jax.cli.commands.score_settings", lambda pipe, images, *_, **__: seen.append(images)
    )
    monkeypatch.setattr(
        "repaint_jax.training_run.train_unet2d", lambda config, images, *_, **__: seen.append(images)
    )
    monkeypatch.setattr("repaint_jax.cli.commands.write_tables", lambda *_: "")
    common = [str(folder / "pictures"), "-o", str(folder / "run"), "--background"]
    for colour in ("white", "black"):
        assert main(["evaluate", *common, colour, "--model", str(model_folder)]) == 0
        assert main(["train", *common, colour, "--grey", "--image-size", "8"]) == 0
    assert [float(one.flat[0]) for one in seen] == [1, 255, -1, 0]
    for command in ("train", "evaluate"):
        assert main([command, *common, "no"]) == 2
        assert "--background is 'no', expected an opaque colour" in capsys.readouterr().err


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert "Traceback" not in error
    (line,) = error.splitlines()
    return line


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--steps", "0"], "--steps is 0, expected an integer of at least 1"),
        (["--steps", "-3"], "--steps is -3, expected an integer of at least 1"),
        (["--steps", "1001"], "--steps is 1001, expected at most num_train_timesteps=1000"),
        (["--jump-length", "0"], "--jump-length is 0, expected an integer of at least 1"),
        (["--jump-length", "3"], "--jump-length is 3, expected less than --steps=3"),
        (["--jump-n-sample", "0"], "--jump-n-sample is 0, expected an integer of at least 1"),
        (
            ["--model-calls", "64"],
            "--model-calls is 64 and --steps is 3, expected only one of them",
        ),
        (["--eta", "2"], "--eta is 2.0, expected a number in [0, 1]"),
        (["--eta", "nan"], "--eta is nan, expected a number in [0, 1]"),
        (["--num-samples", "0"], "--num-samples is 0, expected an integer of at least 1"),
        (["--eta", "-0.1"], "--eta is -0.1, expected a number in [0, 1]"),
        (["--seed", str(2**70)], f"--seed is {2**70}, expected"),
        (["--model", "empty"], "empty"),
        (["--model", "image.png"], "image.png is "),
        (["--model", "missing/folder"], "missing/folder"),
        (["--model", "missing.pt"], "missing.pt is not a file"),
        (["--classifier", "missing/folder"], "missing/folder is n"),
        (["--classifier", "missing.pt"], "missing.pt is not a file"),
        (["--class-label", "1"], "--class-label is [1], but the model is not class-conditional"),
        (["--guidance-scale", "2"], "--guidance-scale is 2.0, but there is nothing to guide"),
        (["--preview", "missing/how.gif"], "--preview is missing/how.gif, but the folder missing does not"),
        (["--preview", "how.txt"], "--preview is how.txt, expected a picture's name"),
        (
            ["--grow-mask", "-4"],
            "--grow-mask is -4, which leaves nothing of the hole, expected less shrinking",
        ),
        (["--feather", "-1"], "--feather is -1, expected an integer of at least 0"),
        (["--mask-colour", "reed"], "--mask-colour is 'reed', expected an opaque colour"),
        (["--mask-colour", "red"], "--mask-colour is red, which no pixel of the mask has"),
        (["--compare", "8"], "--compare is 8, expected it without --preview and without another schedule"),
    ],
)
def test_inpaint_refuses_in_one_sentence_and_writes_nothing(
    model_folder, folder, capsys, options, expected
) -> None:
    before = sorted(folder.iterdir())
    assert inpaint(model_folder, folder, *options) == 2
    line = only_line(capsys)
    assert line.startswith("repaint-jax inpaint: ")
    assert expected in line
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("role", ["image", "mask"])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("missing.png", "missing.png does not exist"),
        ("text.png", "text.png is not a picture that can be read"),
        ("empty", "empty is not a picture that can be read"),
        ("wide.png", "has shape (8, 9, 1), expected"),
        ("deep.tiff", "has more than 8 bits per channel, expected 8"),
    ],
)
def test_inpaint_refuses_what_is_no_picture_or_mask(
    model_folder, folder, capsys, role, name, expected
) -> None:
    (folder / f"{role}.png").unlink()
    if name != "missing.png":
        (folder / name).rename(folder / f"{role}.png")
    assert inpaint(model_folder, folder) == 2
    assert expected.replace(name, f"{role}.png") in only_line(capsys)
    assert not (folder / "out.png").exists()


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("out.txt", "--output is out.txt, expected a picture's name that ends in .png, .jpg"),
        ("out", "--output is out, expected a picture's name that ends in .png"),
        ("out.xbm", "--output is out.xbm, expected a picture's name that ends in .png"),
        ("nowhere/out.png", "--output is nowhere/out.png, but the folder nowhere does not exist"),
        ("image.png/out.png", "--output is image.png/out.png, but the folder image.png does not exist"),
        ("subfolder.png", "--output is subfolder.png, which cannot be written"),
    ],
)
def test_output_that_cannot_be_written_is_refused_before_anything_is_computed(
    model_folder, folder, capsys, output, expected
) -> None:
    assert inpaint(model_folder, folder, output=output) == 2
    assert expected in only_line(capsys)


@pytest.mark.parametrize(
    ("output", "options", "named"),
    [
        ("image.png", [], "--output is image.png"),
        ("mask.png", [], "--output is mask.png"),
        ("out.png", ["--preview", "image.png"], "--preview is image.png"),
        ("out.png", ["--preview", "./out.png"], "--preview is out.png"),
        ("out.png", ["--num-samples", 2, "--preview", "out-2.png"], "--preview is out-2.png"),
    ],
)
def test_no_output_takes_the_place_of_an_input_or_of_another(
    model_folder, folder, capsys, output: str, options: list, named: str
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert inpaint(model_folder, folder, *options, output=output) == 2
    assert f"{named}, expected a file with no other use in this command" in only_line(capsys)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


@pytest.mark.slow
def test_interrupted_it_ends_at_once(model_folder, folder) -> None:
    # Where tests run in the background SIGINT is ignored, and processes inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    words = ["inpaint", "image.png", "mask.png", "-o", "out.png", "--model", str(model_folder)]
    process = subprocess.Popen(
        [sys.executable, "-m", "repaint_jax", *words, "--model-calls", "3000000"],
        cwd=folder,
        stderr=subprocess.PIPE,
    )
    seen = b""
    while b"model calls" not in seen:
        seen += process.stderr.read(20)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.endswith(b"repaint-jax inpaint: interrupted\n")
    assert not (folder / "out.png").exists()


def test_result_that_is_not_finite_is_not_written(model_folder, folder, capsys) -> None:
    broken = folder / "broken"
    shutil.copytree(model_folder, broken)
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_out.weight"] = tensors["conv_out.weight"] + np.float32(3e38)
    tensors["conv_in.weight"] = tensors["conv_in.weight"] + np.float32(3e38)
    save_file(tensors, weights)
    (folder / "out.png").write_bytes(b"an earlier picture")
    assert inpaint(broken, folder) == 2
    assert "not finite" in capsys.readouterr().err.splitlines()[-1]
    assert (folder / "out.png").read_bytes() == b"an earlier picture"


def test_disk_that_is_full_leaves_no_unfinished_file(model_folder, folder, capsys, monkeypatch) -> None:
    def save(picture, path, **options):
        Path(path).write_bytes(b"half a pic")
        raise OSError("No space left on device")

    before = sorted(folder.iterdir())
    monkeypatch.setattr(Image.Image, "save", save)
    assert inpaint(model_folder, folder) == 2
    assert capsys.readouterr().err.endswith("repaint-jax inpaint: No space left on device\n")
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("name", "damage", "expected"),
    [
        ("unet/config.json", b"{", "config.json is not a JSON file"),
        (
            "unet/config.json",
            b'{"act_fn": "gelu"}',
            "config.json: act_fn is 'gelu', expected one of silu, swish",
        ),
        ("unet/diffusion_pytorch_model.safetensors", b"\0", "is not a whole safetensors file"),
        ("scheduler/scheduler_config.json", b"[]", "expected a JSON object"),
        (
            "scheduler/scheduler_config.json",
            b'{"beta_start": 2.0}',
            "beta_start is 2.0, expected a variance",
        ),
        ("model_index.json", b'{"movq": ["diffusers", "VQModel"]}', "with movq; only pipelines of an"),
        ("unet/config.json", None, "has neither unet/config.json nor config.json"),
        ("scheduler/scheduler_config.json", None, "has neither scheduler/scheduler_config.json nor"),
    ],
)
def test_damaged_model_is_refused(model_folder, folder, capsys, name: str, damage, expected: str) -> None:
    shutil.copytree(model_folder, folder / "damaged")
    if damage is None:
        (folder / "damaged" / name).unlink()
    else:
        (folder / "damaged" / name).write_bytes(damage)
    assert inpaint(folder / "damaged", folder) == 2
    assert expected in only_line(capsys)
    assert not (folder / "out.png").exists()


def test_a_model_that_is_no_path_is_refused_by_its_option(folder, capsys) -> None:
    pictures = str(bundled_folder() / "images")
    train = ["train", pictures, "-o", str(folder / "run"), "--image-size", "8"]
    for command, option in ((["schedule"], "--model"), (train, "--init-model")):
        assert main([*command, option, ""]) == 2
        assert only_line(capsys).startswith(f"repaint-jax {command[0]}: {option} is '', expected a folder")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("missing", "missing is not a folder"),
        ("empty", "empty holds neither train-images-idx3-ubyte.gz nor pictures"),
        ("text", "text.png is not a picture that can be read"),
    ],
)
def test_train_refuses_data_that_is_none_in_one_sentence(folder, capsys, data, expected) -> None:
    (folder / "text").mkdir()
    (folder / "text.png").rename(folder / "text" / "text.png")
    assert main(["train", str(folder / data), "-o", str(folder / "run")]) == 2
    assert expected in only_line(capsys)
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["missing.pt", "-o", "new"], "missing.pt is not a file"),
        (["empty", "-o", "new"], "empty is not a file"),
        (["text.png", "-o", "empty"], "empty exists, expected the name of a new folder"),
        (["text.png", "-o", "image.png"], "image.png exists, expected the name of a new folder"),
        (["text.png", "-o", "new"], "text.png is "),  # no weights, or not to be read without torch
        (["text.png", "-o", "new", "--config", "missing.yml"], "text.png is "),
    ],
)
def test_convert_refuses_in_one_sentence_and_writes_nothing(
    folder, capsys, monkeypatch, words, expected
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    assert main(["convert", *words]) == 2
    assert only_line(capsys).startswith(f"repaint-jax convert: {expected}")
    assert sorted(folder.rglob("*")) == before


def test_convert_passes_its_options_on(folder, capsys, monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(
        "repaint_jax.models.pretrained.convert", lambda *args, **kwargs: calls.append((args, kwargs))
    )
    words = ["convert", "a.pt", "-o", "b", "--config", "c.yml", "--dtype", "float16"]
    assert main(words) == 0
    assert capsys.readouterr().out == "wrote b\n"
    assert calls == [((Path("a.pt"), Path("b")), {"settings": Path("c.yml"), "dtype": "float16"})]


def test_inpaint_in_half_precision_keeps_the_known_pixels(model_folder, folder) -> None:
    assert inpaint(model_folder, folder, "--dtype", "bfloat16") == 0
    known = pixels(folder / "mask.png") == 255
    np.testing.assert_array_equal(pixels(folder / "out.png")[known], pixels(folder / "image.png")[known])


def test_command_is_installed_and_says_what_it_can(model_folder) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "repaint_jax", "--help"], capture_output=True, text=True, check=True
    )
    for command in ("demo", "inpaint", "convert", "train"):
        assert command in result.stdout


def test_refusal_in_a_process_of_its_own_is_one_line_and_status_2(folder) -> None:
    words = ["inpaint", "missing.png", "mask.png", "-o", "out.png"]
    result = subprocess.run(
        [sys.executable, "-m", "repaint_jax", *words],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "repaint-jax inpaint: missing.png does not exist\n"


def test_inpaint_makes_64_model_calls_or_as_many_as_it_is_told(model_folder, folder, capsys) -> None:
    words = ["inpaint", "image.png", "mask.png", "-o", "out.png", "--model", str(model_folder)]
    for options, calls in (([], 64), (["--model-calls", "9"], 9), (["--steps", "12"], 102)):
        with contextlib.chdir(folder):
            assert main([*words, *options]) == 0
        assert f"{calls}/{calls} [" in capsys.readouterr().err


def test_inpaint_refuses_a_budget_that_is_too_small(model_folder, folder, capsys) -> None:
    words = ["inpaint", "image.png", "mask.png", "-o", "out.png", "--model", str(model_folder)]
    with contextlib.chdir(folder):
        assert main([*words, "--model-calls", "7"]) == 2
    assert only_line(capsys).endswith("--model-calls is 7, expected an integer of at least 8")
    assert not (folder / "out.png").exists()


@pytest.mark.parametrize(
    "option", ["--steps", "--model-calls", "--jump-length", "--eta", "--num-samples", "--seed"]
)
def test_option_that_is_no_number_exits_with_2(capsys, option: str) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["inpaint", "image.png", "mask.png", "-o", "out.png", option, "many"])
    assert exit_.value.code == 2
    assert f"argument {option}: invalid" in capsys.readouterr().err.splitlines()[-1]


def test_app_refuses_in_one_sentence(capsys, monkeypatch) -> None:
    assert main(["app", "--port", "65536"]) == 2
    assert only_line(capsys) == "repaint-jax app: --port is 65536, expected an integer from 1 to 65535"
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "repaint_jax.cli.app", raising=False)
    assert main(["app"]) == 2
    assert only_line(capsys) == "repaint-jax app: the web app needs gradio: install repaint_jax[app]"


def test_unknown_option_exits_with_2(capsys) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["inpaint", "image.png", "mask.png", "-o", "out.png", "--stepps", "3"])
    assert exit_.value.code == 2
    assert "--stepps" in capsys.readouterr().err


def test_demo_shows_the_pictures_that_come_with_a_model(model_folder, folder, capsys) -> None:
    words = ["demo", "-o", str(folder / "demo.png"), "--num-samples", "1", *QUICK, "--model"]
    assert main([*words, str(model_folder)]) == 2
    assert only_line(capsys).endswith(
        f"--model is {model_folder}, expected a model with pictures in its folder images; "
        "use repaint-jax inpaint for your own pictures"
    )
    own = folder / "model"
    shutil.copytree(model_folder, own)
    (own / "images").mkdir()
    for name in ("a.png", "b.png"):
        shutil.copy(folder / "image.png", own / "images" / name)
    assert main([*words, str(own)]) == 0
    assert capsys.readouterr().out == f"wrote {folder / 'demo.png'}: 6 pictures, 1 samples each\n"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
def test_an_error_is_one_sentence_even_where_stdout_is_closed() -> None:
    command = f"{sys.executable} -m repaint_jax inpaint missing.png half -o out.png >&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (2, "repaint-jax inpaint: missing.png does not exist\n")
