"""Training images from folders of pictures and from idx files."""

import gzip
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from repaint_jax.pictures.datasets import TRAIN_IDX_NAME, read_images


def save(path: Path, pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def idx_file(pixels: np.ndarray, magic: int = 2051) -> bytes:
    return gzip.compress(struct.pack(">4i", magic, *pixels.shape) + pixels.tobytes())


def test_pictures_of_any_depth_come_sorted_by_path(tmp_path: Path):
    for i, name in enumerate(["b.png", "a/z.PNG", "a/b/c.bmp"]):
        save(tmp_path / name, np.full((4, 4), i))
    (tmp_path / "notes.txt").write_text("not a picture's suffix")
    images = read_images(tmp_path, 4, grey=True)
    assert (images.shape, images.dtype) == ((3, 4, 4, 1), np.uint8)
    assert images[:, 0, 0, 0].tolist() == [2, 1, 0]


def test_pictures_are_read_in_colour_or_in_grey(tmp_path: Path):
    save(tmp_path / "a.png", np.full((4, 4, 3), [255, 0, 0]))
    colour, grey = (read_images(tmp_path, 4, grey=grey) for grey in (False, True))
    assert colour[0, 0, 0].tolist() == [255, 0, 0]
    assert grey[0, 0, 0].tolist() == [76]  # ITU-R 601 luma of red


def test_what_is_transparent_becomes_white(tmp_path: Path):
    save(tmp_path / "a.png", np.full((4, 4, 4), [255, 0, 0, 51]))
    save(tmp_path / "b.png", np.stack([np.full((4, 4), 100), np.full((4, 4), 0)], axis=-1))
    assert read_images(tmp_path, 4, grey=False)[:, 0, 0].tolist() == [[255, 204, 204], [255, 255, 255]]


@pytest.mark.parametrize("transposed", [False, True])
def test_the_central_square_is_kept_and_resized(tmp_path: Path, transposed: bool):
    pixels = np.zeros((4, 12))
    pixels[:, 4:8] = 200
    save(tmp_path / "a.png", pixels.T if transposed else pixels)
    np.testing.assert_array_equal(read_images(tmp_path, 4, grey=True), np.full((1, 4, 4, 1), 200))
    np.testing.assert_array_equal(read_images(tmp_path, 2, grey=True), np.full((1, 2, 2, 1), 200))


def test_idx_file_is_read_as_it_is(tmp_path: Path):
    pixels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / TRAIN_IDX_NAME).write_bytes(idx_file(pixels))
    np.testing.assert_array_equal(read_images(tmp_path, 32, grey=True), pixels[..., None])


def test_folders_without_pictures_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'nowhere'} is not a folder")):
        read_images(tmp_path / "nowhere", 4, grey=True)
    with pytest.raises(
        ValueError, match=re.escape(f"{tmp_path} holds neither {TRAIN_IDX_NAME} nor pictures")
    ):
        read_images(tmp_path, 4, grey=True)


def test_file_that_is_no_picture_is_named(tmp_path: Path):
    save(tmp_path / "a.png", np.zeros((4, 4)))
    (tmp_path / "b.png").write_text("text")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'b.png'} is not a picture")):
        read_images(tmp_path, 4, grey=True)


def test_mixed_pictures_are_the_same_ones_in_an_order_that_new_ones_leave_alone(tmp_path: Path):
    for number in range(9):
        save(tmp_path / f"{number}.png", np.full((4, 4), number))

    def order() -> list[int]:
        return read_images(tmp_path, 4, grey=True, mixed=True)[:, 0, 0, 0].tolist()

    before = order()
    assert sorted(before) == list(range(9)) != before
    save(tmp_path / "new.png", np.full((4, 4), 99))
    assert [value for value in order() if value != 99] == before


@pytest.mark.parametrize("image_size", [0, -1])
def test_size_below_one_is_refused(tmp_path: Path, image_size: int):
    save(tmp_path / "a.png", np.zeros((4, 4)))
    with pytest.raises(ValueError, match=f"image_size is {image_size}, expected"):
        read_images(tmp_path, image_size, grey=True)


PIXELS = np.zeros((2, 3, 4), np.uint8)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a whole idx.gz file"),
        (b"text", "is not a whole idx.gz file"),
        (idx_file(PIXELS)[:-9], "is not a whole idx.gz file"),
        (gzip.compress(b"short"), "is not a whole idx.gz file"),
        (idx_file(PIXELS)[:10] + b"\7" + bytes(30), "is not a whole idx.gz file"),
        (idx_file(PIXELS, 2049), "is not an idx file of images: magic number 2049, expected 2051"),
        (
            gzip.compress(struct.pack(">4i", 2051, 2, 3, 4) + bytes(23)),
            "holds 23 pixels, expected 2 images of 3x4",
        ),
    ],
    ids=["empty", "text", "truncated", "short", "no deflate", "labels", "a pixel missing"],
)
def test_damaged_idx_files_are_refused(tmp_path: Path, data: bytes, message: str):
    (tmp_path / TRAIN_IDX_NAME).write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / TRAIN_IDX_NAME} {message}")):
        read_images(tmp_path, 32, grey=True)


def test_idx_file_whose_compressed_data_is_damaged_is_refused(tmp_path: Path):
    data = bytearray(idx_file(np.random.default_rng(0).integers(0, 256, (8, 16, 16), np.uint8)))
    data[20:60] = bytes(40)
    (tmp_path / TRAIN_IDX_NAME).write_bytes(data)
    with pytest.raises(
        ValueError, match=re.escape(f"{tmp_path / TRAIN_IDX_NAME} is not a whole idx.gz file")
    ):
        read_images(tmp_path, 32, grey=True)
