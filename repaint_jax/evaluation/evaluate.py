"""Inpaint images whose removed pixels are known, and score several settings under several masks."""

import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from repaint_jax import masks
from repaint_jax.evaluation import lpips
from repaint_jax.evaluation.metrics import diversity, energy_score, rmse_of_mean
from repaint_jax.evaluation.named_schedules import with_setting
from repaint_jax.files import StrPath, whole_file
from repaint_jax.pictures.images import MODEL_RANGE, save_picture
from repaint_jax.pictures.plots import inpainting_grid
from repaint_jax.pipeline import RePaintPipeline
from repaint_jax.sampling.keys import seed_key

Images = NDArray[np.float32]  # [N, H, W, C] in [-1, 1]

ENERGY_SCORE, RMSE, DIVERSITY, LPIPS = "energy score", "RMSE of the mean", "diversity", "LPIPS"

_IMAGES_PER_BATCH = 4
_SAMPLES_VERSION = 1  # raise this whenever a setting starts to give other samples


class ImageScores(NamedTuple):
    """The scores of the samples of one image."""

    setting: str
    mask: str
    image: int  # the number of the image
    samples: str  # digest of everything that determines the samples of the image's batch
    metrics: dict[str, float]


class MaskedBatch(NamedTuple):
    """A few of the images under one kind of mask."""

    mask_name: str
    start: int  # the number of the first image
    images: Images
    masks: Images  # [N, H, W, 1]
    keys: jax.Array  # [N], the keys of the samples

    @property
    def numbers(self) -> range:
        """The numbers of the images."""
        return range(self.start, self.start + len(self.images))


def masked_batches(images: Images, mask_names: Iterable[str], seed: int) -> Iterator[MaskedBatch]:
    """Yield the images in batches, each under every mask.

    Random masks and keys depend only on the seed and the image's number.

    Args:
        images: the images, [N, H, W, C] in [-1, 1].
        mask_names: names of masks, from `masks.NAMES`.
        seed: the seed of the random masks and of the keys.
    """
    height, width = images.shape[1:3]
    for start in range(0, len(images), _IMAGES_PER_BATCH):
        chosen = images[start : start + _IMAGES_PER_BATCH]
        numbers = start + jnp.arange(len(chosen))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(seed_key(seed), numbers)
        for name in mask_names:
            of_images = np.stack([masks.by_name(name, height, width, key) for key in keys])
            yield MaskedBatch(name, start, chosen, of_images, keys)


