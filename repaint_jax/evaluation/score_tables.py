"""Write the scores of an evaluation as Markdown and CSV tables."""

import csv
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from repaint_jax.evaluation.evaluate import DIVERSITY, ImageScores
from repaint_jax.files import StrPath, whole_file

SCORES = "scores.csv"  # the file with the scores of every image

_NUM_RESAMPLES = 10_000  # of the bootstrap
_SUMMARY_COLUMNS = (
    *("setting", "mask", "metric", "images", "mean", "standard_error", "low", "high"),
    *("ratio_to_first", "ratio_low", "ratio_high"),
)
_IDENTITY_COLUMNS = ("setting", "mask", "image", "samples")

Scores = dict[str, NDArray[np.float64]]  # metric -> [N]
Results = dict[str, dict[str, Scores]]  # setting -> mask -> scores


def write_tables(folder: StrPath, rows: Sequence[ImageScores]) -> str:
    """Write table.md, table.csv and scores.csv into a folder, and return the text of table.md."""
    folder = Path(folder)
    summaries = summarised(by_setting(rows))
    text = "\n\n".join(markdown(summaries))
    with whole_file(folder / "table.md") as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8")
    write_summary(folder / "table.csv", summaries)
    write_scores(folder / SCORES, rows)
    return text


def by_setting(rows: Iterable[ImageScores]) -> Results:
    """Group the scores by setting and mask."""
    lists: dict[str, dict[str, dict[str, list[float]]]] = {}
    for row in rows:
        of_mask = lists.setdefault(row.setting, {}).setdefault(row.mask, {})
        for metric, value in row.metrics.items():
            of_mask.setdefault(metric, []).append(value)
    return {
        setting: {
            mask: {metric: np.array(values) for metric, values in scores.items()}
            for mask, scores in of_mask.items()
        }
        for setting, of_mask in lists.items()
    }


class Summary(NamedTuple):
    """A metric over images. The intervals contain 95 % of a bootstrap over the images."""

    num_images: int
    mean: float
    standard_error: float
    interval: tuple[float, float]
    ratio: float  # to the first setting, on the images that both have
    ratio_interval: tuple[float, float]


def summarise(values: NDArray[np.float64], reference: NDArray[np.float64]) -> Summary:
    """Summarise a metric of a setting, and compare it with the first setting image by image.

    Args:
        values: the metric of each image, [N].
        reference: the metric of each image with the first setting, [M].
    """
    common = min(len(values), len(reference))
    pairs = np.stack([values[:common], reference[:common]])
    means, reference_means = pairs[:, _resampled(common)].mean(-1)
    own_means = values[_resampled(len(values))].mean(-1)
    return Summary(
        len(values),
        values.mean(),
        values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan"),
        _interval(own_means),
        pairs[0].mean() / pairs[1].mean(),
        _interval(means / reference_means),
    )


Summaries = dict[str, dict[str, dict[str, Summary]]]  # setting -> mask -> metric -> summary


def summarised(results: Results) -> Summaries:
    """Summarise each setting under each mask by each metric, compared with the first setting."""
    reference = results[next(iter(results))]
    return {
        setting: {
            mask: {metric: summarise(values, reference[mask][metric]) for metric, values in scores.items()}
            for mask, scores in of_mask.items()
        }
        for setting, of_mask in results.items()
    }


def markdown(summaries: Summaries) -> Iterator[str]:
    """Yield a Markdown table for each metric, with a row for each setting and a column for each mask."""
    reference = next(iter(summaries))
    mask_names = list(summaries[reference])
    for metric in summaries[reference][mask_names[0]]:
        compared = metric != DIVERSITY
        title = f"{metric} ± standard error"
        if compared and len(summaries) > 1:
            title += f", and its difference to {reference} [95 % interval]"
        lines = [
            title,
            "",
            f"| setting | images | {' | '.join(mask_names)} |",
            "|---|---|" + "---|" * len(mask_names),
        ]
        for setting, of_mask in summaries.items():
            row = [of_mask[name][metric] for name in mask_names]
            cells = [_cell(summary, compared and setting != reference) for summary in row]
            lines.append(f"| {setting} | {row[0].num_images} | {' | '.join(cells)} |")
        yield "\n".join(lines)


def write_summary(path: StrPath, summaries: Summaries) -> None:
    """Write a CSV file with a row for each setting, mask and metric."""
    with whole_file(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_SUMMARY_COLUMNS)
        for setting, of_mask in summaries.items():
            for name, of_metric in of_mask.items():
                for metric, s in of_metric.items():
                    numbers = [s.mean, s.standard_error, *s.interval, s.ratio, *s.ratio_interval]
                    writer.writerow(
                        [setting, name, metric, s.num_images, *(f"{number:.5g}" for number in numbers)]
                    )


def write_scores(path: StrPath, rows: Sequence[ImageScores]) -> None:
    """Write a CSV file with a row for each setting, mask and image, and a column for each metric."""
    metrics = list(dict.fromkeys(metric for row in rows for metric in row.metrics))
    with whole_file(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*_IDENTITY_COLUMNS, *metrics])
        for *identity, values in rows:
            numbers = [f"{values[metric]:.7g}" if metric in values else "" for metric in metrics]
            writer.writerow([*identity, *numbers])


def read_scores(path: StrPath) -> list[ImageScores]:
    """Read a file that `write_scores` wrote."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            if tuple(reader.fieldnames or ())[: len(_IDENTITY_COLUMNS)] != _IDENTITY_COLUMNS:
                raise ValueError("its first line names other columns")
            return [_image_scores(row) for row in reader]
    except (csv.Error, TypeError, ValueError) as error:
        raise ValueError(f"{os.fspath(path)} is not a scores.csv of an evaluation: {error}") from error


def _image_scores(row: dict[str, str]) -> ImageScores:
    setting, mask, image, samples = (row.pop(name) for name in _IDENTITY_COLUMNS)
    metrics = {metric: float(value) for metric, value in row.items() if value}
    if not all(map(math.isfinite, metrics.values())):
        raise ValueError(f"image {image} under {mask} has a score that is not finite")
    return ImageScores(setting, mask, int(image), samples, metrics)


def _resampled(count: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(count, size=(_NUM_RESAMPLES, count))


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _cell(summary: Summary, compared: bool) -> str:
    decimals = max(0, 2 - math.floor(math.log10(max(abs(summary.mean), 0.1))))  # three digits
    cell = f"{summary.mean:.{decimals}f}"
    if summary.num_images > 1:
        cell += f" ± {summary.standard_error:.{decimals}f}"
    if compared:
        low, high = map(_percent, summary.ratio_interval)
        cell += f", {_percent(summary.ratio)} % [{low}, {high}]"
    return cell


def _percent(ratio: float) -> str:
    if not math.isfinite(ratio):  # the first setting has a mean of 0
        return "-"
    percent = round(100 * (ratio - 1))
    return f"{percent:+d}" if percent else "0"
