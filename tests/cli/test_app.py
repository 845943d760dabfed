"""The web app: its functions, and the page in a real browser."""

import contextlib
import dataclasses
import importlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from os import environ
from pathlib import Path

import icc_profiles as profiles
import jax
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")

import repaint_jax as rp
from repaint_jax.cli import app, app_pictures
from repaint_jax.cli.app_models import Models, models_here
from repaint_jax.models.pretrained import pictures_of_model
from repaint_jax.pictures.plots import HOLE_COLOUR

SETTINGS = {"seed": 3, "class_label": 0, "own_schedule": False}
OWN = {"num_inference_steps": 4, "jump_length": 2, "jump_n_sample": 2, "eta": 1.0}
RNG = np.random.default_rng
ORANGE = HOLE_COLOUR


def paint(size: tuple[int, int], *boxes: tuple[int, int, int, int]) -> list[Image.Image]:
    """The editor's layer, opaque in boxes."""
    layer = Image.new("RGBA", size)
    for box in boxes:
        layer.paste("orange", box)
    return [layer]


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(RNG(0).integers(0, 256, (8, 8), np.uint8))


def filled(pipe, task, calls: int, samples: int, **settings) -> app_pictures.Progress:
    """The last thing that a chain shows."""
    *_, last = app_pictures.fill(pipe, task, calls, samples, **SETTINGS | OWN | settings)
    return last


@pytest.mark.parametrize("settings", [{"own_schedule": False}, {"own_schedule": True}])
def test_results_are_those_of_the_pipeline(pipe, picture, settings):
    task = app_pictures.make_task(pipe, picture, paint((384, 384), (192, 0, 384, 384)))
    last = filled(pipe, task, 9, 2, **settings)
    mask = Image.new("L", (8, 8), 255)
    mask.paste(0, (4, 0, 8, 8))
    schedule = OWN if settings["own_schedule"] else {"num_model_calls": 9}
    expected = pipe(picture, mask, **schedule, key=jax.random.key(3), num_samples=2, fit="crop").images
    assert [last.results.whole(i).tobytes() for i in range(2)] == [one.tobytes() for one in expected]
    assert last.calls_done == last.num_model_calls and last.remark == "2 results"
    assert [one.size for one in last.pictures] == [(400, 400)] * 2, "enlarged for the browser"


@pytest.mark.parametrize("boxes", [[(200, 90, 215, 104)], [(3, 140, 150, 150), (250, 10, 260, 20)]])
def test_a_part_of_a_large_picture_is_filled_as_the_whole_picture_would_be(pipe, monkeypatch, boxes):
    monkeypatch.setattr(app_pictures, "SHOWN_SIDE", 64)
    photo = Image.fromarray(RNG(1).integers(0, 256, (160, 300), np.uint8))
    task = app_pictures.make_task(pipe, photo, paint(photo.size, *boxes))
    left, top, right, bottom = task.part
    if len(boxes) == 1:
        assert (right - left, bottom - top) == (64, 64)
    mask = Image.new("L", photo.size, 255)
    for box in boxes:
        mask.paste(0, box)
    assert task.mask.tobytes() == mask.tobytes()
    whole = filled(pipe, task, 8, 2).results.whole(1)
    options = {"num_model_calls": 8, "key": jax.random.key(3), "num_samples": 2, "fit": "crop"}
    assert whole.tobytes() == pipe(photo, mask, **options).images[1].tobytes()
    known = np.asarray(mask) == 255
    np.testing.assert_array_equal(np.asarray(whole)[known], np.asarray(photo)[known])


@pytest.mark.parametrize(("fit", "size"), [("resize", (8, 8)), ("native", (16, 24))])
def test_the_network_may_see_the_whole_picture(pipe, fit, size):
    photo = Image.fromarray(RNG(0).integers(0, 256, (24, 16), np.uint8))
    task = app_pictures.make_task(pipe, photo, paint((16, 24), (0, 0, 8, 12)), fit=fit)
    ((_, caption),) = app_pictures.windows_shown(pipe, task)
    assert f"{size[0]} x {size[1]} pixels" in caption
    mask = Image.new("L", (16, 24), 255)
    mask.paste(0, (0, 0, 8, 12))
    expected = pipe(photo, mask, num_model_calls=8, key=jax.random.key(3), fit=fit).images[0]
    result = filled(pipe, task, 8, 1).results.whole(0)
    assert result.size == size and result.tobytes() == expected.tobytes()


