"""The web page of `repaint-jax app`: paint over a part of a picture, and watch the model fill it."""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
from PIL import Image, ImageChops

from repaint_jax.files import StrPath, optional_package
from repaint_jax.models.pretrained import pictures_of_model
from repaint_jax.pictures.colours import DEFAULT_BACKGROUND, Colour, rgb
from repaint_jax.pictures.images import open_image, resize_together
from repaint_jax.pictures.plots import HOLE_COLOUR
from repaint_jax.pipeline import RePaintPipeline
from repaint_jax.sampling.budget_schedule import DEFAULT_MODEL_CALLS
from repaint_jax.sampling.keys import seed_key

with optional_package("gradio", "the web app needs gradio: install repaint_jax[app]"):
    import gradio as gr

DEFAULT_SAMPLES = 4
MAX_SAMPLES = 8
MAX_BUDGET = 256
MAX_MODEL_CALLS = 5000  # with RePaint's own schedule; the paper's setting has 2,410
MAX_PASSES = 100
MAX_PIXELS = 50_000_000
MAX_FILE_SIZE = "20mb"
MAX_WAITING = 20

_CANVAS_SIDE = 384
_EDITOR_SIDE = 480
_SECONDS_BETWEEN_PREVIEWS = 0.25
_FONTS = ("system-ui", "sans-serif")  # the visitor's fonts: the page loads nothing from elsewhere

_CSS = """
.gradio-container { width: 100%; max-width: 1160px !important; margin: 0 auto !important; }
#painting { margin-left: 0; }
#painting [aria-label="Color"] { display: none; }
#results img, #examples img { image-rendering: pixelated; width: 100%; height: 100%; object-fit: contain; }
#choice { max-width: 480px; }
#examples .grid-wrap { padding: 0; overflow: hidden; }
#examples .grid-container { padding: 0; grid: auto / auto-flow minmax(0, 56px); justify-content: start; }
#examples .thumbnail-item { width: 100%; height: auto; aspect-ratio: 1; }
#results .grid-wrap { padding-top: 36px; }
#results img, #results .thumbnail-item { border-radius: 0; }
#progress { min-height: 36px; }
#progress > * { padding: 0; }
.bar { height: 6px; border-radius: 3px; background: var(--border-color-primary); overflow: hidden; }
.bar div { height: 100%; background: var(--color-accent); }
"""


def serve(
    model: StrPath,
    *,
    dtype: str | None = None,
    autoencoder: StrPath | None = None,
    background: Colour = DEFAULT_BACKGROUND,
    host: str,
    port: int,
) -> None:
    """Serve the page until the process is interrupted.

    Args:
        model: the model, as in `RePaintPipeline.from_pretrained`. The pictures in its folder `images`, if
            there is one, become the examples.
        dtype: the dtype of the model's arithmetic.
        autoencoder: the autoencoder of a latent model, as in `RePaintPipeline.from_pretrained`.
        background: the colour behind transparent pixels, as for a call of the pipeline.
        host: the address to listen on.
        port: the port to listen on.

    Raises:
        ValueError: if the address cannot be used, background is no colour, or the model cannot be loaded.
    """
    rgb(background)
    host = host.strip("[]")  # IPv6 addresses have them in URLs
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise ValueError(f"--host is {host} and --port is {port}: {error.strerror}") from None
    address = f"[{host}]" if family == socket.AF_INET6 else host
    _reach_without_proxy(host)
    pipe = RePaintPipeline.from_pretrained(model, dtype=dtype, autoencoder=autoencoder)
    prepared = Event()
    page = build_page(pipe, pictures_of_model(model), prepared.wait, background)
    page.launch(
        server_name=address,
        server_port=port,
        prevent_thread_lock=True,
        share=False,
        quiet=True,
        ssr_mode=False,
        footer_links=[],
        max_file_size=MAX_FILE_SIZE,
        theme=gr.themes.Default(
            primary_hue="orange",
            neutral_hue="stone",
            font=_FONTS,
            font_mono=("ui-monospace", "monospace"),
        ),
        css=_CSS,
    )
    Thread(target=_prepare, args=(pipe, prepared), daemon=True).start()
    print(f"http://{address}:{port} is open; Ctrl-C stops it", flush=True)
    try:
        while True:
            time.sleep(0.5)  # a short sleep: a signal that another thread receives does not wake this one
    finally:
        # Open pages keep their connections. Close these after a second, without a message.
        page.server.config.timeout_graceful_shutdown = 1
        logging.getLogger("uvicorn.error").disabled = True
        page.close(verbose=False)


