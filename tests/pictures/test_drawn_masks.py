"""Masks that are painted, cut out, a box, a file, or one of the paper's by its name."""

from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageDraw

from repaint_jax import masks
from repaint_jax.models.pretrained import bundled_folder
from repaint_jax.pictures.drawn_masks import check_hole, of_colour, painted, picture_and_mask
from repaint_jax.pictures.images import open_image

KEY = jax.random.key(0)
SIZE = (6, 4)  # width, height


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE[::-1], 3), np.uint8))


def read_mask(words: str, picture: Image.Image, key: jax.Array, **options) -> Image.Image:
    """Return a mask that does not enlarge its picture, and has a hole."""
    _, mask = picture_and_mask(words, picture, key, **options)
    check_hole(words, mask)
    return mask


def hole(mask: Image.Image) -> np.ndarray:
    """Say where a mask inpaints: [H, W], of a mask that is black and white."""
    assert (mask.mode, mask.size) == ("L", SIZE)
    values = np.asarray(mask)
    assert set(np.unique(values)) <= {0, 255}
    return values == 0


def test_a_box_has_its_pixels(picture):
    expected = np.zeros(SIZE[::-1], bool)
    expected[1:3, 2:6] = True
    np.testing.assert_array_equal(hole(read_mask("box=2,1,6,3", picture, KEY)), expected)


def test_what_is_transparent_is_inpainted(picture):
    alpha = Image.new("L", SIZE, 255)
    alpha.putpixel((3, 2), 0)
    picture.putalpha(alpha)
    assert np.argwhere(hole(read_mask("alpha", picture, KEY))).tolist() == [[2, 3]]


def test_what_was_painted_over_is_inpainted(picture, tmp_path: Path):
    copy = picture.copy()
    copy.paste((255, 0, 255), (1, 1, 3, 2))
    copy.save(tmp_path / "copy.png")
    mask = read_mask(f"painted={tmp_path / 'copy.png'}", picture, KEY)
    assert np.argwhere(hole(mask)).tolist() == [[1, 1], [1, 2]]


def test_what_is_transparent_in_another_picture_is_inpainted(picture, tmp_path: Path):
    """As image editors save an erased part, and as OpenAI's image edits take masks."""
    erased = Image.new("RGBA", SIZE, (0, 0, 0, 255))
    erased.putpixel((3, 2), (255, 255, 255, 0))
    erased.putpixel((0, 0), (255, 255, 255, 127))
    erased.putpixel((1, 0), (255, 255, 255, 128))
    erased.save(tmp_path / "erased.png")
    mask = read_mask(f"alpha={tmp_path / 'erased.png'}", picture, KEY)
    assert np.argwhere(np.asarray(mask) < 128).tolist() == [[0, 0], [2, 3]]
    painted_layer = read_mask(f"alpha={tmp_path / 'erased.png'}", picture, KEY, invert=True)
    np.testing.assert_array_equal(np.asarray(painted_layer) < 128, np.asarray(mask) >= 128)


def test_a_canvas_is_enlarged_with_the_mask_of_what_is_new(picture):
    larger, mask = picture_and_mask("outpaint=2,0,1,3", picture, KEY)
    assert larger.size == mask.size == (9, 7)
    np.testing.assert_array_equal(np.asarray(larger)[:4, 2:8], np.asarray(picture))
    expected = np.zeros((7, 9), np.uint8)
    expected[:4, 2:8] = 255
    np.testing.assert_array_equal(np.asarray(mask), expected)


@pytest.mark.parametrize("mode", ["P", "1", "LA", "RGB", "RGBA", "CMYK"])
def test_a_mask_of_any_mode_is_black_and_white(picture, tmp_path: Path, mode: str):
    black_and_white = Image.new("L", SIZE, 255)
    black_and_white.putpixel((5, 3), 0)
    path = tmp_path / ("mask.tif" if mode == "CMYK" else "mask.png")
    if mode == "P":  # indices that are no grey levels
        palette = Image.fromarray((np.asarray(black_and_white) == 0).astype(np.uint8) + 7)
        palette.putpalette([9] * 21 + [255] * 3 + [0] * 3)
        palette.save(path)
    else:
        black_and_white.convert("RGB" if mode == "CMYK" else "L").convert(mode).save(path)
    assert Image.open(path).mode == mode
    assert np.argwhere(np.asarray(read_mask(str(path), picture, KEY)) < 128).tolist() == [[3, 5]]