class Sampler:
    """Inpaints batches with one setting, and stores the samples in a folder.

    Args:
        pipe: the model.
        setting: the name of the setting, see `with_setting`.
        num_samples: the number of samples of each image, at least 2.
        folder: the folder of the samples. The samples of a batch are found again while everything that
            determines them stays the same.

    Raises:
        ValueError: if num_samples is below 2, or the setting is no name of one.
    """

    def __init__(self, pipe: RePaintPipeline, setting: str, num_samples: int, folder: StrPath):
        if num_samples < 2:
            raise ValueError(f"num_samples is {num_samples}, expected at least 2: pairs are compared")
        self._setting, self._num_samples, self._folder = setting, num_samples, Path(folder)
        self._pipe, self._state = with_setting(pipe, setting)
        self.num_model_calls = self._state.num_model_calls or 0
        self._digest = hashlib.sha256(f"{_SAMPLES_VERSION} {num_samples} {self._pipe.digest()}".encode())
        for leaf in jax.tree.leaves(self._state.schedule):
            self._digest.update(np.asarray(leaf).tobytes())

    def digest(self, batch: MaskedBatch) -> str:
        """Return a digest of everything that determines the samples of a batch."""
        digest = self._digest.copy()
        for part in (batch.images, batch.masks, jax.random.key_data(batch.keys)):
            digest.update(np.asarray(part).tobytes())
        return digest.hexdigest()[:16]

    def path(self, batch: MaskedBatch) -> Path:
        """Return the file of a batch's samples."""
        name = f"{self._setting.replace('/', '-')}_{batch.start:05d}_{self.digest(batch)}.npy.gz"
        return self._folder / batch.mask_name / name

    def inpaint(self, batch: MaskedBatch, progress: Callable[[int], None]) -> None:
        """Inpaint a batch and store its samples."""
        samples = self._pipe(
            batch.images,
            batch.masks,
            state=self._state,
            key=batch.keys,
            num_samples=self._num_samples,
            output_type="jax",
            input_range=MODEL_RANGE,
            progress=progress,
        ).images
        with whole_file(self.path(batch)) as unfinished, gzip.open(unfinished, "wb") as file:
            np.save(file, np.asarray(samples, np.float16))

    def samples(self, batch: MaskedBatch) -> Images:
        """Read the stored samples [N, num_samples, H, W, C] of a batch."""
        try:
            with gzip.open(self.path(batch)) as file:
                samples = np.load(file).astype(np.float32)
        except (EOFError, ValueError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(
                f"{self.path(batch)} is damaged ({error}); delete it, and the next run makes it again"
            ) from error
        return samples.reshape(len(batch.images), self._num_samples, *batch.images.shape[1:])


def images_of_settings(settings: Sequence[str], num_images: Sequence[int]) -> dict[str, int]:
    """Return the number of images of each setting, from one number for all or one for each."""
    counts = list(num_images) * (len(settings) if len(num_images) == 1 else 1)
    if len(counts) != len(settings) or min(counts) < 1:
        raise ValueError(
            f"num_images is {' '.join(map(str, num_images))}, expected a number of at least 1, "
            f"or one for each of {len(settings)} settings"
        )
    if len(set(settings)) < len(settings):
        raise ValueError(f"settings is {' '.join(settings)}, expected each setting once")
    return dict(zip(settings, counts, strict=True))


def evaluate(
    pipe: RePaintPipeline,
    images: Images,
    mask_names: Sequence[str],
    settings: Mapping[str, int],
    folder: StrPath,
    *,
    num_samples: int = 8,
    seed: int = 0,
    known: Iterable[ImageScores] = (),
) -> list[ImageScores]:
    """Inpaint images under masks with several settings, and score the samples.

    Args:
        pipe: the model.
        images: the images, [N, H, W, C] in [-1, 1], of the model's shape.
        mask_names: names of masks, from `masks.NAMES`.
        settings: the names of the settings, see `with_setting`, and the number of images for each. Each
            setting gets the first images.
        folder: the folder of the results. It gets all samples, so that a later run with more images or
            settings does not compute them again, and a picture of the first samples under each mask.
        num_samples: the number of samples of each image.
        seed: the seed of the masks and the samples.
        known: scores of an earlier evaluation, which are not computed again.

    Returns:
        The scores, setting by setting.
    """
    folder = Path(folder)
    metrics = [ENERGY_SCORE, RMSE, DIVERSITY] + ([LPIPS] if lpips.load_weights() is not None else [])
    earlier: dict[tuple[str, str], dict[int, ImageScores]] = {}
    for row in known:
        if row.metrics.keys() >= set(metrics):
            comparable = row._replace(metrics={name: row.metrics[name] for name in metrics})
            earlier.setdefault((row.mask, row.samples), {})[row.image] = comparable
    samplers = {name: Sampler(pipe, name, num_samples, folder / "samples") for name in settings}
    wanted = [
        (name, batch, (batch.mask_name, samplers[name].digest(batch)))
        for name, count in settings.items()
        for batch in masked_batches(images[:count], mask_names, seed)
    ]
    missing = [
        (samplers[name], batch)
        for name, batch, identity in wanted
        if not earlier.get(identity, {}).keys() >= set(batch.numbers)
        and not samplers[name].path(batch).exists()
    ]
    total, before = sum(sampler.num_model_calls for sampler, _ in missing), 0
    with tqdm(total=total, unit="call", desc="model calls", disable=not missing) as bar:

        def progress(calls_done: int) -> None:
            bar.update(before + int(calls_done) - bar.n)

        for sampler, batch in missing:
            sampler.inpaint(batch, progress)
            before += sampler.num_model_calls
    rows: list[ImageScores] = []
    for name, batch, identity in wanted:
        scores = earlier.get(identity, {})
        if scores.keys() >= set(batch.numbers):
            rows += [scores[number]._replace(setting=name) for number in batch.numbers]
        else:
            samples = samplers[name].samples(batch)
            rows += score(name, batch, samples, identity[1])
            if batch.start == 0:
                draw(name, batch, samples, folder)
    return rows


def score(name: str, batch: MaskedBatch, samples: Images, digest: str = "") -> Iterator[ImageScores]:
    """Yield the scores of each image of a batch.

    The metrics are those of `evaluation.metrics`, and the mean LPIPS of the samples if its weights are
    installed.

    Args:
        name: the name of the setting.
        batch: the images and masks.
        samples: the samples, [N, num_samples, H, W, C].
        digest: the digest of the samples, to be stored with the scores.
    """
    weights = lpips.load_weights()
    for number, of_image, truth, mask in zip(
        batch.numbers, samples, batch.images, batch.masks, strict=True
    ):
        metrics = {
            ENERGY_SCORE: energy_score(of_image, truth, mask),
            RMSE: rmse_of_mean(of_image, truth, mask),
            DIVERSITY: diversity(of_image, mask),
        }
        if weights is not None:
            distances = lpips.lpips(weights, of_image, np.broadcast_to(truth, of_image.shape))
            metrics[LPIPS] = float(distances.mean())
        yield ImageScores(name, batch.mask_name, number, digest, metrics)


def draw(name: str, batch: MaskedBatch, samples: Images, folder: StrPath) -> None:
    """Draw a batch's samples in a picture of the folder, which is named after the mask and `name`."""
    grid = inpainting_grid(batch.images, batch.masks, samples)
    save_picture(grid, Path(folder) / f"{batch.mask_name} {name.replace('/', '-')}.png")