def test_colour_models_of_any_proportions_and_with_classes_are_served(unet_config, random_unet):
    config = dataclasses.replace(
        unet_config, sample_size=(8, 12), in_channels=3, out_channels=3, num_class_embeds=3
    )
    pipe = rp.RePaintPipeline.from_unet2d(random_unet(config), rp.RePaintSchedulerConfig())
    with app.build_page(Models("mine", lambda path: pipe)) as page:
        assert page.title == "repaint-jax"
    picture = Image.fromarray(RNG(0).integers(0, 256, (8, 12, 3), np.uint8))
    task = app_pictures.make_task(pipe, picture, paint((1272, 848), (0, 0, 636, 848)))
    result = filled(pipe, task, 8, 1, class_label=2).results.whole(0)
    mask = Image.new("L", (12, 8), 255)
    mask.paste(0, (0, 0, 6, 8))
    options = {"num_model_calls": 8, "key": jax.random.key(3), "class_labels": 2, "fit": "crop"}
    assert result.tobytes() == pipe(picture, mask, **options).images[0].tobytes()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"picture": None}, "there is no picture: upload one"),
        ({"layers": []}, "nothing is painted: paint over the pixels to fill"),
        ({"layers": paint((384, 384))}, "nothing is painted: paint over the pixels to fill"),
        ({"layers": paint((384, 384), (0, 0, 9, 9))}, "nothing is painted: paint over the pixels to"),
        ({"context": None}, "context is None, expected a number from 0 on"),
        ({"seed": None}, "seed is None, expected an integer"),
        ({"seed": -1}, r"seed is -1, expected an integer from 0 to 2\*\*32 - 1"),
        ({"seed": 2**32}, r"seed is 4294967296, expected an integer from 0 to 2\*\*32 - 1"),
        ({"own_schedule": True, "jump_length": 4}, "jump_length is 4, expected less than"),
        (
            {"own_schedule": True, "jump_n_sample": 5000},
            "this schedule has 10,002 model calls, expected at m",
        ),
    ],
)
def test_what_cannot_be_filled_is_refused_in_one_sentence(pipe, picture, change, expected):
    of_task = {"picture": picture, "layers": paint((384, 384), (0, 0, 384, 384)), "context": 0.25}
    of_chain = {"num_model_calls": 9, "num_samples": 2} | SETTINGS | OWN
    of_task |= {name: value for name, value in change.items() if name in of_task}
    of_chain |= {name: value for name, value in change.items() if name in of_chain}
    with pytest.raises((ValueError, TypeError), match=expected):
        next(app_pictures.fill(pipe, app_pictures.make_task(pipe, **of_task), **of_chain))


def test_paint_becomes_a_mask_of_the_picture_s_size():
    layers = paint((300, 200), (0, 0, 150, 100), (290, 190, 300, 200))
    reduced = np.asarray(app_pictures.mask_of(layers, (30, 20)))
    hole = np.zeros((20, 30), bool)
    hole[:10, :15] = hole[19:, 29:] = True
    np.testing.assert_array_equal(reduced, np.where(hole, 0, 255))
    enlarged = np.asarray(app_pictures.mask_of(layers, (900, 600)))
    assert set(np.unique(enlarged)) == {0, 255}
    assert not enlarged[:297, :447].any() and enlarged[303:567, :].all() and enlarged[:567, 453:].all()


def test_an_uploaded_mask_is_kept_to_the_pixel_where_its_paint_is_not_changed():
    size = (3000, 2000)
    mask = np.full(size[::-1], 255, np.uint8)
    mask[700, 100:2900] = 0  # a line thinner than the editor's pixels
    mask[1000:1501, 1200:1803] = 0
    uploaded = Image.fromarray(mask)
    layer = app_pictures.paint_of(uploaded)
    assert layer.size == (1280, 853)
    np.testing.assert_array_equal(np.asarray(app_pictures.mask_of([layer], size, uploaded)), mask)
    layer.paste((0, 0, 0, 0), (640, 0, 1280, 853))  # erased
    layer.paste("orange", (0, 0, 64, 64))
    changed = np.asarray(app_pictures.mask_of([layer], size, uploaded))
    np.testing.assert_array_equal(changed[200:, :1498], mask[200:, :1498])
    assert changed[:, 1503:].all()
    assert not changed[:148, :148].any() and changed[152:690, :1498].all()


