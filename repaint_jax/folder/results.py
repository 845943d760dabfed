"""The files of a run over a folder: pictures, masks, results, and the record of the run's settings."""

import json
import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from repaint_jax.files import StrPath, read_json, unfinished_files, whole_file, write_json
from repaint_jax.pictures.datasets import SUFFIXES, picture_names
from repaint_jax.pictures.drawn_masks import file_of_mask
from repaint_jax.pictures.images import open_image

RECORD = "repaint.json"
LONGEST_NAME = 255  # the longest name of a file, as `name_length` counts
CHAINS = ".chains"  # the folder of unfinished chains, in the folder of results


class Result(NamedTuple):
    """A picture to make."""

    name: str  # the name of the input picture, relative to its folder
    sample: int  # the number of the sample, from 0
    path: Path  # the file of the result
    beside: Mapping[str, Path]  # the other files of the official layout, by their folder's name

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files to write for this result."""
        return *self.beside.values(), self.path


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _same_stem(name: str) -> str:
    """Return the stem in one Unicode form: macOS and Linux can write "é" in two ways."""
    return unicodedata.normalize("NFC", _stem(name))


def _by_stem(argument: str, names: Sequence[str]) -> dict[str, str]:
    of_stem: dict[str, str] = {}
    for name in names:
        other = of_stem.setdefault(_same_stem(name), name)
        if other != name:
            raise ValueError(
                f"{argument} has {other} and {name}, expected names that differ before their suffix"
            )
    return of_stem


def pictures_to_inpaint(images: Path) -> list[str]:
    """Return the names of the pictures in a folder.

    Raises:
        ValueError: if the folder does not exist or has no pictures, or if the results of two pictures would
            have the same name.
    """
    if not images.is_dir():
        raise ValueError(f"images is {images}, which is not a folder")
    names = picture_names(images)
    if not names:
        raise ValueError(f"images is {images}, which holds no pictures ({', '.join(SUFFIXES)})")
    _by_stem("images", names)
    return names


def divided(masks: StrPath) -> tuple[str, Path | None]:
    """Divide the description of masks as `file_of_mask` does; what exists is a file or folder."""
    prefix, path = ("", Path(masks)) if Path(masks).exists() else file_of_mask(os.fspath(masks))
    return prefix, None if path is None else path.absolute()  # so that its name is no other description


def find_masks(masks: StrPath, images: Path, names: Sequence[str]) -> Mapping[str, str]:
    """Return the description of each picture's mask, if it has one, by the picture's name.

    Args:
        masks: a mask for all pictures, or a folder of masks; or another description of masks, as for
            `picture_and_mask`, in which a file may be a folder, too.
        images: the folder of pictures.
        names: the names of the pictures.

    Raises:
        ValueError: if masks cannot be used, is inside images, or has no mask for any picture.
    """
    prefix, path = divided(masks)
    if path is None:
        return dict.fromkeys(names, prefix)
    if images.resolve() in (path.resolve(), *path.resolve().parents):
        raise ValueError(f"masks is {masks}, expected it outside images, {images}")
    if path.is_file():
        open_image(path)
        return dict.fromkeys(names, f"{prefix}{path}")
    if not path.is_dir():
        raise ValueError(f"masks is {masks}, which is neither a picture nor a folder")
    of_stem = _by_stem("masks", picture_names(path))
    found = {
        name: f"{prefix}{path / of_stem[_same_stem(name)]}" for name in names if _same_stem(name) in of_stem
    }
    if not found:
        raise ValueError(
            f"masks is {masks}, which holds no mask for any picture, such as {_stem(names[0])}.png"
        )
    return found


def plan_results(
    output: Path, names: Sequence[str], num_samples: int, official_layout: bool
) -> list[Result]:
    """Return all results of a run, with the samples of a picture next to each other."""

    def path(kind: str, name: str, suffix: str = "") -> Path:
        return (output / kind if official_layout else output) / f"{_stem(name)}{suffix}.png"

    def beside(name: str, sample: int) -> dict[str, Path]:
        kinds = ("gt", "gt_masked", "gt_keep_mask") if official_layout and sample == 0 else ()
        return {kind: path(kind, name) for kind in kinds}

    suffixes = [f"-{sample + 1}" for sample in range(num_samples)] if num_samples > 1 else [""]
    return [
        Result(name, sample, path("inpainted", name, suffix), beside(name, sample))
        for name in names
        for sample, suffix in enumerate(suffixes)
    ]


def refuse_output_among_inputs(
    output: Path, images: Path, masks: StrPath, results: Sequence[Result]
) -> None:
    """Raise if a result would overwrite an input, or if an input could be mistaken for a result."""
    written = {path.resolve() for result in results for path in result.paths}
    folders = {path.parent for path in written}
    _, masks_path = divided(masks)
    for name, source in (("images", images), ("masks", masks_path)):
        if source is None:
            continue
        among = any(source.resolve() in (folder, *folder.parents) for folder in folders)
        if among or source.resolve() in written:
            raise ValueError(f"output is {output}, expected a folder outside {name}, {source}")


def refuse_merged_names(output: Path, results: Sequence[Result]) -> None:
    """Raise if two results would be one file, because the file system ignores case as Windows' does.

    Call this when the record of the settings has been written. It shows whether case is ignored.
    """
    in_capitals = output / RECORD.upper()
    if not (in_capitals.exists() and in_capitals.samefile(output / RECORD)):
        return
    of_file: dict[str, str] = {}
    for result in results:
        file = unicodedata.normalize("NFC", str(result.path)).casefold()
        other = of_file.setdefault(file, result.name)
        if other != result.name:
            raise ValueError(
                f"images has {other} and {result.name}, expected names that differ in more than case: the "
                f"file system of {output} ignores it"
            )


def name_length(name: str) -> int:
    """Return the length of a file's name as file systems count it: in bytes, on Windows in UTF-16 units."""
    return (
        len(name.encode("utf-16-le", "surrogatepass")) // 2 if os.name == "nt" else len(os.fsencode(name))
    )


