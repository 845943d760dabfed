"""The web app: its functions, and the page in a real browser."""

import contextlib
import dataclasses
import importlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from os import environ
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")

import repaint_jax as rp
from repaint_jax.cli import app
from repaint_jax.models.pretrained import pictures_of_model
from repaint_jax.pictures.images import resize_together

BUNDLED_SHAPE = (28, 28, 1)
SETTINGS = {"seed": 3, "class_label": 0, "own_schedule": False}
OWN = {"num_inference_steps": 4, "jump_length": 2, "jump_n_sample": 2, "eta": 1.0}


def paint(size: tuple[int, int], *boxes: tuple[int, int, int, int]) -> dict:
    """What the editor returns: a picture, and a layer that is opaque in boxes."""
    layer = Image.new("RGBA", size)
    for box in boxes:
        layer.paste("orange", box)
    return {"background": Image.new("RGB", size), "layers": [layer], "composite": None}


@pytest.fixture
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("settings", [{"own_schedule": False}, {"own_schedule": True}])
def test_results_are_those_of_the_pipeline(pipe, picture, settings):
    painting = paint((384, 384), (192, 0, 384, 384))
    options = SETTINGS | OWN | settings
    *_, (gallery, progress) = app.fill(pipe, picture, painting, 9, 2, **options)
    mask = Image.new("L", (8, 8), 255)
    mask.paste(0, (4, 0, 8, 8))
    schedule = OWN if settings["own_schedule"] else {"num_model_calls": 9}
    expected = pipe(picture, mask, **schedule, key=jax.random.key(3), num_samples=2).images
    assert [one.tobytes() for one in gallery["value"]] == [one.tobytes() for one in expected]
    assert re.search(r"(\d+) of \1 model calls, 2 results", progress)


def test_colour_models_of_any_proportions_and_with_classes_are_served(unet_config, random_unet):
    config = dataclasses.replace(
        unet_config, sample_size=(8, 12), in_channels=3, out_channels=3, num_class_embeds=3
    )
    pipe = rp.RePaintPipeline.from_unet2d(random_unet(config), rp.RePaintSchedulerConfig())
    with app.build_page(pipe) as page:
        assert page.title == "repaint-jax"
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8))
    painting = paint(app.enlarged_size((12, 8)), (0, 0, 198, 264))
    settings = SETTINGS | OWN | {"class_label": 2}
    *_, (gallery, _) = app.fill(pipe, picture, painting, 8, 1, **settings)
    mask = Image.new("L", (12, 8), 255)
    mask.paste(0, (0, 0, 6, 8))
    options = {"num_model_calls": 8, "key": jax.random.key(3), "class_labels": 2}
    assert gallery["value"][0].tobytes() == pipe(picture, mask, **options).images[0].tobytes()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"picture": None}, "there is no picture: upload one"),
        ({"painting": None}, "nothing is painted: paint over the pixels to fill"),
        ({"painting": paint((384, 384))}, "nothing is painted: paint over the pixels to fill"),
        ({"painting": paint((384, 384), (0, 0, 9, 9))}, "nothing is painted: paint over the pixels to"),
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
    inputs = {"picture": picture, "painting": paint((384, 384), (0, 0, 384, 384))}
    inputs |= {"num_model_calls": 9, "num_samples": 2} | SETTINGS | OWN | change
    with pytest.raises((ValueError, TypeError), match=expected):
        next(app.fill(pipe, **inputs))


def test_paint_of_any_size_becomes_a_mask_of_the_model_s_size():
    painting = paint((300, 200), (0, 0, 150, 100), (290, 190, 300, 200))
    mask = np.asarray(app.mask_of(painting, (20, 30, 3)))
    hole = np.zeros((20, 30), bool)
    hole[:10, :15] = hole[19:, 29:] = True
    np.testing.assert_array_equal(mask, np.where(hole, 0, 255))


def test_uploads_are_read_in_the_model_s_size_or_refused_by_name(tmp_path, monkeypatch):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 40, 3), np.uint8))
    photo.save(tmp_path / "photo.png")
    for shape in (BUNDLED_SHAPE, (12, 16, 3)):
        expected = resize_together([photo], [Image.new("L", photo.size)], shape)[0][0]
        assert app.read_picture(tmp_path / "photo.png", shape).tobytes() == expected.tobytes()
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"^text.png is not a picture that can be read"):
        app.read_picture(tmp_path / "text.png", BUNDLED_SHAPE)
    monkeypatch.setattr(app, "MAX_PIXELS", 2000)
    with pytest.raises(ValueError, match=r"^photo.png has 40 x 60 pixels, expected at most 2,000"):
        app.read_picture(tmp_path / "photo.png", BUNDLED_SHAPE)


