"""Every public function that takes a path takes a string, a Path and any os.PathLike."""

import gzip
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import repaint_jax as rp
from repaint_jax.evaluation import lpips
from repaint_jax.evaluation.evaluate import ImageScores, Sampler, draw, evaluate, masked_batches
from repaint_jax.evaluation.score_tables import read_scores, write_scores, write_tables
from repaint_jax.files import whole_file, whole_folder
from repaint_jax.folder.run import inpaint_folder
from repaint_jax.pictures.datasets import picture_names, read_idx_images, read_images
from repaint_jax.pictures.images import open_image, save_picture
from repaint_jax.pictures.previews import calls_to_show, save_previews
from repaint_jax.sampling import noise_levels
from repaint_jax.training import TrainingConfig, train
from repaint_jax.training_run import train_unet2d


class OwnPath:
    def __init__(self, path: str):
        self._path = path

    def __fspath__(self) -> str:
        return self._path


@pytest.fixture(params=[str, Path, OwnPath])
def kind(request) -> Callable[[str], str | os.PathLike[str]]:
    return request.param


@pytest.fixture
def at(kind, tmp_path: Path, monkeypatch) -> Callable[..., str | os.PathLike[str]]:
    """A path, of one kind, below a folder of the test; relative, as most are."""
    monkeypatch.chdir(tmp_path)
    return lambda *parts: kind(os.path.join(*parts))


def test_pictures(at):
    picture = Image.new("L", (8, 8), 7)
    save_picture(picture, at("in", "a.png"))
    assert open_image(at("in", "a.png")).getpixel((0, 0)) == 7
    assert picture_names(at("in")) == ["a.png"]
    assert read_images(at("in"), 4, grey=True).shape == (1, 4, 4, 1)
    Path("images.gz").write_bytes(gzip.compress(struct.pack(">4i", 2051, 1, 2, 2) + bytes(4)))
    assert read_idx_images(at("images.gz")).shape == (1, 2, 2, 1)
    for name in ("how.png", "how.gif"):
        calls = calls_to_show(at(name), 2)
        save_previews(at(name), np.zeros((8, 8, 3), np.uint8), calls, [[picture], [picture]], [picture])
        assert Path(name).is_file()
    with pytest.raises(ValueError, match=r"^nowhere\.png does not exist"):
        open_image(at("nowhere.png"))


def test_a_drawn_schedule(at):
    pytest.importorskip("matplotlib")
    from repaint_jax.pictures.schedule_plot import draw_schedule

    draw_schedule(rp.set_timesteps_for_budget(rp.create_state(), 8), at("schedule.png"))
    assert open_image(at("schedule.png")).width > 100


def test_whole_files_and_folders(at):
    with whole_file(at("a", "b.txt")) as unfinished:
        unfinished.write_text("b")
    with whole_folder(at("a", "c")) as unfinished:
        unfinished.mkdir()
    assert sorted(os.listdir("a")) == ["b.txt", "c"]


def test_a_pipeline_and_a_folder_of_pictures(at, pipe):
    pipe.save_pretrained(at("model"))
    again = rp.RePaintPipeline.from_pretrained(at("model"))
    save_picture(Image.new("L", (8, 8)), at("in", "a.png"))
    save_picture(Image.new("L", (8, 8)), at("mask.png"))
    schedule = {"num_model_calls": 8}
    assert inpaint_folder(again, at("in"), at("mask.png"), at("out"), schedule=schedule) == {}
    assert Path("out", "a.png").is_file()
    with pytest.raises(TypeError, match=r"image is .*, expected a PIL image, an array or a list of them"):
        again(at("in", "a.png"), rp.masks.half(8, 8), key=jax.random.key(0))


def test_an_evaluation(at, pipe, image):
    settings = {"8": 1}
    rows = evaluate(pipe, image[None], ["half"], settings, at("scores"), num_samples=2)
    write_tables(at("scores"), rows)
    assert read_scores(at("scores", "scores.csv"))[0].mask == "half"
    write_scores(at("again.csv"), [ImageScores("8", "half", 0, "", {"RMSE": 1.0})])
    assert read_scores(at("again.csv"))[0].metrics == {"RMSE": 1.0}
    (batch,) = masked_batches(image[None], ["half"], 0)
    samples = Sampler(pipe, "8", 2, os.path.join("scores", "samples")).samples(batch)
    draw("8", batch, samples, at("drawn"))
    assert Path("drawn", "half 8.png").is_file()
    Path("weights").write_bytes(pickle.dumps({"a": np.ones(2)}))
    np.testing.assert_array_equal(lpips.read_weights(at("weights"))["a"], [1, 1])


def test_training(at, unet_config):
    config = TrainingConfig(num_steps=1, batch_size=2, warmup_steps=0)
    images = np.zeros((2, 8, 8, 1), np.uint8)
    model = train_unet2d(config, images, at("run"), unet_config=unet_config)
    assert model == Path("run", "model")
    alphas_cumprod = noise_levels.alphas_cumprod(rp.RePaintSchedulerConfig().betas)
    params = {"gain": np.zeros((1, 1, 1, 1), np.float32)}
    train(config, lambda p, x, t: p["gain"] * x, params, images, alphas_cumprod, at("checkpoints"))
    assert Path("checkpoints", "1").is_dir()