def test_masks_are_read_in_the_picture_s_size_or_refused_by_name(tmp_path):
    mask = np.full((30, 40), 255, np.uint8)
    mask[:15, :20] = 100
    Image.fromarray(mask).save(tmp_path / "mask.png")
    read = np.asarray(app_pictures.read_mask(tmp_path / "mask.png", (40, 30)))
    np.testing.assert_array_equal(read, np.where(mask < 128, 0, 255))
    larger = np.asarray(app_pictures.read_mask(tmp_path / "mask.png", (401, 300)))
    assert larger.shape == (300, 401) and not larger[:140, :190].any() and larger[160:].all()
    with pytest.raises(
        ValueError, match=r"^mask.png has 40 x 30 pixels, expected the picture's 40 x 40 or"
    ):
        app_pictures.read_mask(tmp_path / "mask.png", (40, 40))
    Image.new("L", (40, 30), 255).save(tmp_path / "white.png")
    with pytest.raises(ValueError, match=r"^white.png has no black pixels, expected a mask that is black"):
        app_pictures.read_mask(tmp_path / "white.png", (40, 30))


def test_uploads_are_read_at_their_own_size_or_refused_by_name(tmp_path, monkeypatch):
    photo = Image.fromarray(RNG(0).integers(0, 256, (60, 40, 3), np.uint8))
    photo.save(tmp_path / "photo.png")
    assert app_pictures.read_picture(tmp_path / "photo.png").tobytes() == photo.tobytes()
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"^text.png is not a picture that can be read"):
        app_pictures.read_picture(tmp_path / "text.png")
    monkeypatch.setattr(app_pictures, "MAX_PIXELS", 2000)
    with pytest.raises(ValueError, match=r"^photo.png has 40 x 60 pixels, expected at most 2,000"):
        app_pictures.read_picture(tmp_path / "photo.png")


