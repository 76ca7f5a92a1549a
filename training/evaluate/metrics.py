"""Measures of pictures and of judgements, in numpy and double precision. Knows nothing of models or files."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_SSIM_WINDOW, _SSIM_SIGMA = 11, 1.5
_RESAMPLES = 2000


@dataclass(frozen=True)
class Figure:
    """A measured value, its standard error and the number of captions (or pictures) it rests on."""

    value: float
    error: float
    count: int


def rate(hits: ArrayLike) -> Figure:
    """Share of hits with its standard error; `hits` [captions] or [captions, pictures a caption] of 0 and 1.

    The pictures of one caption are no independent trials, so the error is that of the captions' means. Two hits and two
    misses are added for the error (Agresti and Coull 1998), which keeps it above zero when all or nothing hits.
    """
    shares = np.atleast_1d(np.asarray(hits, np.float64))
    shares = shares.reshape(len(shares), -1).mean(1)
    if not len(shares):
        return Figure(float("nan"), float("nan"), 0)
    padded = np.concatenate([shares, [0, 0, 1, 1]])
    return Figure(float(shares.mean()), float(padded.std() / np.sqrt(len(padded))), len(shares))


def mean(values: ArrayLike) -> Figure:
    """Mean with its standard error; `values` [n] or [captions, pictures a caption]."""
    found = np.atleast_1d(np.asarray(values, np.float64))
    found = found.reshape(len(found), -1).mean(1)
    if not len(found):
        return Figure(float("nan"), float("nan"), 0)
    error = found.std(ddof=1) / np.sqrt(len(found)) if len(found) > 1 else float("nan")
    return Figure(float(found.mean()), float(error), len(found))


def share_of(drawn: ArrayLike, ceiling: ArrayLike, random: np.random.Generator) -> Figure:
    """mean(drawn) / mean(ceiling) over the same captions; error by bootstrap over captions. NaN for a ceiling of 0."""
    pairs = np.stack(
        [np.asarray(side, np.float64).reshape(len(np.asarray(side)), -1).mean(1) for side in (drawn, ceiling)]
    )
    count = pairs.shape[1]
    if not count or not pairs[1].mean():
        return Figure(float("nan"), float("nan"), count)
    picked = random.integers(count, size=(_RESAMPLES, count))
    above, below = pairs[0][picked].mean(1), pairs[1][picked].mean(1)
    ratios = above[below > 0] / below[below > 0]
    return Figure(float(pairs[0].mean() / pairs[1].mean()), float(ratios.std()), count)


def ranks(similarity: ArrayLike, truth: ArrayLike) -> NDArray[np.int64]:
    """Rank of the true column for each row, 0 for the best; `similarity` [n, m], `truth` [n].

    Ties and NaN count against the picture: a judge without an opinion must not look like a good one.
    """
    scores, columns = np.asarray(similarity, np.float64), np.asarray(truth, np.int64)
    own = scores[np.arange(len(scores)), columns][:, None]
    return scores.shape[1] - 1 - (own > scores).sum(1)


def is_in_top(similarity: ArrayLike, truth: ArrayLike, count: int) -> NDArray[np.bool_]:
    """Whether the true column is among the `count` best of its row: bool [n]."""
    return ranks(similarity, truth) < count


def frechet_distance(first: ArrayLike, second: ArrayLike) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of features [n, f] and [m, f] (arXiv:1706.08500, eq. 6).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2), covariances with n - 1. The estimate is biased upwards by few
    samples, so compare only distances of equal n and m.
    """
    a, b = (np.asarray(features, np.float64) for features in (first, second))
    return gaussian_distance((a.mean(0), np.cov(a, rowvar=False)), (b.mean(0), np.cov(b, rowvar=False)))


def gaussian_distance(first: tuple[Array, Array], second: tuple[Array, Array]) -> float:
    """Fréchet distance (squared 2-Wasserstein) of two Gaussians, each (mean [f], covariance [f, f])."""
    (mean_1, covariance_1), (mean_2, covariance_2) = first, second
    covariance_1, covariance_2 = np.atleast_2d(covariance_1), np.atleast_2d(covariance_2)
    values, vectors = np.linalg.eigh(covariance_1)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    middle = np.linalg.eigvalsh(root @ covariance_2 @ root).clip(0)
    spread = np.trace(covariance_1) + np.trace(covariance_2) - 2 * np.sqrt(middle).sum()
    return float(np.square(np.asarray(mean_1) - mean_2).sum() + spread)


def frechet(features: ArrayLike, reference: ArrayLike, groups: int = 10) -> Figure:
    """Fréchet distance to `reference` with a delete-a-group jackknife error over the rows of `features` [n, f].

    Leaving rows out raises the distance by its bias, which is the same for every group and cancels; a bootstrap would
    repeat rows and raise it more. NaN below four rows.
    """
    rows = np.asarray(features, np.float64)
    if len(rows) < 4 or len(np.asarray(reference)) < 4:
        return Figure(float("nan"), float("nan"), len(rows))
    value = frechet_distance(rows, reference)
    groups = min(groups, len(rows))
    without = [frechet_distance(np.delete(rows, np.s_[start::groups], 0), reference) for start in range(groups)]
    return Figure(value, float(np.sqrt((groups - 1) * np.var(without))), len(rows))


def psnr(picture: ArrayLike, reference: ArrayLike) -> float:
    """Peak signal-to-noise ratio in dB of two pictures with values 0..255; infinite when they are equal."""
    error = np.square(np.asarray(picture, np.float64) - np.asarray(reference, np.float64)).mean()
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def ssim(picture: ArrayLike, reference: ArrayLike) -> float:
    """Mean structural similarity of two pictures uint8 [h, w, 3], on luma (Wang et al. 2004, equation 13).

    Gaussian window of 11 x 11 pixels and sigma 1.5, K1 = 0.01, K2 = 0.03, only windows that lie inside the picture.
    """
    x, y = _luma(picture), _luma(reference)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = _windowed(x), _windowed(y)
    variance_x, variance_y = _windowed(x * x) - mean_x**2, _windowed(y * y) - mean_y**2
    covariance = _windowed(x * y) - mean_x * mean_y
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((likeness / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))).mean())


def _luma(picture: ArrayLike) -> Array:
    """ITU-R BT.601 luma [h, w] of [h, w, 3]."""
    return np.asarray(np.asarray(picture, np.float64) @ [0.299, 0.587, 0.114])


def _windowed(plane: Array) -> Array:
    """Gaussian-weighted mean of every whole window: [h - 10, w - 10]."""
    offsets = np.arange(_SSIM_WINDOW) - _SSIM_WINDOW // 2
    weights = np.exp(-0.5 * np.square(offsets / _SSIM_SIGMA))
    weights /= weights.sum()
    across = sliding_window_view(plane, _SSIM_WINDOW, axis=1) @ weights
    return np.asarray(sliding_window_view(across, _SSIM_WINDOW, axis=0) @ weights)


def is_within_noise(first: Figure, second: Figure, errors: float = 3.0) -> bool:
    """Whether two independent figures differ by at most so many standard errors of their difference."""
    return abs(first.value - second.value) <= errors * float(np.hypot(first.error, second.error))


def as_json(figure: Figure) -> dict[str, Any]:
    """Rounded, for reports; NaN becomes null."""
    rounded = {"value": round(figure.value, 4), "error": round(figure.error, 4)}
    return {name: None if np.isnan(value) else value for name, value in rounded.items()} | {"count": figure.count}
