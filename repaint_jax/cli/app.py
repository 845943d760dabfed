"""The web page of `repaint-jax app`: paint over a part of a picture, and watch the model fill it."""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import Any

from PIL import Image

from repaint_jax.cli import app_pictures as pictures
from repaint_jax.cli.app_models import Models, models_here
from repaint_jax.files import StrPath, optional_package
from repaint_jax.models.pretrained import pictures_of_model
from repaint_jax.pictures.colours import DEFAULT_BACKGROUND, Colour, rgb
from repaint_jax.pictures.plots import HOLE_COLOUR
from repaint_jax.pictures.windows import DEFAULT_CONTEXT
from repaint_jax.pipeline import RePaintPipeline
from repaint_jax.sampling.budget_schedule import DEFAULT_MODEL_CALLS

with optional_package("gradio", "the web app needs gradio: install repaint_jax[app]"):
    import gradio as gr

DEFAULT_SAMPLES = 4
MAX_SAMPLES = 8
MAX_BUDGET = 256
MAX_PASSES = 100
MAX_FILE_SIZE = "50mb"
MAX_WAITING = 20

_EDITOR_SIDE = 480
_GALLERY_HEIGHT = 372
_FONTS = ("system-ui", "sans-serif")  # the visitor's fonts: the page loads nothing from elsewhere
_NO_RESULT = "there is no result yet: paint and fill"

_CSS = """
.gradio-container { width: 100%; max-width: 1160px !important; margin: 0 auto !important; }
#painting { margin-left: 0; }
#painting [aria-label="Color"] { display: none; }
#left > * { max-width: 480px; margin-left: 0 !important; }
#examples img { image-rendering: pixelated; width: 100%; height: 100%; object-fit: contain; }
#examples .grid-wrap { padding: 0; overflow: hidden; }
#examples .grid-container { padding: 0; grid: auto / auto-flow minmax(0, 56px); justify-content: start; }
#examples .thumbnail-item { width: 100%; height: auto; aspect-ratio: 1; }
#results .grid-wrap, #windows .grid-wrap { padding-top: 8px; }
#results img, #windows img { object-fit: contain; }
#results img, #results .thumbnail-item, #windows .thumbnail-item { border-radius: 0; }
#progress { min-height: 36px; }
#progress > * { padding: 0; }
.bar { height: 6px; border-radius: 3px; background: var(--border-color-primary); overflow: hidden; }
.bar div { height: 100%; background: var(--color-accent); }
#description { min-width: min(300px, 100%); }
@media (max-width: 640px) {
    #model { min-width: 100% !important; }
    #painting { height: 400px !important; }
    #results, #windows { height: 300px !important; }
}
"""

_SHORTCUTS = """() => document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input:not([type=range]), textarea");
    const control = event.ctrlKey || event.metaKey;
    const key = (control ? "ctrl " : "") + (event.shiftKey ? "shift " : "") + event.key.toLowerCase();
    const selector = {
        "ctrl enter": "#fill",
        "ctrl z": "#painting [aria-label='Undo']",
        "ctrl shift z": "#painting [aria-label='Redo']",
        "ctrl y": "#painting [aria-label='Redo']",
        "b": "#painting [aria-label='Brush']",
        "e": "#painting [aria-label='Erase']",
        "+": "#painting [aria-label='Zoom in']",
        "-": "#painting [aria-label='Zoom out']",
    }[key];
    if (!selector || (typing && key !== "ctrl enter")) return;
    event.preventDefault();
    document.querySelector(selector)?.click();
})"""
_SHORTCUTS_HELP = (
    "Keys: B brush, E eraser, + and - or Alt and the wheel zoom, Ctrl+Z undo, Ctrl+Shift+Z redo, "
    "Ctrl+Enter fill."
)