def test_transparent_uploads_are_white_or_on_the_background_of_the_command(pipe, tmp_path):
    Image.new("LA", (9, 9)).save(tmp_path / "clear.png")
    assert app.read_picture(tmp_path / "clear.png", BUNDLED_SHAPE).getextrema() == (255, 255)
    assert app.read_picture(tmp_path / "clear.png", BUNDLED_SHAPE, "#404040").getextrema() == (64, 64)
    app.build_page(pipe, [tmp_path / "clear.png"], background="black")
    with pytest.raises(ValueError, match="background is 'no', expected an opaque colour"):
        app.serve("bundled", background="no", host="127.0.0.1", port=0)


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (256, 192), (1024, 512)])
def test_small_pictures_are_enlarged_by_a_whole_factor(size):
    width, height = app.enlarged_size(size)
    assert max(width, height) >= 384
    assert (width / size[0], height / size[1]) == (width // size[0],) * 2
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    assert app.enlarged(Image.fromarray(pixels)).resize(size, Image.Resampling.NEAREST).tobytes() == (
        pixels.tobytes()
    )


# In a browser


FAMILIES = {False: socket.AF_INET, True: socket.AF_INET6}
SECONDS = 1000  # of Playwright's, which are milliseconds
WAIT = 60 * SECONDS


@contextlib.contextmanager
def serving(
    log: Path, host: str = "127.0.0.1", environment: Mapping[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen, str]]:
    """The command in a process of its own, and its address."""
    with socket.create_server((host.strip("[]"), 0), family=FAMILIES[":" in host]) as free:
        port = free.getsockname()[1]
    # Where tests run in the background SIGINT is ignored, and processes inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "repaint_jax", "app", "--port", str(port), "--host", host],
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

    def open_page(address: str = address):
        context = chromium.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
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
        wait_until_shown(page, example_pixels(0))
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert elsewhere == [], "the page needs no other machine"


ORANGE = (222, 120, 60)
EXAMPLES = pictures_of_model("bundled")


def example_pixels(index: int) -> np.ndarray:
    return np.asarray(app.read_picture(EXAMPLES[index], BUNDLED_SHAPE))


def canvas_point(page, across: float, down: float) -> tuple[float, float]:
    """Where on the screen a point of the picture is, which has coordinates from 0 to 1."""
    box = page.locator("#painting .pixi-target canvas").bounding_box()
    # The editor leaves 30 pixels around a picture that is as wide and high as it.
    side = min(box["width"], box["height"]) - 60
    left, top = box["x"] + (box["width"] - side) / 2, box["y"] + (box["height"] - side) / 2
    return left + across * side, top + down * side


def colour_at(page, across: float, down: float) -> tuple[int, int, int]:
    x, y = canvas_point(page, across, down)
    with Image.open(BytesIO(page.screenshot(clip={"x": x, "y": y, "width": 1, "height": 1}))) as pixel:
        return pixel.convert("RGB").getpixel((0, 0))


def wait_until(condition: Callable[[], bool]) -> None:
    """Ask again and again; every asking takes the browser a while."""
    end = time.monotonic() + WAIT / SECONDS
    while not condition():
        assert time.monotonic() < end


def paint_hole(page) -> None:
    """Paint from (0.3, 0.5) to (0.7, 0.5) with the mouse."""
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
    page.locator("#progress").get_by_text(f"{number} results").wait_for()
    assert page.locator("#results .grid-container img").count() == number


def download(page, number: int) -> np.ndarray:
    """The pixels of one of the results, downloaded as a visitor does."""
    page.locator("#results .grid-container img").nth(number).click()
    with page.expect_download() as loading:
        page.locator("#results [aria-label='Download']").click()
    page.locator("#results [aria-label='Close']").click()
    assert loading.value.suggested_filename.endswith(".png")
    return np.asarray(Image.open(loading.value.path()))


def assert_only_the_hole_is_filled(result: np.ndarray, pixels: np.ndarray) -> None:
    assert (result.shape, result.dtype) == (pixels.shape, np.uint8)
    changed = result != pixels
    outside = np.ones_like(changed)
    outside[10:18, 5:23] = False  # the stroke, and no more of it than the brush is thick
    assert not changed[outside].any(), "known pixels are exact"
    assert changed[13:15, 9:19].mean() > 0.5, "the hole is filled"


@pytest.mark.browser
def test_an_upload_is_painted_filled_compared_and_downloaded(visit, tmp_path):
    page = visit()
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8)).resize((90, 70))
    photo.save(tmp_path / "photo.png")
    pixels = np.asarray(app.read_picture(tmp_path / "photo.png", BUNDLED_SHAPE))
    page.locator("input[type=file]").last.set_input_files(tmp_path / "photo.png")
    wait_until_shown(page, pixels)
    paint_hole(page)
    set_calls_and_samples(page, 16, 3)
    page.click("#fill")
    wait_for_results(page, 3)
    results = [download(page, i) for i in range(3)]
    for result in results:
        assert_only_the_hole_is_filled(result, pixels)
    assert (results[0] != results[1]).any() and (results[1] != results[2]).any()


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
    page.locator("input[type=file]").last.set_input_files(tmp_path / "text.png")
    page.get_by_text("text.png is not a picture that can be read").wait_for()
    (tmp_path / "large.png").write_bytes(bytes(21_000_000))
    page.locator("input[type=file]").last.set_input_files(tmp_path / "large.png")
    page.get_by_text("exceed the maximum allowed size of 20.0 Mb").wait_for()
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