def is_there(path: Path) -> bool:
    """Whether a result has been written."""
    try:
        return path.is_file() and path.stat().st_size > 0
    except OSError:  # the name is too long
        return False


def record_settings(output: Path, settings: Mapping[str, Any], results: Sequence[Result]) -> None:
    """Write the settings next to the results, or raise if the results there have other settings."""
    settings = json.loads(json.dumps(settings, default=np.generic.item))
    path = output / RECORD
    recorded = read_json(path).get("settings") if path.exists() else None
    if recorded == settings:
        return
    if (output / CHAINS).exists() or any(is_there(result.path) for result in results):
        if not isinstance(recorded, dict):
            raise ValueError(
                f"output is {output}, which holds results without their settings in {RECORD}, expected "
                "another folder"
            )
        for name in {**recorded, **settings}:
            there, here = recorded.get(name), settings.get(name)
            if there != here:
                raise ValueError(
                    f"output is {output}, which holds results of other settings: {name} is {there!r} there "
                    f"and {here!r} here; expected another folder, or {path} to be corrected"
                )
    versions = {name: version(name) for name in ("repaint_jax", "jax", "jaxlib", "numpy", "pillow")}
    with whole_file(path) as unfinished:
        write_json(unfinished, {"settings": settings, "versions": versions})


def tidy(output: Path, results: Sequence[Result], is_ours: Callable[[int], bool]) -> None:
    """Remove the unfinished files and saved chains of killed runs, once all their results are complete."""
    for unfinished in unfinished_files(path for result in results for path in result.paths):
        unfinished.unlink(missing_ok=True)
    for saved in (output / CHAINS).glob("*"):
        batch = re.match(r"(\d+)-", saved.name)
        if saved.name.endswith(".unfinished") or (batch and is_ours(int(batch[1]))):
            saved.unlink(missing_ok=True)
    with suppress(OSError):  # other processes still have chains there, or the folder never existed
        (output / CHAINS).rmdir()