def test_transparent_uploads_are_white_or_on_the_background_of_the_command(pipe, tmp_path):
    clear = Image.new("LA", (9, 9))
    assert app_pictures.in_colours_of(pipe, clear).getextrema() == (255, 255)
    assert app_pictures.in_colours_of(pipe, clear, "#404040").getextrema() == (64, 64)
    task = app_pictures.make_task(pipe, clear, paint((9, 9), (0, 0, 4, 4)), background="black")
    assert task.picture.getextrema() == (0, 0)
    with pytest.raises(ValueError, match="background is 'no', expected an opaque colour"):
        app.serve("bundled", background="no", host="127.0.0.1", port=0)


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (256, 192), (1024, 512)])
def test_small_pictures_are_enlarged_by_a_whole_factor(size):
    photo = Image.fromarray(RNG(0).integers(0, 256, (*size[::-1], 3), np.uint8))
    canvas = app_pictures.canvas_of(photo)
    assert 640 < max(canvas.size) <= 1280
    assert (canvas.width / size[0], canvas.height / size[1]) == (canvas.width // size[0],) * 2
    assert canvas.resize(size, Image.Resampling.NEAREST).tobytes() == photo.tobytes()


def test_large_pictures_are_reduced_for_the_browser():
    assert app_pictures.canvas_of(Image.new("RGB", (4000, 3000))).size == (1280, 960)
    assert app_pictures.fitted(Image.new("L", (30, 4000))).size == (8, 1000)


def test_windows_are_drawn_over_the_picture_and_shown_as_the_model_sees_them(pipe):
    photo = Image.new("L", (400, 300), 90)
    task = app_pictures.make_task(pipe, photo, paint(photo.size, (100, 60, 160, 120), (300, 200, 303, 203)))
    (whole, caption), *cuts = app_pictures.windows_shown(pipe, task)
    assert caption == "2 windows, seen at 8 x 8"
    assert [cut.size for cut, _ in cuts] == [(400, 400)] * 2
    # A hole of 60 pixels has 15 pixels of context on each side; the smallest window is the model's size.
    assert [words for _, words in cuts] == ["90 x 90 pixels", "8 x 8 pixels"]
    assert whole.size == photo.size
    boxes = (np.asarray(whole) == app_pictures._BOX_COLOUR).all(-1)
    rows, columns = np.nonzero(boxes[:200, :250])
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (85, 175, 45, 135)
    assert whole.getpixel((130, 90)) == ORANGE and whole.getpixel((250, 30)) == (90, 90, 90)


def test_files_have_the_whole_results_and_the_colour_profile(pipe, tmp_path):
    photo = Image.fromarray(RNG(0).integers(0, 256, (40, 60), np.uint8))
    profile = profiles.LINEAR_GREY
    photo.info["icc_profile"] = profile
    results = filled(
        pipe, app_pictures.make_task(pipe, photo, paint((60, 40), (9, 9, 14, 14))), 8, 2
    ).results
    app_pictures.write_zip(results, tmp_path / "results.zip")
    with zipfile.ZipFile(tmp_path / "results.zip") as archive:
        assert archive.namelist() == ["result-1.png", "result-2.png"]
        for number, name in enumerate(archive.namelist()):
            with Image.open(BytesIO(archive.read(name))) as stored:
                assert stored.tobytes() == results.whole(number).tobytes()
                assert stored.info["icc_profile"] == profile


# Models


def test_a_model_is_loaded_once_it_is_chosen_and_two_stay_in_memory(pipe):
    loads = []

    def load(path: str) -> rp.RePaintPipeline:
        loads.append(path)
        if path == "/broken":
            raise ValueError("no weights")
        return pipe

    models = Models("first", load, {"two": "/2", "three": "/3", "broken": "/broken"})
    assert models.choices == [("first", "first"), ("two", "/2"), ("three", "/3"), ("broken", "/broken")]
    assert loads == ["first"]
    for path in ("/2", "/2", "first", "/3", "first", "/2"):
        assert models.get(path) is pipe
    assert loads == ["first", "/2", "/3", "/2"]
    with pytest.raises(ValueError, match="no weights"):
        models.get("/broken")
    models.get("/2")
    assert loads[4:] == ["/broken"], "what was in memory stays"
    assert "knows what it was trained on in grey, 8 x 8 pixels" in models.description("first")


def test_only_models_that_are_here_are_listed(tmp_path, monkeypatch):
    def cache(repo: str, *files: str, index: dict | None = None) -> Path:
        snapshot = tmp_path / f"models--{repo.replace('/', '--')}" / "snapshots" / "abc"
        for name in files:
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            (snapshot / name).write_text('{"_class_name": "UNet2DModel"}')
        if index is not None:
            (snapshot / "model_index.json").write_text(json.dumps(index))
        return snapshot

    weights, part = "unet/diffusion_pytorch_model.safetensors", ["diffusers", "x"]
    faces = cache("google/faces", weights, index={"unet": part, "scheduler": part, "_class_name": "D"})
    old = cache("me/old", "config.json", "diffusion_pytorch_model.bin")
    cache("me/no-weights", "unet/config.json", index={"unet": part, "scheduler": part})
    cache("me/text", weights, index={"unet": part, "scheduler": part, "tokenizer": part})
    cache("me/damaged", weights)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = models_here("bundled")
    assert list(found) == ["bundled/emoji", "google/faces", "me/old"]
    assert (found["google/faces"], found["me/old"]) == (str(faces), str(old))
    assert list(models_here("google/faces")) == ["bundled/emoji", "bundled/fashion_mnist", "me/old"]


def test_the_page_says_what_a_bundled_model_knows():
    models = Models(
        "bundled", lambda path: rp.RePaintPipeline.from_pretrained(path), models_here("bundled")
    )
    assert "knows clothes in grey, 28 x 28 pixels" in models.description("bundled")
    emoji = dict(models.choices)["bundled/emoji"]
    assert "knows emoji in colour, 32 x 32 pixels" in models.description(emoji)


# In a browser


FAMILIES = {False: socket.AF_INET, True: socket.AF_INET6}
SECONDS = 1000  # of Playwright's, which are milliseconds
WAIT = 60 * SECONDS


@contextlib.contextmanager
def serving(
    log: Path,
    host: str = "127.0.0.1",
    environment: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
) -> Iterator[tuple[subprocess.Popen, str]]:
    """The command in a process of its own, and its address."""
    with socket.create_server((host.strip("[]"), 0), family=FAMILIES[":" in host]) as free:
        port = free.getsockname()[1]
    # Where tests run in the background SIGINT is ignored, and processes inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "repaint_jax", "app", "--port", str(port), "--host", host, *options],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **(environment or {})},
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = f"http://{host}:{port}"
        assert line == f"{address} is open; Ctrl-C stops it\n", log.read_text()
        yield process, address
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "environment"),
    [("127.0.0.1", {"http_proxy": "http://127.0.0.1:9", "no_proxy": ""}), ("[::1]", {})],
    ids=["behind a proxy", "IPv6"],
)
def test_page_is_served(tmp_path, host, environment) -> None:
    if host == "[::1]" and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with serving(tmp_path / "errors", host, environment) as (_, address), direct.open(address) as page:
        assert page.status == 200