def build_page(
    pipe: RePaintPipeline,
    examples: Sequence[StrPath] = (),
    wait: Callable[[], Any] = lambda: None,
    background: Colour = DEFAULT_BACKGROUND,
) -> gr.Blocks:
    """Build the page for a model.

    Args:
        pipe: the model.
        examples: the pictures that visitors can choose from.
        wait: a function that is called before each chain.
        background: the colour behind transparent pixels, as for a call of the pipeline.
    """
    height, width, _ = pipe.image_shape
    pictures = [read_picture(path, pipe.image_shape, background) for path in examples]
    first = pictures[0] if pictures else None

    def choose(picture: Image.Image) -> tuple[Image.Image, Any]:
        return picture, as_painting(picture)

    def choose_example(event: gr.SelectData) -> tuple[Image.Image, Any]:
        return choose(pictures[event.index])

    def upload(path: str) -> tuple[Image.Image, Any]:
        with _refusals_shown():
            return choose(read_picture(path, pipe.image_shape, background))

    def fill_prepared(*values: Any) -> Iterator[tuple[Any, str]]:
        wait()
        with _refusals_shown():
            yield from fill(pipe, *values)

    with gr.Blocks(title="repaint-jax", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown("## Paint over the pixels to fill\n" + _description(pipe))
        picture = gr.State(first)
        with gr.Row():
            with gr.Column(min_width=_EDITOR_SIDE):
                painting = gr.ImageEditor(
                    None if first is None else as_painting(first),
                    type="pil",
                    format="png",
                    sources=(),
                    transforms=(),
                    layers=False,
                    brush=gr.Brush(
                        default_size=36,
                        colors=["#{:02x}{:02x}{:02x}".format(*HOLE_COLOUR)],
                        color_mode="fixed",
                    ),
                    canvas_size=enlarged_size((width, height)),
                    show_label=False,
                    buttons=[],
                    # Set explicitly, because the editor measures its size before the page is laid out.
                    height=_EDITOR_SIDE,
                    width=_EDITOR_SIDE,
                    elem_id="painting",
                )
                with gr.Row(elem_id="choice"):
                    example = gr.Gallery(
                        [enlarged(one) for one in pictures],
                        columns=len(pictures) or 1,
                        rows=1,
                        height=60,
                        allow_preview=False,
                        show_label=False,
                        container=False,
                        format="png",
                        buttons=[],
                        visible=bool(pictures),
                        interactive=False,
                        scale=3,
                        elem_id="examples",
                    )
                    upload_button = gr.UploadButton(
                        "Upload", file_types=["image"], scale=0, min_width=100, size="md"
                    )
            with gr.Column(min_width=_EDITOR_SIDE):
                with gr.Row():
                    calls = gr.Slider(
                        8,
                        MAX_BUDGET,
                        DEFAULT_MODEL_CALLS,
                        step=8,
                        label="Model calls",
                        info="more: better, slower",
                    )
                    samples = gr.Slider(
                        1, MAX_SAMPLES, DEFAULT_SAMPLES, step=1, label="Samples", info="number of results"
                    )
                with gr.Row():
                    fill_button = gr.Button("Fill", variant="primary", elem_id="fill")
                    stop_button = gr.Button("Stop", elem_id="stop")
                progress = gr.HTML(elem_id="progress")
                results = gr.Gallery(
                    height=400,
                    format="png",
                    label="Results",
                    buttons=["download", "download_all", "fullscreen"],
                    interactive=False,
                    elem_id="results",
                )
        with gr.Accordion("Expert settings", open=False):
            with gr.Row():
                seed = gr.Number(0, label="Seed", info="the same seed gives the same results", precision=0)
                class_label = gr.Number(
                    0, label="Class label", precision=0, visible=pipe.is_class_conditional
                )
                own_schedule = gr.Checkbox(label="RePaint's own schedule instead of the model calls above")
            with gr.Row():
                own_settings = [
                    gr.Number(250, label="Inference steps T", precision=0, maximum=MAX_MODEL_CALLS),
                    gr.Number(10, label="Jump length", precision=0, maximum=MAX_MODEL_CALLS),
                    gr.Number(10, label="Passes through each stretch", precision=0, maximum=MAX_PASSES),
                    gr.Number(1.0, label="eta, share of DDPM's noise"),
                ]

        # Private, because these events serve only this page. Programs should use `RePaintPipeline`.
        quietly: Any = {"show_progress": "hidden", "api_visibility": "private"}
        painting.clear(as_painting, picture, painting, **quietly)
        example.select(choose_example, None, [picture, painting], **quietly)
        upload_button.upload(upload, upload_button, [picture, painting], **quietly)
        filling = fill_button.click(
            fill_prepared,
            [picture, painting, calls, samples, seed, class_label, own_schedule, *own_settings],
            [results, progress],
            show_progress="minimal",
            show_progress_on=progress,
            concurrency_limit=1,  # a chain uses the whole machine
            api_visibility="private",
        )
        # A separate event, so that the message follows the last output of the cancelled one.
        stop_button.click(None, cancels=filling, queue=False, api_visibility="private").then(
            lambda: "Stopped. The pictures are intermediate predictions, not results.",
            None,
            progress,
            queue=False,
            **quietly,
        )
    page.queue(max_size=MAX_WAITING)
    return page


def read_picture(
    path: StrPath, image_shape: tuple[int, int, int], background: Colour = DEFAULT_BACKGROUND
) -> Image.Image:
    """Read an uploaded picture, and convert it to the model's size and colours.

    Args:
        path: the file.
        image_shape: the shape [H, W, C] of the model's images.
        background: the colour behind transparent pixels, as for a call of the pipeline.

    Raises:
        ValueError: if the file is not a picture, or has more than MAX_PIXELS pixels.
    """
    name = Path(path).name
    width = height = 0
    unreadable = (Image.DecompressionBombError, OSError, SyntaxError, ValueError)  # refused below
    with suppress(*unreadable), Image.open(path) as header:
        width, height = header.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{name} has {width} x {height} pixels, expected at most {MAX_PIXELS:,}")
    try:
        picture = open_image(path)
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), name)) from None
    ((resized,), _) = resize_together([picture], [Image.new("L", picture.size)], image_shape, background)
    return resized


