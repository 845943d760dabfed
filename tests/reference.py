"""An independent RePaint in float64 NumPy, and its output distribution in closed form.

Nothing here is shared with the library. For a Gaussian prior N(mean, cov) the ideal denoiser is
affine in the noisy sample, so without clipping every transition of RePaint is an affine map plus
Gaussian noise. `propagate` pushes a mean and a covariance through all of them; the result is the
exact distribution of the sampler's output.

Levels: a ladder tau[0] < tau[1] < ... holds training timesteps; "level k" has the signal fraction
alphas_cumprod[tau[k]], and level -1 is clean. A chain is a list of moves: ("step", k) takes level k
to k - 1 with the model called at tau[k], ("undo", k) takes level k - 1 up to k.
"""

from itertools import pairwise

import numpy as np
from scipy.special import ndtr

# Noise schedules


def make_betas(
    beta_schedule="linear", num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02
) -> np.ndarray:
    """The variance added by each training timestep, [N]."""
    n = num_train_timesteps
    if beta_schedule == "linear":
        return np.linspace(beta_start, beta_end, n)
    if beta_schedule == "scaled_linear":
        return np.linspace(np.sqrt(beta_start), np.sqrt(beta_end), n) ** 2
    if beta_schedule == "squaredcos_cap_v2":
        edges = np.cos((np.arange(n + 1) / n + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1 - edges[1:] / edges[:-1], 0.999)
    if beta_schedule == "sigmoid":
        return beta_start + (beta_end - beta_start) / (1 + np.exp(-np.linspace(-6, 6, n)))
    raise ValueError(beta_schedule)


def alphas_cumprod(betas) -> np.ndarray:
    """The fraction of the signal's variance left at each training timestep, [N]."""
    return np.cumprod(1 - np.asarray(betas, np.float64))


def make_ladder(timestep_spacing, num_train_timesteps, num_inference_steps) -> np.ndarray:
    """The training timestep of each level, increasing, [T]."""
    n, steps = num_train_timesteps, num_inference_steps
    if timestep_spacing == "leading":
        return np.arange(steps) * (n // steps)
    if timestep_spacing == "trailing":
        return np.round(np.arange(n, 0, -n / steps)).astype(int)[:steps][::-1] - 1
    if timestep_spacing == "linspace":
        return np.round(np.linspace(0, n - 1, steps)).astype(int)
    raise ValueError(timestep_spacing)


# Lists of levels, and the moves they stand for


def diffusers_levels(num_inference_steps, jump_length=10, jump_n_sample=10) -> list[int]:
    """Walk down; at each multiple of j below T - j, go up j levels again, r - 1 times."""
    left = dict.fromkeys(range(0, num_inference_steps - jump_length, jump_length), jump_n_sample - 1)
    levels = [num_inference_steps - 1]
    while levels[-1] > 0 or left.get(0):
        here = levels[-1]
        if left.get(here):
            left[here] -= 1
            levels.extend(range(here + 1, here + jump_length + 1))
        levels.append(levels[-1] - 1)
    return levels


def paper_levels(
    num_inference_steps,
    jump_length=10,
    jump_n_sample=10,
    *,
    n_sample=1,
    start_resampling=None,
    jump2_length=1,
    jump2_n_sample=1,
    jump3_length=1,
    jump3_n_sample=1,
) -> list[int]:
    """The official list: ends at -1; has +-1 hops, inner jumps, a level to start resampling at.

    At each level walked down to: first the hops, then the innermost jump, the middle and the outer
    one, each checked at the level the one before it led to. A jump refills the counters of the
    jumps inside it.
    """
    kinds = [  # innermost first
        (jump3_length, jump3_n_sample),
        (jump2_length, jump2_n_sample),
        (jump_length, jump_n_sample),
    ]
    top = num_inference_steps - 1
    ceiling = top if start_resampling is None else start_resampling

    def full(kind):
        length, repeats = kinds[kind]
        return dict.fromkeys(range(0, num_inference_steps - length, length), repeats - 1)

    left = [full(kind) for kind in range(3)]
    levels = []
    level = top
    while level >= 0:
        levels.append(level)
        if level + 1 < top and level <= ceiling:
            levels.extend([level + 1, level] * (n_sample - 1))
        for kind, (length, _) in enumerate(kinds):
            if left[kind].get(level, 0) > 0 and level + length <= ceiling:
                left[kind][level] -= 1
                left[:kind] = [full(inner) for inner in range(kind)]
                levels.extend(range(level + 1, level + length + 1))
                level += length
        level -= 1
    return [*levels, -1]


def diffusers_moves(levels) -> list[tuple[str, int]]:
    """What diffusers' pipeline does with its list: step down to t, or undo the step taken last."""
    moves, last = [], levels[0] + 1
    for level in levels:
        moves.append(("step", level) if level < last else ("undo", last))
        last = level
    return moves


def paper_moves(levels) -> list[tuple[str, int]]:
    """What the official loop does with its list: each pair of neighbours is one transition."""
    return [("step", last) if level < last else ("undo", level) for last, level in pairwise(levels)]


# One transition


def level_alpha(betas, ladder, level) -> float:
    """alphas_cumprod at a level; 1 at level -1."""
    return 1.0 if level < 0 else alphas_cumprod(betas)[ladder[level]]


def undo_ratio(betas, ladder, level, undo="exact") -> float:
    """The factor r of x <- sqrt(r) x + sqrt(1 - r) z, which takes level - 1 up to level.

    "diffusers" starts its product at the timestep of the upper level, n = N // T too high.
    """
    if undo == "exact":
        return level_alpha(betas, ladder, level) / level_alpha(betas, ladder, level - 1)
    n = len(betas) // len(ladder)
    return np.prod(1 - betas[ladder[level] : ladder[level] + n])


def variances(alpha, alpha_prev, eta, variance_fraction=0.0):
    """The variance inside the mean, and that of the noise added.

    variance_fraction interpolates the logarithm of the latter from the posterior variance
    (0, fixed_small) to beta (1, fixed_large); a number, or one for each coordinate. Into level -1
    nothing is added.
    """
    if alpha_prev == 1:
        return 0.0, 0.0
    beta = 1 - alpha / alpha_prev
    small = (1 - alpha_prev) / (1 - alpha) * beta
    fraction = np.asarray(variance_fraction)
    return eta**2 * small, eta**2 * small ** (1 - fraction) * beta**fraction


def epsilon_denoiser(prior_mean, prior_cov, alpha):
    """W and b of E[eps | x] = W x + b, for x = sqrt(alpha) x0 + sqrt(1 - alpha) eps.

    alpha is a number or [K]; W is then [d, d] or [K, d, d].
    """
    alpha = np.asarray(alpha, np.float64)[..., None, None]
    identity = np.eye(len(prior_mean))
    weight = np.sqrt(1 - alpha) * np.linalg.inv(alpha * prior_cov + (1 - alpha) * identity)
    return weight, -np.sqrt(alpha[..., 0]) * (weight @ prior_mean)


def reverse_step(sample, epsilon, alpha, alpha_prev, mean_variance=0.0):
    """The mean of a step's unknown pixels: sqrt(p) x0 + sqrt(1 - p - s2) eps, and x0."""
    x0 = (sample - np.sqrt(1 - alpha) * epsilon) / np.sqrt(alpha)
    direction = np.sqrt(max(1 - alpha_prev - mean_variance, 0.0))
    return np.sqrt(alpha_prev) * x0 + direction * epsilon, x0


def merge_known(mean, cov, image, mask, alpha):
    """x <- mask (sqrt(alpha) image + sqrt(1 - alpha) z) + (1 - mask) x, with a z of its own."""
    mean = mask * np.sqrt(alpha) * image + (1 - mask) * mean
    cov = np.outer(1 - mask, 1 - mask) * cov + np.diag(mask**2 * (1 - alpha))
    return mean, cov


def mixture_denoiser(weights, means, covs, x, sigma) -> np.ndarray:
    """E[x0 | x = x0 + sigma z] of a mixture of Gaussians, for x [n, d] and a number sigma."""
    log_shares, clean = [], []
    for weight, mean, cov in zip(weights, means, covs, strict=True):
        noisy_cov = cov + sigma**2 * np.eye(len(mean))
        pull = np.linalg.solve(noisy_cov, (x - mean).T).T
        misfit = ((x - mean) * pull).sum(-1) + np.linalg.slogdet(noisy_cov)[1]
        log_shares.append(np.log(weight) - misfit / 2)
        clean.append(mean + pull @ cov)
    shares = np.exp(np.array(log_shares) - np.max(log_shares, 0))
    return np.einsum("kn,knd->nd", shares / shares.sum(0), np.array(clean))


# The whole chain


def propagate(
    prior_mean,
    prior_cov,
    image,
    mask,
    betas,
    ladder,
    moves,
    *,
    eta=0.0,
    undo="exact",
    known_region="after_step",
    variance_fraction=0.0,
    shared_noise=False,
):
    """Mean [d] and covariance [d, d] of RePaint's output, from a start at N(0, I).

    known_region "after_step" merges the known pixels into what each step returns, the last
    included. "before_model" is the official order: into what the model is about to see, except at
    its very first call, so that the output is the last step's own guess everywhere, known pixels
    included. shared_noise lets a step noise known and unknown parts with one draw, as diffusers
    does, which only a soft mask can tell from two.
    """
    betas, size = np.asarray(betas, np.float64), len(prior_mean)
    alphas = np.array([level_alpha(betas, ladder, k) for k in range(-1, len(ladder))])
    weights, biases = epsilon_denoiser(prior_mean, prior_cov, alphas[1:])
    raised = {level for move, level in moves if move == "undo"}
    ratios = {level: undo_ratio(betas, ladder, level, undo) for level in raised}
    mean, cov = np.zeros(size), np.eye(size)
    for i, (move, level) in enumerate(moves):
        if move == "undo":
            ratio = ratios[level]
            mean, cov = np.sqrt(ratio) * mean, ratio * cov + (1 - ratio) * np.eye(size)
            continue
        alpha, alpha_prev = alphas[level + 1], alphas[level]
        if known_region == "before_model" and i > 0:
            mean, cov = merge_known(mean, cov, image, mask, alpha)
        mean_variance, noise_variance = variances(alpha, alpha_prev, eta, variance_fraction)
        epsilon = weights[level] @ mean + biases[level]
        mean, _ = reverse_step(mean, epsilon, alpha, alpha_prev, mean_variance)
        linear, _ = reverse_step(np.eye(size), weights[level], alpha, alpha_prev, mean_variance)
        cov = linear @ cov @ linear.T + noise_variance * np.eye(size)
        if known_region == "after_step":
            mean, cov = merge_known(mean, cov, image, mask, alpha_prev)
            if shared_noise:
                product = np.sqrt((1 - alpha_prev) * noise_variance)
                cov = cov + np.diag(2 * mask * (1 - mask) * product)
    return mean, cov


# The chain of a call budget


def propagate_correlated(
    prior_mean,
    prior_cov,
    image,
    mask,
    sigmas,
    *,
    denoise_to=1 / 3,
    balance=0.5,
    feedback=0.95,
    correction=0.5,
    limit=np.inf,
):
    """Mean [d] and covariance [d, d] of correlated renoising, from N(0, (1 + sigmas[0]^2) I).

    In unscaled coordinates, image plus sigma times noise. sigmas are the levels of the model calls,
    falling; clean comes after them. Where the last three are the same, the last but one goes to clean,
    and half of the last one's noise is added to that. mask holds zeros and ones only. Where the image is
    at the limit there is neither feedback nor correction below sigma = limit.
    """
    size, known = len(prior_mean), mask == 1
    identity, none = np.eye(size), np.zeros((size, size))
    # The state is the sample and the noise drawn last; at first there is none.
    mean = np.zeros(2 * size)
    cov = np.block([[(1 + sigmas[0] ** 2) * identity, none], [none, none]])
    steps = list(pairwise([*sigmas, 0.0]))
    corrected = sigmas[-3] == sigmas[-1]
    if corrected:
        steps[-2:] = [(sigmas[-1], 0.0)] * 2
    for call, (now, later) in enumerate(steps):
        inverse = np.linalg.inv(prior_cov + now**2 * identity)
        weight, bias = now * inverse, -now * inverse @ prior_mean  # E[noise | x] = weight x + bias
        alpha = np.sqrt(2 * (later / now) ** balance * max(0.0, later / now - denoise_to))
        heeded = (np.abs(image) < limit) | (later >= limit)
        share = np.where(heeded, feedback, 0.0)
        pull = np.where(heeded, correction, 0.0) if later else np.zeros(size)
        # Missing: x + (min(later, now / 3) - now) e + alpha now (previous + new) / 2
        stride = min(later, now * denoise_to) - now
        if corrected and call == len(steps) - 1:
            stride = now / 2
        linear, offset = identity + stride * weight, stride * bias
        # Known: y + later (share e + sqrt(1 - share^2) new), y = image + pull (image - x0)
        gain = (later * share + pull * now)[:, None] * weight - np.diag(pull)
        known_offset = (1 + pull) * image + (later * share + pull * now) * bias
        linear = np.where(known[:, None], gain, linear)
        offset = np.where(known, known_offset, offset)
        by_previous = np.diag(np.where(known, 0.0, alpha * now / 2))
        by_new = np.diag(np.where(known, later * np.sqrt(1 - share**2), alpha * now / 2))
        carried = np.block([[linear, by_previous], [none, none]])
        drawn = np.vstack([by_new, identity])
        mean = carried @ mean + np.append(offset, np.zeros(size))
        cov = carried @ cov @ carried.T + drawn @ drawn.T
    return mean[:size], cov[:size, :size]


# Pixels that are known with noise
#
# The state is (X, y): the sample over its signal, and what is observed. `noise` [d] is the standard
# deviation of the observation in each pixel: 0 is known exactly, and infinity not at all. `start` gives the
# mean and covariance of the state at the start; by default X is noise and y a number.


def unknown_start(y, sigma):
    """X ~ N(0, 1 + sigma^2), as from a sample of standard noise, and y is given."""
    size = len(y)
    cov = np.zeros((2 * size, 2 * size))
    cov[:size, :size] = (1 + sigma**2) * np.eye(size)
    return np.append(np.zeros(size), y), cov


def noised_start(image, missing, sigma):
    """X = image + sigma z, and this is what is observed where pixels are missing."""
    size = len(image)
    both = np.vstack([np.eye(size), np.diag(np.where(missing, 1.0, 0.0))])
    return np.append(image, image), sigma**2 * both @ both.T


def observed_transition(rows, offset, by_y, cov_of_noise):
    """A and b of (X, y) <- A (X, y) + b, and the covariance of the noise."""
    size = len(offset)
    none, identity = np.zeros((size, size)), np.eye(size)
    matrix = np.block([[rows, by_y], [none, identity]])
    noise = np.zeros((2 * size, 2 * size))
    noise[:size, :size] = cov_of_noise
    return matrix, np.append(offset, np.zeros(size)), noise


def bridge_weight(low, high, noise):
    """The share of the way from a pixel at level low to its observation that a bridge to high goes."""
    return 0.0 if np.isinf(noise) else (high**2 - low**2) / (noise**2 - low**2)


def propagate_observed(prior_mean, prior_cov, y, noise, betas, ladder, moves, *, eta=0.0, start=None):
    """Mean [d] and covariance [d, d] of RePaint's output, given observations with noise."""
    size = len(prior_mean)
    sigma_of = {-1: 0.0}
    for level in range(len(ladder)):
        alpha = level_alpha(betas, ladder, level)
        sigma_of[level] = np.sqrt((1 - alpha) / alpha)
    mean, cov = unknown_start(y, sigma_of[len(ladder) - 1]) if start is None else start
    for move, level in moves:
        now, later = sigma_of[level], sigma_of[level - 1]
        gain = prior_cov @ np.linalg.inv(prior_cov + now**2 * np.eye(size))
        by_x, by_y, variance = np.zeros((size, size)), np.zeros((size, size)), np.zeros(size)
        offset = np.zeros(size)
        alpha, alpha_prev = 1 / (1 + now**2), 1 / (1 + later**2)
        mean_variance, noise_variance = (part / alpha_prev for part in variances(alpha, alpha_prev, eta))
        for i in range(size):
            c = noise[i]
            if move == "undo" and later >= c:  # known at both levels: more noise
                by_x[i, i], variance[i] = 1, now**2 - later**2
            elif move == "undo":
                top = min(now, c)
                share = bridge_weight(later, top, c)
                by_x[i, i], by_y[i, i] = 1 - share, share
                variance[i] = (1 - share) * (top**2 - later**2) + now**2 - top**2
            elif later >= c:
                by_y[i, i], variance[i] = 1, later**2 - c**2
            elif np.isinf(c):
                share = np.sqrt(max(later**2 - mean_variance, 0)) / now  # of X - x0
                by_x[i] = (1 - share) * gain[i] + share * np.eye(size)[i]
                offset[i], variance[i] = (1 - share) * (prior_mean - gain @ prior_mean)[i], noise_variance
            else:  # q(X_later | X_top, x0), eq. 6 and 7 of DDPM in unscaled coordinates
                top = min(now, c)
                share = later**2 / top**2
                by_x[i] = (1 - share) * gain[i]
                (by_y if now >= c else by_x)[i, i] += share
                offset[i] = (1 - share) * (prior_mean - gain @ prior_mean)[i]
                variance[i] = later**2 * (1 - share)
        matrix, shift, drawn = observed_transition(by_x, offset, by_y, np.diag(variance))
        mean, cov = matrix @ mean + shift, matrix @ cov @ matrix.T + drawn
    return mean[:size], cov[:size, :size]


def propagate_correlated_observed(
    prior_mean, prior_cov, y, noise, sigmas, *, feedback=0.95, correction=0.5, start=None
):
    """Mean [d] and covariance [d, d] of correlated renoising, given observations with noise.

    The state is (X, y, noise drawn last). See `propagate_correlated` for the levels.
    """
    size = len(prior_mean)
    identity, none = np.eye(size), np.zeros((size, size))
    mean, cov = unknown_start(y, sigmas[0]) if start is None else start
    mean, cov = np.append(mean, np.zeros(size)), np.pad(cov, (0, size))
    steps = list(pairwise([*sigmas, 0.0]))
    corrected = sigmas[-3] == sigmas[-1]
    if corrected:
        steps[-2:] = [(sigmas[-1], 0.0)] * 2
    for call, (now, later) in enumerate(steps):
        gain = prior_cov @ np.linalg.inv(prior_cov + now**2 * identity)
        rest = prior_mean - gain @ prior_mean  # x0 = gain X + rest
        by_x, by_y, by_z = none.copy(), none.copy(), none.copy()
        offset, drawn = np.zeros(size), np.zeros(size)
        pull = correction if later else 0.0
        for i in range(size):
            c = noise[i]
            if later >= c:
                # The pixel at level c is predicted as at_c = (1 - q) x0 + q X; X - at_c is its noise.
                q, left = (c / now) ** 2, np.sqrt(later**2 - c**2)
                back = left * feedback / np.sqrt(now**2 - c**2)  # of X - at_c
                by_x[i] = back * identity[i] - (back + pull) * ((1 - q) * gain[i] + q * identity[i])
                by_y[i, i] = 1 + pull
                offset[i] = -(back + pull) * (1 - q) * rest[i]
                drawn[i] = left * np.sqrt(1 - feedback**2)
                continue
            # The share of X - x0 that is left, and the weight of each of two draws of noise.
            if np.isinf(c) or later == 0:
                share, above, amplitude = min(later / now, 1 / 3), now, 0.0
                if later:
                    amplitude = now * np.sqrt(2 * np.sqrt(later / now) * max(0.0, later / now - 1 / 3)) / 2
                if corrected and call == len(steps) - 1:
                    share = 1.5
            else:
                above = min(now, c)
                share = min(1 / 3, (later / above) ** 2)
                amplitude = above * np.sqrt(2 * np.sqrt(later / above) * (later / above - share)) / 2
            by_x[i] = (1 - share) * gain[i]
            (by_y if now >= c and later else by_x)[i, i] += share
            offset[i] = (1 - share) * rest[i]
            if later and not np.isinf(c):
                weight = bridge_weight(above * np.sqrt(share), later, c)
                by_x[i] *= 1 - weight
                by_y[i, i] *= 1 - weight
                by_y[i, i] += weight
                offset[i] *= 1 - weight
                amplitude *= np.sqrt(1 - weight)
            by_z[i, i] = drawn[i] = amplitude
        carried = np.block([[by_x, by_y, by_z], [none, identity, none], [none, none, none]])
        new = np.vstack([np.diag(drawn), none, identity])
        mean = carried @ mean + np.concatenate([offset, np.zeros(2 * size)])
        cov = carried @ cov @ carried.T + new @ new.T
    return mean[:size], cov[:size, :size]


# What to compare the output with


def observed_posterior(prior_mean, prior_cov, y, noise, noise_of_y=0.0):
    """Mean and covariance of all pixels given y = x + noise n; no row of y counts where noise is infinite.

    With noise_of_y, those of the result where y itself is drawn anew each time, N(y, noise_of_y^2).
    """
    seen = ~np.isinf(noise)
    cross = prior_cov[:, seen]
    gain = np.linalg.solve(cross[seen] + np.diag(noise[seen] ** 2), cross.T).T
    mean = prior_mean + gain @ (y[seen] - prior_mean[seen])
    spread = gain * np.broadcast_to(noise_of_y, len(y))[seen]
    return mean, prior_cov - gain @ cross.T + spread @ spread.T


def observed_mixture_posterior(weights, means, covs, y, noise):
    """Weights [K], means [K, d] and covariances [K, d, d] of all pixels of a mixture, given y."""
    seen = ~np.isinf(noise)
    log_likelihoods, parts = [], []
    for mean, cov in zip(means, covs, strict=True):
        noisy = cov[np.ix_(seen, seen)] + np.diag(noise[seen] ** 2)
        off = y[seen] - mean[seen]
        log_likelihoods.append(-(off @ np.linalg.solve(noisy, off) + np.linalg.slogdet(noisy)[1]) / 2)
        parts.append(observed_posterior(mean, cov, y, noise))
    weights = weights * np.exp(np.array(log_likelihoods) - max(log_likelihoods))
    return weights / weights.sum(), *map(np.array, zip(*parts, strict=True))


def posterior(prior_mean, prior_cov, image, mask):
    """Mean and covariance of the missing coordinates (mask 0) given the known ones."""
    known, missing = mask == 1, mask == 0
    gain = np.linalg.solve(prior_cov[np.ix_(known, known)], prior_cov[np.ix_(known, missing)]).T
    mean = prior_mean[missing] + gain @ (image[known] - prior_mean[known])
    cov = prior_cov[np.ix_(missing, missing)] - gain @ prior_cov[np.ix_(known, missing)]
    return mean, cov


def mixture_posterior(weights, means, covs, image, mask):
    """Weights [K], means [K, m] and covariances [K, m, m] of the missing coordinates of a mixture."""
    known = mask == 1
    log_likelihoods, parts = [], []
    for mean, cov in zip(means, covs, strict=True):
        seen, off = cov[np.ix_(known, known)], image[known] - mean[known]
        log_likelihoods.append(-(off @ np.linalg.solve(seen, off) + np.linalg.slogdet(seen)[1]) / 2)
        parts.append(posterior(mean, cov, image, mask))
    weights = weights * np.exp(np.array(log_likelihoods) - max(log_likelihoods))
    return weights / weights.sum(), *map(np.array, zip(*parts, strict=True))


def _sqrtm(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T


def wasserstein2_squared(mean_a, cov_a, mean_b, cov_b) -> float:
    """The squared Wasserstein-2 distance of two Gaussians."""
    root = _sqrtm(cov_a)
    cross = _sqrtm(root @ cov_b @ root)
    return float(np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a + cov_b - 2 * cross))


def gaussian_misfit(samples, mean, cov) -> float:
    """Twice the log-likelihood by which the samples' own Gaussian beats N(mean, cov).

    For n samples of N(mean, cov) this is chi-squared with d + d (d + 1) / 2 degrees of freedom
    (Wilks), whatever the units; otherwise it grows as n. One number for all means, variances and
    correlations.
    """
    n, size = samples.shape
    root = np.linalg.cholesky(cov)
    white = np.linalg.solve(root, (samples.astype(np.float64) - mean).T).T
    offset = white.mean(0)
    eigenvalues = np.linalg.eigvalsh(np.cov(white.T, ddof=0).reshape(size, size))
    return float(n * (np.sum(eigenvalues - np.log(eigenvalues) - 1) + offset @ offset))


def gaussian_misfit_limit(size, false_alarm=1e-6) -> float:
    """A bound that gaussian_misfit passes with at most this probability, if N(mean, cov) is right.

    The tail bound of chi-squared of Laurent and Massart (2000), lemma 1.
    """
    freedom, x = size + size * (size + 1) / 2, -np.log(false_alarm)
    return float(freedom + 2 * np.sqrt(freedom * x) + 2 * x)


def mixture_distance(samples, weights, means, covs, directions) -> float:
    """The largest Kolmogorov distance of the samples' projections on directions [m, d] to a mixture's."""
    largest = 0.0
    for direction in directions:
        values = np.sort(samples @ direction)
        deviations = np.sqrt(np.einsum("d,kde,e->k", direction, covs, direction))
        cdf = ndtr((values[:, None] - means @ direction) / deviations) @ weights
        steps = np.arange(len(values) + 1) / len(values)
        largest = max(largest, np.max(steps[1:] - cdf), np.max(cdf - steps[:-1]))
    return float(largest)


def mixture_distance_limit(n, num_directions, false_alarm=1e-6) -> float:
    """A bound that mixture_distance of n samples passes with at most this probability (Massart 1990)."""
    return float(np.sqrt(np.log(2 * num_directions / false_alarm) / (2 * n)))


# Filling holes


def continued(values: np.ndarray, mask: np.ndarray, reach: float = np.inf) -> np.ndarray:
    """The screened Poisson equation in the hole of [H, W, C], with mirrored edges, solved directly."""
    height, width, channels = values.shape
    numbers = np.arange(height * width).reshape(height, width)
    matrix, known = np.eye(height * width), mask.ravel() == 1
    for row, column in np.argwhere(mask[..., 0] == 0):
        i = numbers[row, column]
        matrix[i, i] = 1 / reach**2
        for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            if 0 <= row + down < height and 0 <= column + right < width:
                matrix[i, i] += 1
                matrix[i, numbers[row + down, column + right]] = -1
    right_side = np.where(known[:, None], np.asarray(values, np.float64).reshape(-1, channels), 0)
    return np.linalg.solve(matrix, right_side).reshape(values.shape).astype(np.float32)