def test_gradio_that_cannot_be_imported_says_why(monkeypatch, tmp_path) -> None:
    (tmp_path / "gradio.py").write_text("raise ImportError('the socksio package is missing')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "gradio")
    monkeypatch.delitem(sys.modules, "repaint_jax.cli.app")
    with pytest.raises(ImportError, match="gradio is installed, but it cannot be imported: the socksio"):
        importlib.import_module("repaint_jax.cli.app")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("app") / "errors") as (_, address):
        yield address


@pytest.fixture(scope="module")
def chromium() -> Iterator:
    playwright = pytest.importorskip("playwright.sync_api", reason="tests/browser.txt is not installed")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        # Chromium's sandbox does not run as root, as which continuous integration often runs.
        browser = driver.chromium.launch(executable_path=path, chromium_sandbox=False)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, address) -> Iterator[Callable]:
    """A function that opens the page as a new visitor, who reaches no other machine."""
    contexts, elsewhere = [], []

    def open_page(address: str = address, example: bool = True, **options):
        options = {"viewport": {"width": 1280, "height": 800}, "accept_downloads": True} | options
        context = chromium.new_context(**options)
        context.set_default_timeout(WAIT)
        contexts.append(context)
        page = context.new_page()

        def only_here(route):
            if route.request.url.startswith((address, "data:", "blob:")):
                return route.continue_()
            elsewhere.append(route.request.url)
            return route.abort()

        page.route("**/*", only_here)
        page.goto(address)
        page.locator("#painting [aria-label='Brush Size']").wait_for()  # the brush is at hand
        if example:
            wait_until_shown(page, example_pixels(0))
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert elsewhere == [], "the page needs no other machine"


EXAMPLES = pictures_of_model("bundled")


def example_pixels(index: int) -> np.ndarray:
    return np.asarray(Image.open(EXAMPLES[index]))


def canvas_point(page, across: float, down: float) -> tuple[float, float]:
    """Where on the screen a point of the picture is, which has coordinates from 0 to 1."""
    box = page.locator("#painting .pixi-target canvas").bounding_box()
    # The editor leaves 30 pixels around a picture that is as wide and high as it.
    side = min(box["width"], box["height"]) - 60
    left, top = box["x"] + (box["width"] - side) / 2, box["y"] + (box["height"] - side) / 2
    return left + across * side, top + down * side


def colour_at(page, across: float, down: float) -> tuple[int, int, int]:
    return colour_at_screen(page, *canvas_point(page, across, down))


def colour_at_screen(page, x: float, y: float) -> tuple[int, int, int]:
    with Image.open(BytesIO(page.screenshot(clip={"x": x, "y": y, "width": 1, "height": 1}))) as pixel:
        return pixel.convert("RGB").getpixel((0, 0))


def wait_until(condition: Callable[[], bool]) -> None:
    """Ask again and again; every asking takes the browser a while."""
    end = time.monotonic() + WAIT / SECONDS
    while not condition():
        assert time.monotonic() < end


def paint_hole(page) -> None:
    """Paint from (0.3, 0.5) to (0.7, 0.5) with the mouse."""
    wait_until(lambda: colour_at(page, 0.5, 0.5) != ORANGE)
    page.mouse.move(*canvas_point(page, 0.3, 0.5))
    page.mouse.down()
    page.mouse.move(*canvas_point(page, 0.7, 0.5), steps=10)
    page.mouse.up()
    wait_until(lambda: colour_at(page, 0.5, 0.5) == ORANGE)


def choose(page, name: str) -> np.ndarray:
    """Choose an example; return its pixels."""
    (index,) = (i for i, path in enumerate(EXAMPLES) if name in path.name)
    pixels = example_pixels(index)
    page.locator("#examples button").nth(index).click()
    wait_until_shown(page, pixels)
    return pixels


def wait_until_shown(page, pixels: np.ndarray) -> None:
    probes = [(0.22, 0.34), (0.41, 0.62), (0.59, 0.37), (0.77, 0.7), (0.52, 0.9)]

    def shown() -> bool:
        return all(
            abs(colour_at(page, *probe)[0] - int(pixels[int(28 * probe[1]), int(28 * probe[0])])) <= 2
            for probe in probes
        )

    wait_until(shown)