def as_painting(picture: Image.Image) -> Any:
    """Return the editor's value for a picture without paint."""
    return {"background": enlarged(picture), "layers": [], "composite": None}


def enlarged(picture: Image.Image) -> Image.Image:
    """Enlarge a small picture for painting. Each pixel becomes a square of pixels."""
    return picture.resize(enlarged_size(picture.size), Image.Resampling.NEAREST)


def enlarged_size(size: tuple[int, int]) -> tuple[int, int]:
    """Multiply a size by the smallest whole number that makes its longer side at least _CANVAS_SIDE."""
    factor = max(1, -(-_CANVAS_SIDE // max(size)))
    return size[0] * factor, size[1] * factor


def mask_of(painting: dict[str, Any] | None, image_shape: tuple[int, int, int]) -> Image.Image:
    """Return the mask of the editor's paint.

    The mask has the model's size. It is black where at least half of a pixel is painted.

    Args:
        painting: the editor's value. Its "layers" are RGBA pictures of the canvas, opaque where painted.
        image_shape: the shape [H, W, C] of the model's images.

    Raises:
        ValueError: if nothing is painted.
    """
    height, width, _ = image_shape
    mask = Image.new("L", (width, height), 255)
    for layer in (painting or {}).get("layers", ()):
        kept = ImageChops.invert(layer.getchannel("A")).resize((width, height), Image.Resampling.BOX)
        mask = ImageChops.darker(mask, kept)
    mask = mask.point(lambda value: 255 if value >= 128 else 0)
    if mask.getextrema()[0] == 255:
        raise ValueError("nothing is painted: paint over the pixels to fill")
    return mask


def fill(
    pipe: RePaintPipeline,
    picture: Image.Image | None,
    painting: dict[str, Any] | None,
    num_model_calls: int,
    num_samples: int,
    seed: int,
    class_label: int | None,
    own_schedule: bool,
    num_inference_steps: int | None,
    jump_length: int | None,
    jump_n_sample: int | None,
    eta: float | None,
) -> Iterator[tuple[Any, str]]:
    """Run a chain, and yield pictures for the gallery and the progress a few times a second.

    The last pictures are the results.

    Args:
        pipe: the model.
        picture: the picture, of the model's size.
        painting: the editor's value, see `mask_of`.
        num_model_calls: the call budget.
        num_samples: the number of results.
        seed: the seed of the noise.
        class_label: the class label. It is used only with a class-conditional model.
        own_schedule: whether to use RePaint's own schedule instead of the call budget.
        num_inference_steps: the number of inference steps T of RePaint's own schedule.
        jump_length: the number of inference steps that a jump goes back.
        jump_n_sample: the number of passes through each stretch of jump_length steps.
        eta: the share of DDPM's noise in a step.

    Raises:
        ValueError: if there is no picture, no paint, or no valid schedule.
    """
    if picture is None:
        raise ValueError("there is no picture: upload one")
    mask = mask_of(painting, pipe.image_shape)
    key = seed_key(seed)
    schedule: dict[str, Any] = {"num_model_calls": num_model_calls}
    if own_schedule:
        schedule = {
            "num_inference_steps": num_inference_steps,
            "jump_length": jump_length,
            "jump_n_sample": jump_n_sample,
            "eta": eta,
        }
    state = pipe.set_timesteps(**schedule)
    total = state.num_model_calls or 0
    if total > MAX_MODEL_CALLS:
        raise ValueError(f"this schedule has {total:,} model calls, expected at most {MAX_MODEL_CALLS:,}")
    yield gr.skip(), _progress(0, total, "preparing the network")
    chain = pipe.watch(
        picture,
        mask,
        state=state,
        key=key,
        num_samples=num_samples,
        class_labels=class_label if pipe.is_class_conditional else None,
    )
    columns = min(num_samples, 2 if num_samples <= 2 else 3 if num_samples <= 6 else 4)
    started = shown = -np.inf
    for watched in chain:
        now = time.perf_counter()
        if watched.calls_done == 1:
            started = now
        if watched.calls_done == total:
            yield (
                gr.update(value=watched.images, columns=columns),
                _progress(total, total, f"{num_samples} results"),
            )
        elif now - shown >= _SECONDS_BETWEEN_PREVIEWS:
            shown = now
            timed = watched.calls_done - 1
            left = (total - watched.calls_done) * (now - started) / max(timed, 1)
            yield (
                gr.update(value=watched.images, columns=columns),
                _progress(watched.calls_done, total, f"about {left:.0f} s left" if timed else "started"),
            )


def _reach_without_proxy(host: str) -> None:
    """Let gradio reach its own server, which it asks for once at the start, past a proxy that is set."""
    for name in ("no_proxy", "NO_PROXY"):
        hosts = [os.environ.get(name, ""), "localhost", "127.0.0.1", "::1", host]
        os.environ[name] = ",".join(filter(None, hosts))


def _prepare(pipe: RePaintPipeline, prepared: Event) -> None:
    """Compile the default chain, so that the first visitor does not wait for it."""
    picture, hole = np.zeros(pipe.image_shape, np.uint8), np.zeros(pipe.image_shape[:2], bool)
    options: dict[str, Any] = {"class_labels": 0 if pipe.is_class_conditional else None}
    try:
        with suppress(Exception):  # the first chain raises the same error, and shows it
            next(pipe.watch(picture, hole, key=seed_key(0), num_samples=DEFAULT_SAMPLES, **options))
    finally:
        prepared.set()


def _description(pipe: RePaintPipeline) -> str:
    height, width, channels = pipe.image_shape
    colours = "grey" if channels == 1 else "colour"
    return f"This model fills {colours} pictures of {width} x {height} pixels. Other pictures are resized."


def _progress(calls_done: int, total: int, remark: str) -> str:
    bar = f'<div class="bar"><div style="width: {100 * calls_done / total:.1f}%"></div></div>'
    return f"{bar}{calls_done:,} of {total:,} model calls, {remark}"


@contextmanager
def _refusals_shown() -> Iterator[None]:
    """Show errors of the input to the visitor, in one sentence."""
    try:
        yield
    except (ValueError, TypeError, ArithmeticError, MemoryError) as error:
        raise gr.Error(str(error), print_exception=False) from None