def test_a_mask_on_its_side_is_turned_with_its_orientation(picture, tmp_path: Path):
    upright = Image.new("L", SIZE, 255)
    upright.putpixel((5, 0), 0)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    upright.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    assert np.argwhere(hole(read_mask(str(tmp_path / "turned.png"), picture, KEY))).tolist() == [[0, 5]]


def test_a_file_is_taken_as_it_is_and_inverted_on_request(picture, tmp_path: Path):
    path = str(tmp_path / "mask.png")
    mask = Image.new("L", SIZE, 255)
    mask.putpixel((0, 0), 0)
    mask.save(path)
    assert np.argwhere(hole(read_mask(path, picture, KEY))).tolist() == [[0, 0]]
    np.testing.assert_array_equal(
        hole(read_mask(path, picture, KEY, invert=True)), ~hole(read_mask(path, picture, KEY))
    )


@pytest.mark.parametrize("name", masks.NAMES)
def test_the_paper_s_masks_go_by_their_names(picture, name: str):
    make = getattr(masks, name)
    expected = make(4, 6, KEY) if name in ("wide", "narrow") else make(4, 6)
    np.testing.assert_array_equal(hole(read_mask(name, picture, KEY)), np.asarray(expected)[..., 0] == 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("alpha", "mask is alpha, but the picture, of mode RGB, has no transparency"),
        ("box", "box does not exist, expected a picture, alpha, alpha=PATH, box=LEFT,TOP,RIGHT,BOTTOM"),
        ("box=1,2,3", "mask is box=1,2,3, expected box=LEFT,TOP,RIGHT,BOTTOM in pixels"),
        ("box=0,0,7,4", r"box is 0,0,7,4, expected left < right .* within the picture's 6 x 4 pixels"),
        ("box=3,0,3,4", "box is 3,0,3,4, expected left < right"),
        ("painted=same.png", "the painted picture is the picture itself"),
        ("painted=small.png", r"the painted picture is of size \(1, 1\), expected the picture's \(6, 4\)"),
        ("painted=nowhere.png", "nowhere.png does not exist"),
        ("halves", "halves does not exist"),
        ("alpha=same.png", "mask is alpha=same.png, but the picture, of mode RGB, has no transparency"),
        ("alpha=nowhere.png", "nowhere.png does not exist"),
        ("outpaint", "outpaint does not exist, expected a picture"),
        ("outpaint=1,2,3", "mask is outpaint=1,2,3, expected outpaint=LEFT,TOP,RIGHT,BOTTOM in pixels"),
        ("outpaint=1,2,3,x", "expected outpaint=LEFT,TOP,RIGHT,BOTTOM in pixels"),
        ("outpaint=1,2,3,-4", "expected outpaint=LEFT,TOP,RIGHT,BOTTOM in pixels"),
        ("outpaint=1,2,3,4.5", "expected outpaint=LEFT,TOP,RIGHT,BOTTOM in pixels"),
        ("outpaint=1,2,3,9999999999", "expected outpaint=LEFT,TOP,RIGHT,BOTTOM in pixels"),
        ("outpaint=0,0,0,0", "left, top, right, bottom are 0, expected at least one of them above 0"),
        ("outpaint=0,0,0,99999999", "outpaint makes a picture of 6 x 100000003 pixels, expected at most"),
        ("deep.png", "deep.png has more than 8 bits per channel, expected 8"),
        ("erased.png", "mask has transparent pixels, expected black and white ones"),
        (
            "white.png",
            "mask is white.png, which keeps every pixel, expected a mask with pixels to inpaint",
        ),
    ],
)
def test_what_is_no_mask_is_refused(picture, tmp_path: Path, monkeypatch, words: str, message: str):
    monkeypatch.chdir(tmp_path)
    picture.save("same.png")
    Image.new("L", (1, 1)).save("small.png")
    Image.new("L", (6, 4), 255).save("white.png")
    Image.new("LA", (6, 4), (255, 0)).save("erased.png")
    Image.fromarray(np.zeros((4, 6), np.uint16)).save("deep.png")
    with pytest.raises(ValueError, match=message):
        read_mask(words, picture, KEY)


def test_names_that_are_unknown_are_refused():
    with pytest.raises(ValueError, match="mask name is 'halves', expected one of half, expand"):
        masks.by_name("halves", 4, 6, KEY)


# Copies that were painted over and saved with losses