def set_calls_and_samples(page, calls: int, samples: int) -> None:
    for label, value in (("Model calls", calls), ("Samples", samples)):
        page.get_by_label(f"number input for {label}").fill(str(value))
        page.get_by_label(f"number input for {label}").press("Tab")


def wait_for_results(page, number: int) -> None:
    page.locator("#progress").get_by_text(f"{number} result").wait_for()
    assert page.locator("#results .grid-container img").count() == number


def saved(page, button: str) -> Path:
    """A file that a button of the page downloads."""
    with page.expect_download() as loading:
        page.click(button)
    path = loading.value.path()
    return path.rename(path.with_name(loading.value.suggested_filename))


def download(page, number: int) -> np.ndarray:
    """The pixels of one of the results, chosen and downloaded as a visitor does."""
    page.locator("#results .grid-container img").nth(number).click()
    page.locator("#results [aria-label='Close']").click()
    path = saved(page, "#download")
    assert path.name == f"result-{number + 1}.png"
    return np.asarray(Image.open(path))


def open_file(page, kind: int, path: Path) -> None:
    """Open a picture (kind 0) or a mask (kind 1)."""
    page.locator(".row > input[type=file]").nth(kind).set_input_files(path)


def assert_only_the_hole_is_filled(result: np.ndarray, pixels: np.ndarray) -> None:
    assert (result.shape, result.dtype) == (pixels.shape, np.uint8)
    changed = result != pixels
    outside = np.ones_like(changed)
    outside[11:17, 6:22] = False  # the stroke, and no more of it than the brush is thick
    assert not changed[outside].any(), "known pixels are exact"
    assert changed[13:15, 9:19].mean() > 0.5, "the hole is filled"