_DOWNLOAD = """(file) => {
    if (!file) return;
    const link = document.createElement("a");
    link.href = file.url;
    link.download = file.orig_name;
    link.click();
}"""


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

    def load(path: str) -> RePaintPipeline:
        own = autoencoder if path == str(model) else None
        return RePaintPipeline.from_pretrained(path, dtype=dtype, autoencoder=own)

    models = Models(model, load, models_here(model))
    prepared = Event()
    page = build_page(models, prepared.wait, background)
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
    Thread(target=_prepare, args=(models, prepared), daemon=True).start()
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
    models: Models,
    wait: Callable[[], Any] = lambda: None,
    background: Colour = DEFAULT_BACKGROUND,
) -> gr.Blocks:
    """Build the page.

    Args:
        models: the models that visitors can choose from. The pictures in their folders are examples.
        wait: a function that is called before each chain.
        background: the colour behind transparent pixels, as for a call of the pipeline.
    """
    chosen = models.default
    first = next(iter(_examples(chosen)), None)

    def on_canvas(picture: Image.Image | None, model: str, mask: Image.Image | None = None) -> Any:
        """Return the editor's value for a picture, and a mask."""
        if picture is None:
            return None
        shown = pictures.canvas_of(pictures.in_colours_of(models.get(model), picture, background))
        layers = [] if mask is None else [pictures.paint_of(mask)]
        return {"background": shown, "layers": layers, "composite": None}

    def open_picture(path: str, model: str) -> tuple[Any, Any, None]:
        with _refusals_shown():
            picture = pictures.read_picture(path)
            return picture, on_canvas(picture, model), None

    def choose_example(model: str, event: gr.SelectData) -> tuple[Any, Any, None]:
        return open_picture(str(pictures_of_model(model)[event.index]), model)

    def open_mask(path: str, picture: Image.Image | None, model: str) -> tuple[Any, Any]:
        with _refusals_shown():
            if picture is None:
                raise ValueError("there is no picture for the mask: upload one first")
            mask = pictures.read_mask(path, picture.size)
            return on_canvas(picture, model, mask), mask

    def choose_model(
        model: str, before: str, picture: Image.Image | None, paint: list[str] | None
    ) -> Iterator[tuple[Any, ...]]:
        kept = (gr.skip(),) * 4
        name = escape(models.names[model])
        yield gr.skip(), before, *kept, f"{name} is being loaded"
        try:
            pipe = models.get(model)
            shown = on_canvas(picture, model)
            if shown is not None:
                shown["layers"] = _layers(paint)
            label = gr.update(visible=pipe.is_class_conditional)
            example = _example_gallery(model)
            yield model, model, models.description(model), example, shown, label, f"{name} is loaded"
        except Exception as error:
            sentence = f"{name} could not be loaded: {escape(str(error) or type(error).__name__)}"
            yield before, before, *kept, sentence

    def task_of(picture: Any, paint: Any, mask: Any, model: str, fit: str, context: float) -> Any:
        options: dict[str, Any] = {"fit": fit, "context": context, "background": background}
        return pictures.make_task(models.get(model), picture, _layers(paint), mask, **options)

    def show_windows(*values: Any) -> Any:
        with _refusals_shown():
            return pictures.windows_shown(models.get(values[3]), task_of(*values))

    def fill(*values: Any) -> Iterator[tuple[Any, ...]]:
        of_task, of_chain = values[:6], values[6:]
        wait()
        with _refusals_shown():
            pipe = models.get(of_task[3])
            for progress in pictures.fill(pipe, task_of(*of_task), *of_chain):
                columns = _columns(len(progress.pictures))
                shown = gr.update(value=progress.pictures, columns=columns, selected_index=None)
                pair = None if progress.results is None else pictures.compared(progress.results, 0)
                yield (
                    shown if progress.pictures else gr.skip(),
                    _progress(progress),
                    progress.results,
                    0,
                    pair,
                )

    def choose_result(results: pictures.Results | None, event: gr.SelectData) -> tuple[int, Any]:
        number = event.index
        return number, gr.skip() if results is None else pictures.compared(results, number)

    def go_on(results: pictures.Results | None, number: int, model: str) -> tuple[Any, Any, None]:
        with _refusals_shown():
            picture = _present(results).whole(number)
            return picture, on_canvas(picture, model), None

    def save_mask(picture: Image.Image | None, paint: Any, mask: Any) -> Iterator[str]:
        with _refusals_shown(), TemporaryDirectory() as folder:
            if picture is None:
                raise ValueError("there is no picture: upload one")
            path = Path(folder, "mask.png")
            pictures.write_png(pictures.mask_of(_layers(paint), picture.size, mask), path)
            yield str(path)  # gradio copies the file

    def save_result(results: pictures.Results | None, number: int) -> Iterator[str]:
        with _refusals_shown(), TemporaryDirectory() as folder:
            path = Path(folder, f"result-{number + 1}.png")
            pictures.write_png(_present(results).whole(number), path)
            yield str(path)

    def save_results(results: pictures.Results | None) -> Iterator[str]:
        with _refusals_shown(), TemporaryDirectory() as folder:
            path = Path(folder, "results.zip")
            pictures.write_zip(_present(results), path)
            yield str(path)

    with gr.Blocks(title="repaint-jax", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        with gr.Row(equal_height=True):
            description = gr.Markdown(models.description(chosen), elem_id="description")
            model = gr.Dropdown(
                models.choices,
                value=chosen,
                label="Model",
                container=False,
                scale=0,
                min_width=260,
                elem_id="model",
            )
        # What a visitor has: the picture at full resolution, an uploaded mask, results, and choices.
        picture, mask, results = gr.State(first), gr.State(None), gr.State(None)
        loaded, number = gr.State(chosen), gr.State(0)
        saved = gr.File(visible="hidden", interactive=False)
        paint = gr.File(visible="hidden", file_count="multiple", interactive=True, elem_id="paint")
        with gr.Row():
            with gr.Column(min_width=300, elem_id="left"):
                painting = gr.ImageEditor(
                    on_canvas(first, chosen),
                    type="pil",
                    format="png",
                    sources=(),
                    transforms=(),
                    layers=False,
                    brush=gr.Brush(
                        default_size=80,
                        colors=["#{:02x}{:02x}{:02x}".format(*HOLE_COLOUR)],
                        color_mode="fixed",
                    ),
                    eraser=gr.Eraser(default_size=60),
                    canvas_size=(pictures.CANVAS_SIDE, pictures.CANVAS_SIDE),
                    show_label=False,
                    buttons=[],
                    # Set explicitly, because the editor measures its size before the page is laid out.
                    height=_EDITOR_SIDE,
                    width=_EDITOR_SIDE,
                    elem_id="painting",
                )
                example = _example_gallery(chosen)
                with gr.Row(elem_classes="row"):
                    small: Any = {"size": "md", "min_width": 90}
                    upload = gr.UploadButton(
                        "Open picture", file_types=["image"], elem_id="upload", **small
                    )
                    upload_mask = gr.UploadButton(
                        "Open mask", file_types=["image"], elem_id="upload-mask", **small
                    )
                    mask_button = gr.Button("Save mask", elem_id="save-mask", **small)
                with gr.Accordion("Expert settings", open=False):
                    with gr.Row():
                        seed = gr.Number(
                            0, label="Seed", info="the same seed gives the same results", precision=0
                        )
                        fit = gr.Dropdown(
                            [
                                ("windows on holes", "crop"),
                                ("all, resized", "resize"),
                                ("all, at its size", "native"),
                            ],
                            label="The model sees",
                            info="see the tab Windows",
                        )
                        context = gr.Slider(
                            0,
                            2,
                            DEFAULT_CONTEXT,
                            step=0.05,
                            label="Context",
                            info="share of the hole, each side",
                        )
                        class_label = gr.Number(
                            0,
                            label="Class label",
                            precision=0,
                            visible=models.get(chosen).is_class_conditional,
                        )
                    own_schedule = gr.Checkbox(label="RePaint's own schedule instead of model calls")
                    with gr.Row():
                        most = pictures.MAX_MODEL_CALLS
                        own_settings = [
                            gr.Number(250, label="Inference steps T", precision=0, maximum=most),
                            gr.Number(10, label="Jump length", precision=0, maximum=most),
                            gr.Number(
                                10, label="Passes through each stretch", precision=0, maximum=MAX_PASSES
                            ),
                            gr.Number(1.0, label="eta, share of DDPM's noise"),
                        ]
                    gr.Markdown(_SHORTCUTS_HELP)
            with gr.Column(min_width=300):
                with gr.Row():
                    calls = gr.Slider(
                        8,
                        MAX_BUDGET,
                        DEFAULT_MODEL_CALLS,
                        step=8,
                        label="Model calls",
                        info="more: better, slower",
                        min_width=140,
                    )
                    samples = gr.Slider(
                        1,
                        MAX_SAMPLES,
                        DEFAULT_SAMPLES,
                        step=1,
                        label="Samples",
                        info="number of results",
                        min_width=140,
                    )
                with gr.Row():
                    fill_button = gr.Button("Fill", variant="primary", min_width=140, elem_id="fill")
                    stop_button = gr.Button("Stop", min_width=140, elem_id="stop")
                progress = gr.HTML(elem_id="progress")
                with gr.Tabs():
                    with gr.Tab("Results"):
                        gallery = gr.Gallery(
                            height=_GALLERY_HEIGHT,
                            format="jpeg",
                            show_label=False,
                            buttons=["fullscreen"],
                            interactive=False,
                            elem_id="results",
                        )
                    with gr.Tab("Before and after"):
                        slider = gr.ImageSlider(
                            max_height=_GALLERY_HEIGHT,
                            format="jpeg",
                            show_label=False,
                            buttons=["fullscreen"],
                            elem_id="slider",
                        )
                    with gr.Tab("Windows", elem_id="windows-tab") as windows_tab:
                        windows = gr.Gallery(
                            height=_GALLERY_HEIGHT,
                            columns=2,
                            format="jpeg",
                            show_label=False,
                            buttons=["fullscreen"],
                            interactive=False,
                            elem_id="windows",
                        )
                with gr.Row():
                    use_button = gr.Button("Use result", elem_id="use", **small)
                    save_button = gr.Button("Download", elem_id="download", **small)
                    save_all_button = gr.Button("Download all", elem_id="download-all", **small)

        # Private, because these events serve only this page. Programs should use `RePaintPipeline`.
        private: Any = {"api_visibility": "private"}
        quietly: Any = {"show_progress": "hidden", **private}
        # Not on the editor: it would upload its pictures at every change of a progress shown on it.
        shown: Any = {"show_progress": "minimal", "show_progress_on": progress, **private}
        of_picture = [picture, painting, mask]
        page.load(None, js=_SHORTCUTS, **quietly)
        painting.clear(lambda *of: (on_canvas(*of), None), [picture, loaded], [painting, mask], **shown)
        example.select(choose_example, loaded, of_picture, **shown)
        upload.upload(open_picture, [upload, loaded], of_picture, **shown)
        upload_mask.upload(open_mask, [upload_mask, picture, loaded], [painting, mask], **shown)

        def with_paint(event: Any) -> Any:
            # An event in the browser, because the editor that is an input of one on the server would upload
            # its pictures at every progress from then on.
            return event(None, painting, paint, js="(painting) => [painting?.layers ?? []]", **quietly).then

        with_paint(model.input)(
            choose_model,
            [model, loaded, picture, paint],
            [model, loaded, description, example, painting, class_label, progress],
            **shown,
        )
        of_task = [picture, paint, mask, loaded, fit, context]
        with_paint(windows_tab.select)(show_windows, of_task, windows, **shown)
        filling = with_paint(fill_button.click)(
            fill,
            [*of_task, calls, samples, seed, class_label, own_schedule, *own_settings],
            [gallery, progress, results, number, slider],
            concurrency_limit=1,  # a chain uses the whole machine
            **shown,
        )
        # A separate event, so that the message follows the last output of the cancelled one.
        stop_button.click(None, cancels=filling, queue=False, **private).then(
            lambda: "Stopped. The pictures are intermediate predictions, not results.",
            None,
            progress,
            queue=False,
            **quietly,
        )
        gallery.select(choose_result, results, [number, slider], **quietly)
        use_button.click(go_on, [results, number, loaded], of_picture, **shown)
        for event, save, values in (
            (with_paint(mask_button.click), save_mask, [picture, paint, mask]),
            (save_button.click, save_result, [results, number]),
            (save_all_button.click, save_results, [results]),
        ):
            event(save, values, saved, **shown).success(None, saved, js=_DOWNLOAD, **quietly)
    page.queue(max_size=MAX_WAITING)
    return page


def _examples(model: str) -> list[Image.Image]:
    return [pictures.read_picture(path) for path in pictures_of_model(model)]


def _example_gallery(model: str) -> gr.Gallery:
    """Return the row of a model's examples."""
    examples = [pictures.fitted(one) for one in _examples(model)]
    return gr.Gallery(
        examples,
        columns=len(examples) or 1,
        rows=1,
        height=60,
        allow_preview=False,
        show_label=False,
        container=False,
        format="png",
        buttons=[],
        visible=bool(examples),
        interactive=False,
        elem_id="examples",
    )


def _layers(paint: list[str] | None) -> list[Image.Image]:
    """Read the editor's layers."""
    return [Image.open(path).convert("RGBA") for path in paint or ()]


def _columns(count: int) -> int:
    return max(1, min(count, 2 if count <= 2 else 3 if count <= 6 else 4))


def _present(results: pictures.Results | None) -> pictures.Results:
    if results is None:
        raise ValueError(_NO_RESULT)
    return results


def _reach_without_proxy(host: str) -> None:
    """Let gradio reach its own server, which it asks for once at the start, past a proxy that is set."""
    for name in ("no_proxy", "NO_PROXY"):
        hosts = [os.environ.get(name, ""), "localhost", "127.0.0.1", "::1", host]
        os.environ[name] = ",".join(filter(None, hosts))


def _prepare(models: Models, prepared: Event) -> None:
    try:
        with suppress(Exception):  # the first chain raises the same error, and shows it
            pictures.prepare(models.get(models.default), DEFAULT_SAMPLES)
    finally:
        prepared.set()


def _progress(progress: pictures.Progress) -> str:
    done, total = progress.calls_done, progress.num_model_calls
    bar = f'<div class="bar"><div style="width: {100 * done / total:.1f}%"></div></div>'
    return f"{bar}{done:,} of {total:,} model calls, {progress.remark}"


@contextmanager
def _refusals_shown() -> Iterator[None]:
    """Show errors to the visitor, in one sentence."""
    try:
        yield
    except (ValueError, TypeError, ArithmeticError, MemoryError) as error:
        raise gr.Error(str(error), print_exception=False) from None
    except Exception as error:  # such as the device's, whose messages have many lines
        line = (str(error).splitlines() or [""])[0]
        raise gr.Error(f"{type(error).__name__}: {line}") from error