BOX = (40, 60, 119, 99)  # left, top, right, bottom, all inside


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A picture of 192 x 160 with smooth parts, edges and texture, in colour."""
    rows, columns = np.mgrid[:160, :192]
    waves = np.stack([np.sin(rows / 9), np.sin(columns / 13), np.sin((rows + columns) / 17)], axis=-1)
    texture = np.random.default_rng(0).normal(0, 6, (160, 192, 1))
    picture = Image.fromarray(np.clip(128 + 60 * waves + texture, 0, 255).astype(np.uint8))
    ImageDraw.Draw(picture).ellipse((90, 30, 170, 120), "white", "black", 3)
    return picture


def painted_copy(photo: Image.Image) -> Image.Image:
    copy = photo.copy()
    ImageDraw.Draw(copy).rectangle(BOX, "magenta")
    return copy


def in_box(photo: Image.Image) -> np.ndarray:
    inside = np.zeros((photo.height, photo.width), bool)
    inside[BOX[1] : BOX[3] + 1, BOX[0] : BOX[2] + 1] = True
    return inside


def test_paint_on_a_copy_that_is_off_by_one_is_found_exactly(photo):
    copy = np.asarray(painted_copy(photo)).astype(int)
    copy += np.random.default_rng(1).integers(-1, 2, copy.shape)
    mask = painted(photo, Image.fromarray(np.clip(copy, 0, 255).astype(np.uint8)))
    np.testing.assert_array_equal(np.asarray(mask) == 0, in_box(photo))


@pytest.mark.parametrize("options", [{"quality": quality} for quality in (75, 85, 95)])
@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_paint_on_a_compressed_copy_is_found_whole_with_a_few_pixels_around_it(
    photo, tmp_path, suffix, options
):
    painted_copy(photo).save(tmp_path / f"copy{suffix}", **options)
    hole = np.asarray(painted(photo, open_image(tmp_path / f"copy{suffix}"))) == 0
    inside = in_box(photo)
    assert hole[inside].all()
    rows, columns = np.nonzero(hole)
    assert (rows.min(), rows.max()) >= (BOX[1] - 4, 0) and rows.max() <= BOX[3] + 4
    assert columns.min() >= BOX[0] - 4 and columns.max() <= BOX[2] + 4


@pytest.mark.parametrize("name", ["emoji", "fashion_mnist"])
@pytest.mark.parametrize("quality", [75, 85, 95])
def test_a_compressed_copy_without_paint_is_no_mask(tmp_path, name: str, quality: int):
    for path in sorted((bundled_folder(name) / "images").glob("*.png")):
        picture = Image.alpha_composite(Image.new("RGBA", (256, 256), "white"), large(path)).convert("RGB")
        picture.save(tmp_path / "copy.jpg", quality=quality)
        with pytest.raises(ValueError, match="the painted picture is the picture itself"):
            painted(picture, Image.open(tmp_path / "copy.jpg"))


def large(path: Path) -> Image.Image:
    return Image.open(path).convert("RGBA").resize((256, 256), Image.Resampling.BICUBIC)


def test_grey_paint_on_a_copy_without_losses_is_found_exactly():
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (64, 1)))
    copy = ramp.copy()
    copy.paste(128, (0, 20, 256, 40))  # column 128 has this colour already, and many a similar one
    hole = np.asarray(painted(ramp, copy)) == 0
    np.testing.assert_array_equal(hole, np.asarray(copy) != np.asarray(ramp))


def test_another_picture_is_no_copy(photo):
    with pytest.raises(
        ValueError, match=r"differs from the picture in \d+% of its pixels, expected a copy"
    ):
        painted(photo, Image.new("RGB", photo.size, "red"))


def test_a_copy_that_differs_slightly_everywhere_is_the_picture_itself(photo):
    with pytest.raises(
        ValueError, match="the painted picture is the picture itself, expected one that was"
    ):
        painted(photo, photo.point(lambda value: value ^ 1))


def test_a_picture_on_its_side_and_its_upright_copy_fit(photo):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    on_its_side = photo.rotate(90, expand=True)
    on_its_side.info["exif"] = exif.tobytes()
    mask = painted(on_its_side, painted_copy(photo))
    np.testing.assert_array_equal(np.asarray(mask) == 0, in_box(photo))
    assert read_mask("half", on_its_side, KEY).size == photo.size
    on_its_side.putalpha(9)  # nearly transparent
    on_its_side.info["exif"] = exif.tobytes()
    assert read_mask("alpha", on_its_side, KEY).size == photo.size


# Masks that were saved with losses, and masks of a colour


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_a_black_and_white_mask_in_jpeg_has_no_fringes(photo, tmp_path: Path, quality: int):
    clean = Image.new("L", photo.size, 255)
    ImageDraw.Draw(clean).ellipse(BOX, 0)
    clean.save(tmp_path / "mask.jpg", quality=quality)
    assert len(np.unique(Image.open(tmp_path / "mask.jpg"))) > 2, "there are fringes in the file"
    mask = read_mask(str(tmp_path / "mask.jpg"), photo, KEY)
    np.testing.assert_array_equal(np.asarray(mask) < 128, np.asarray(clean) == 0)


def with_paint(picture: Image.Image, colour: str) -> Image.Image:
    copy = picture.convert("RGB")
    ImageDraw.Draw(copy).rectangle(BOX, colour)
    return copy


@pytest.mark.parametrize("colour", ["red", "#ff00ff", "hsl(120, 100%, 50%)", (0, 0, 255)])
def test_paint_of_a_colour_is_found_exactly_in_a_picture_without_losses(photo, tmp_path, colour):
    with_paint(photo, colour).save(tmp_path / "mask.png")
    mask = read_mask(str(tmp_path / "mask.png"), photo, KEY, colour=colour)
    np.testing.assert_array_equal(np.asarray(mask) == 0, in_box(photo))
    inverse = read_mask(str(tmp_path / "mask.png"), photo, KEY, colour=colour, invert=True)
    np.testing.assert_array_equal(np.asarray(inverse) == 255, in_box(photo))


def test_labels_of_similar_colours_are_told_apart():
    labels = np.repeat(np.repeat(np.arange(16, dtype=np.uint8).reshape(4, 4), 8, 0), 8, 1)
    palette = Image.fromarray(labels)
    palette.putpalette([level for label in range(16) for level in (120 + 9 * (label % 4), 10 * label, 60)])
    for label in (0, 6, 15):
        mask = of_colour(palette, (120 + 9 * (label % 4), 10 * label, 60))
        np.testing.assert_array_equal(np.asarray(mask) == 0, labels == label)


@pytest.mark.parametrize("quality", [75, 90])
@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
@pytest.mark.parametrize("colour", ["red", "magenta", "lime", "blue"])
@pytest.mark.parametrize("around", ["photo", "white", "black"])
def test_paint_of_a_colour_is_found_in_a_compressed_picture_to_within_two_pixels(
    photo, tmp_path, around: str, colour: str, suffix: str, quality: int
):
    picture = photo if around == "photo" else Image.new("RGB", photo.size, around)
    with_paint(picture, colour).save(tmp_path / f"mask{suffix}", quality=quality)
    found = np.asarray(of_colour(open_image(tmp_path / f"mask{suffix}"), colour)) == 0
    assert found[BOX[1] + 1 : BOX[3], BOX[0] + 1 : BOX[2]].all()
    outside = found.copy()
    outside[BOX[1] - 2 : BOX[3] + 3, BOX[0] - 2 : BOX[2] + 3] = False
    assert not outside.any()
    if around != "photo":
        assert (found != in_box(photo)).mean() < 0.001


def test_what_is_transparent_has_no_colour(photo):
    layer = Image.new("RGBA", photo.size, (255, 0, 0, 0))
    ImageDraw.Draw(layer).rectangle(BOX, (255, 0, 0, 255))
    np.testing.assert_array_equal(np.asarray(of_colour(layer, "red")) == 0, in_box(photo))
    layer = Image.new("RGBA", photo.size, (0, 0, 0, 0))
    ImageDraw.Draw(layer).rectangle(BOX, "white")
    np.testing.assert_array_equal(np.asarray(of_colour(layer, "white")) == 0, in_box(photo))


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        ("half", {"colour": "red"}, "mask_colour is red and mask is half, expected a picture as the mask"),
        ("painted=a.png", {"colour": "red"}, "mask is painted=a.png, expected a picture as the mask"),
        ("white.png", {"colour": "reed"}, "mask_colour is 'reed', expected an opaque colour such as"),
        ("white.png", {"colour": "red"}, "mask_colour is red, which no pixel of the mask has, expected"),
        (
            "outpaint=1,1,1,1",
            {"invert": True},
            "invert_mask is True and mask is outpaint=1,1,1,1, expected",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(picture, tmp_path, monkeypatch, words, options, message):
    monkeypatch.chdir(tmp_path)
    Image.new("L", SIZE, 255).save("white.png")
    with pytest.raises(ValueError, match=message):
        picture_and_mask(words, picture, KEY, **options)