@pytest.mark.browser
def test_an_example_is_painted_filled_compared_and_downloaded(visit):
    page = visit()
    pixels = choose(page, "boot")
    paint_hole(page)
    set_calls_and_samples(page, 16, 3)
    page.click("#fill")
    wait_for_results(page, 3)
    results = [download(page, i) for i in range(3)]
    for result in results:
        assert_only_the_hole_is_filled(result, pixels)
    assert (results[0] != results[1]).any() and (results[1] != results[2]).any()
    with zipfile.ZipFile(saved(page, "#download-all")) as archive:
        for name, result in zip(archive.namelist(), results, strict=True):
            np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(archive.read(name)))), result)
    page.get_by_role("tab", name="Before and after").click()
    wait_until(lambda: page.locator("#slider img").count() == 2)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photograph of 12 megapixels."""
    noise = RNG(0).normal(128, 40, (30, 40, 3)).clip(0, 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    Image.fromarray(noise).resize((4000, 3000), Image.Resampling.BICUBIC).save(path, quality=90)
    return path


@pytest.fixture(scope="module")
def colour_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("colour") / "errors"
    with serving(log, options=["--model", "bundled/emoji"]) as (_, address):
        yield address
    assert log.read_text() == ""


def canvas_middle(page) -> tuple[float, float]:
    canvas = page.locator("#painting .pixi-target canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def touch_stroke(page, x: float, y: float) -> None:
    """Paint 40 pixels to the right with a finger."""
    session = page.context.new_cdp_session(page)
    for kind, points in (
        ("touchStart", [(x, y)]),
        *(("touchMove", [(x + 5 * step, y)]) for step in range(1, 9)),
        ("touchEnd", []),
    ):
        touches = [{"x": left, "y": top} for left, top in points]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})


def mouse_stroke(page, x: float, y: float) -> None:
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 40, y, steps=8)
    page.mouse.up()


PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@pytest.mark.browser
@pytest.mark.parametrize("options", [{}, PHONE], ids=["desktop", "phone"])
def test_a_photograph_is_filled_at_full_resolution(visit, colour_address, photo, options, tmp_path):
    page = visit(colour_address, example=False, **options)
    uploads = []
    page.on("request", lambda one: one.url.split("?")[0].endswith("/upload") and uploads.append(one))
    open_file(page, 0, photo)
    middle = canvas_middle(page)
    with Image.open(photo) as opened:
        small = opened.resize((40, 30), Image.Resampling.BOX)

    def shown() -> bool:
        box = page.locator("#painting .pixi-target canvas").bounding_box()
        pixel = min(box["width"] - 60, (box["height"] - 60) * 4 / 3) / 40
        differences = [
            np.subtract(
                colour_at_screen(page, middle[0] + (x - 19.5) * pixel, middle[1] + (y - 14.5) * pixel),
                small.getpixel((x, y)),
            )
            for x, y in [(8, 6), (30, 8), (12, 22), (31, 24)]
        ]
        return bool(np.abs(differences).max() < 40)

    wait_until(shown)
    (touch_stroke if options is PHONE else mouse_stroke)(page, *middle)
    wait_until(lambda: colour_at_screen(page, middle[0] + 20, middle[1]) == ORANGE)
    page.get_by_role("tab", name="Windows").click()
    page.locator("#windows").get_by_text("1 window, seen at 32 x 32").wait_for()
    page.get_by_role("tab", name="Results").click()
    set_calls_and_samples(page, 8, 2)
    page.click("#fill")
    wait_for_results(page, 2)
    mask = np.asarray(Image.open(saved(page, "#save-mask")))
    result = download(page, 1)
    before = np.asarray(Image.open(photo))
    assert result.shape == before.shape == (3000, 4000, 3) and mask.shape == (3000, 4000)
    changed = (result != before).any(-1)
    assert not changed[mask == 255].any(), "known pixels are exact"
    assert changed[mask == 0].mean() > 0.9 and 0.001 < (mask == 0).mean() < 0.1
    assert page.evaluate("document.documentElement.scrollWidth") == page.viewport_size["width"]
    # The photograph, and the editor's three pictures for each of Windows, Fill and Save mask.
    assert len(uploads) == 1 + 3 * 3
    if options is PHONE:
        return
    page.click("#use")  # go on with the result: the paint is gone, and a mask may be opened
    wait_until(lambda: colour_at_screen(page, middle[0] + 20, middle[1]) != ORANGE)
    page.click("#fill")
    page.get_by_text("nothing is painted: paint over the pixels to fill").wait_for()
    again = np.full(mask.shape, 255, np.uint8)
    again[1480:1520, 1980:2033] = 0
    Image.fromarray(again).save(tmp_path / "again.png")
    open_file(page, 1, tmp_path / "again.png")
    wait_until(lambda: colour_at_screen(page, *middle) == ORANGE)
    np.testing.assert_array_equal(np.asarray(Image.open(saved(page, "#save-mask"))), again)
    set_calls_and_samples(page, 8, 1)
    page.click("#fill")
    wait_for_results(page, 1)
    second = download(page, 0)
    np.testing.assert_array_equal(second[again == 255], result[again == 255])
    assert (second[again == 0] != result[again == 0]).any()


@pytest.mark.browser
def test_another_model_is_loaded_and_the_picture_and_paint_stay(visit):
    page = visit()
    pixels = choose(page, "dress")
    paint_hole(page)
    page.locator("#model input").click()
    page.get_by_role("option", name="bundled/emoji").click()
    page.locator("#description").get_by_text("knows emoji in colour, 32 x 32 pixels").wait_for()
    page.locator("#progress").get_by_text("bundled/emoji is loaded").wait_for()
    wait_until(lambda: colour_at(page, 0.5, 0.5) == ORANGE)
    set_calls_and_samples(page, 8, 1)
    page.click("#fill")
    wait_for_results(page, 1)
    assert_only_the_hole_is_filled(download(page, 0).max(-1), pixels)
    assert page.locator("#examples button").count() == 6


@pytest.mark.browser
def test_keys_undo_erase_and_fill(visit):
    page = visit()
    choose(page, "boot")
    before = colour_at(page, 0.5, 0.5)
    paint_hole(page)
    page.keyboard.press("Control+z")
    wait_until(lambda: colour_at(page, 0.5, 0.5) == before)
    page.keyboard.press("Control+Shift+Z")
    wait_until(lambda: colour_at(page, 0.5, 0.5) == ORANGE)
    page.keyboard.press("e")
    page.locator("#painting [aria-label='Eraser Size']").wait_for()
    page.mouse.move(*canvas_point(page, 0.45, 0.5))
    page.mouse.down()
    page.mouse.move(*canvas_point(page, 0.55, 0.5), steps=10)
    page.mouse.up()
    page.mouse.move(*canvas_point(page, 0.9, 0.9))  # the eraser's ring hides what is below it
    wait_until(lambda: colour_at(page, 0.5, 0.5) == before)
    page.keyboard.press("b")
    page.locator("#painting [aria-label='Brush Size']").wait_for()
    set_calls_and_samples(page, 8, 1)
    page.keyboard.press("Control+Enter")
    wait_for_results(page, 1)


def start_long_chain(page):
    """Fill a hole with RePaint's own schedule, which takes minutes."""
    paint_hole(page)
    page.get_by_text("Expert settings").click()
    page.get_by_label("RePaint's own schedule").check()
    page.click("#fill")


@pytest.mark.browser
def test_stop_stops_the_computation_and_the_next_one_runs(visit):
    page = visit()
    start_long_chain(page)
    page.locator("#progress").get_by_text(re.compile(r"of 2,410 model calls, about \d+ s left")).wait_for()
    assert page.locator("#results .grid-container img").count() == 4, "previews come while the chain runs"
    page.click("#stop")
    page.locator("#progress").get_by_text("Stopped").wait_for()
    page.get_by_label("RePaint's own schedule").uncheck()
    set_calls_and_samples(page, 8, 1)
    start = time.monotonic()
    page.click("#fill")
    wait_for_results(page, 1)
    # Chains wait for each other, so that a stopped one of which minutes are left is really gone.
    assert time.monotonic() - start < 20


@pytest.mark.browser
def test_two_visitors_at_once_get_their_own_results(visit):
    pages = [visit(), visit()]
    pictures = [choose(page, name) for page, name in zip(pages, ("boot", "shirt"), strict=True)]
    for page in pages:
        paint_hole(page)
        set_calls_and_samples(page, 64, 2)
    for page in pages:
        page.click("#fill")
    for page, pixels in zip(pages, pictures, strict=True):
        wait_for_results(page, 2)
        assert_only_the_hole_is_filled(download(page, 1), pixels)


@pytest.mark.browser
def test_a_laptop_s_screen_shows_all_at_once(visit):
    page = visit()
    choose(page, "boot")
    paint_hole(page)
    set_calls_and_samples(page, 64, 6)
    page.click("#fill")
    wait_for_results(page, 6)
    page.wait_for_function(
        "[...document.querySelectorAll('#results .grid-container img')].every(i => i.complete)"
    )
    assert page.evaluate("document.documentElement.scrollHeight") <= 800
    if "APP_SCREENSHOT" in environ:
        page.mouse.move(0, 0)
        page.screenshot(path=environ["APP_SCREENSHOT"])


@pytest.mark.browser
def test_a_visitor_who_leaves_is_no_longer_worked_for(visit):
    leaving, staying = visit(), visit()
    start_long_chain(leaving)
    leaving.locator("#progress").get_by_text("of 2,410 model calls, about").wait_for()
    leaving.context.close()
    paint_hole(staying)
    set_calls_and_samples(staying, 8, 1)
    start = time.monotonic()
    staying.click("#fill")
    wait_for_results(staying, 1)
    assert time.monotonic() - start < 20


@pytest.mark.browser
def test_what_is_missing_or_wrong_is_said_in_one_sentence(visit, tmp_path):
    page = visit()
    page.click("#fill")
    page.get_by_text("nothing is painted: paint over the pixels to fill").wait_for()
    (tmp_path / "text.png").write_text("no picture")
    open_file(page, 0, tmp_path / "text.png")
    page.get_by_text("text.png is not a picture that can be read").wait_for()
    (tmp_path / "large.png").write_bytes(bytes(53_000_000))
    open_file(page, 0, tmp_path / "large.png")
    page.get_by_text("exceed the maximum allowed size of 50.0 Mb").wait_for()
    page.click("#download")
    page.get_by_text("there is no result yet: paint and fill").wait_for()
    pixels = choose(page, "dress")
    paint_hole(page)
    page.get_by_label("Clear canvas").click()
    wait_until_shown(page, pixels)
    page.click("#fill")
    page.get_by_text("nothing is painted").last.wait_for()


@pytest.mark.browser
def test_ctrl_c_ends_it_while_it_computes(visit, tmp_path):
    with serving(tmp_path / "errors") as (process, address):
        page = visit(address)
        paint_hole(page)
        set_calls_and_samples(page, 256, 8)
        page.click("#fill")
        page.locator("#progress").get_by_text("of 256 model calls, about").wait_for()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert (tmp_path / "errors").read_text() == "repaint-jax app: interrupted\n"
