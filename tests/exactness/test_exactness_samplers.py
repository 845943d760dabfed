"""Each peer on two pixels, against matrices that are written from its equations in NumPy."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import PEERS, make
from reference import posterior as gaussian_posterior
from reference import propagate_correlated
from samplers.chains import call_budget
from samplers.daps import daps
from samplers.ddnm import ddnm
from samplers.ddrm import ddrm
from samplers.ding import ding, ding_delayed
from samplers.dps import dps
from samplers.lanpaint import lanpaint
from samplers.levels import dense, even
from samplers.mmps import mmps
from samplers.pigdm import pigdm
from samplers.sampler import Sampler
from samplers.smcdiff import smcdiff
from samplers.tds import tds
from scipy.linalg import solve_continuous_lyapunov
from simulation import draw_results, moments
from two_pixels import COVARIANCE, KNOWN, MEAN, MISSING, SIGMAS, VARIANCE, Y, denoiser, problem, propagate

import repaint_jax as rp

TO_Y = np.array([Y, 0.0])
Step = tuple[np.ndarray, np.ndarray, np.ndarray]


def levels() -> Iterator[tuple[float, float, np.ndarray, np.ndarray]]:
    """Sigma, that of the next level, the denoiser W and the noise E of E x."""
    for s, t in pairwise(SIGMAS):
        yield s, t, denoiser(s), (np.eye(2) - denoiser(s)) / s


def ddnm_steps(eta: float) -> Iterator[Step]:
    for _, t, W, E in levels():
        yield MISSING @ W + t * np.sqrt(1 - eta**2) * E, TO_Y, t * eta * np.eye(2)


def ddrm_steps(eta: float) -> Iterator[Step]:
    for _, t, W, E in levels():
        yield MISSING @ (W + t * np.sqrt(1 - eta**2) * E), TO_Y, t * (KNOWN + eta * MISSING)


def ancestral_step(s, t, W, E, eta) -> tuple[np.ndarray, float]:
    """DDIM's step: the matrix of the mean, and the standard deviation."""
    variance = eta**2 * t**2 * (s**2 - t**2) / s**2
    return W + np.sqrt(t**2 - variance) * E, np.sqrt(variance)


def pigdm_steps(eta: float) -> Iterator[Step]:
    for s, t, W, E in levels():
        mean, std = ancestral_step(s, t, W, E, eta)
        guidance = np.sqrt(1 + t**2) * W @ KNOWN
        yield mean - guidance @ W, guidance @ TO_Y, std * np.eye(2)


def ding_steps(eta: float, is_delayed: bool) -> Iterator[Step]:
    for s, t, W, E in levels():
        mean, std = ancestral_step(s, t, W, E, eta)
        if t == 0:  # the known pixel is y, the missing one is the prediction
            yield MISSING @ W, TO_Y, np.zeros((2, 2))
            continue
        share = std**2 / (std**2 + 1e-6)
        if is_delayed:
            seen, of_proxy = t * E, np.zeros((2, 2))
        else:
            proxy_noise = np.eye(2) - denoiser(t)  # t times the noise that is predicted in the proxy
            seen, of_proxy = proxy_noise @ mean, std * proxy_noise
        linear = MISSING @ mean + KNOWN @ ((1 - share) * mean + share * seen)
        noise = np.hstack([MISSING * std + KNOWN * np.sqrt(share) * 1e-3, share * KNOWN @ of_proxy])
        yield linear, share * TO_Y, noise


def daps_steps(scale: float) -> Iterator[Step]:
    for s, t, _, _ in levels():
        end = s / 100  # two Euler steps: to here, and to 0
        first = denoiser(s) + end * (np.eye(2) - denoiser(s)) / s
        linear = MISSING @ denoiser(end) @ first
        r = scale * s / np.sqrt(1 + s**2)
        yield linear, TO_Y, np.hstack([r * MISSING, t * np.eye(2)])


CASES: dict[str, tuple[Callable[[], Sampler], Callable[[], Iterator[Step]]]] = {
    "DDNM": (lambda: ddnm(SIGMAS, 0.6), lambda: ddnm_steps(0.6)),
    "DDRM": (lambda: ddrm(SIGMAS, 0.6), lambda: ddrm_steps(0.6)),
    "PiGDM": (lambda: pigdm(SIGMAS, 0.6), lambda: pigdm_steps(0.6)),
    "DING": (lambda: ding(SIGMAS, 0.6), lambda: ding_steps(0.6, False)),
    "DING, delayed": (lambda: ding_delayed(SIGMAS, 0.6), lambda: ding_steps(0.6, True)),
    "DAPS": (lambda: daps(SIGMAS, 2, 0.5), lambda: daps_steps(0.5)),
}


@pytest.mark.parametrize("name", CASES)
def test_an_affine_sampler_has_the_moments_of_its_equations(name: str) -> None:
    sampler, steps = (make_one() for make_one in CASES[name])
    start = 26.0 * np.eye(2)  # 1 + 5^2
    if name == "DDRM":
        mean, cov = propagate(steps, TO_Y, KNOWN * 25 + MISSING * 26)
    else:
        mean, cov = propagate(steps, np.zeros(2), start)
    found_mean, found = moments(problem(), sampler, np.eye(2))
    np.testing.assert_allclose(found_mean, mean, atol=1e-6)
    np.testing.assert_allclose(found, cov, atol=1e-6)


def test_lanpaint_comes_to_rest_in_the_law_of_its_dynamics() -> None:
    """At one level: du = v dt, dv = (c - B u - friction v) dt + sqrt(2 friction) dW."""
    s, guidance, friction = 0.7, 1.5, 2.0
    sampler = lanpaint(np.full(301, s), inner=4, length=0.02, guidance=guidance, friction=friction)
    eps = np.eye(2) - denoiser(s)  # of u
    stiffness = MISSING @ eps + KNOWN @ ((1 + guidance) * np.eye(2) - guidance * eps)
    drift = np.block([[np.zeros((2, 2)), np.eye(2)], [-stiffness, -friction * np.eye(2)]])
    noise = np.diag([0, 0, 2 * friction, 2 * friction])
    at_rest = solve_continuous_lyapunov(drift, -noise)[:2, :2]
    centre = np.linalg.solve(stiffness, (1 + guidance) * TO_Y / s)
    mean, cov = moments(problem(), sampler, np.eye(2))
    np.testing.assert_allclose(mean, s * centre, atol=0.01)
    np.testing.assert_allclose(cov, s**2 * at_rest, atol=0.01)


def test_an_iteration_of_mmps_is_exact_with_one_known_pixel() -> None:
    """The prediction is the mean given the sample, an image with noise, and y, with noise too."""
    s, x = 0.8, np.array([[0.9, -0.4]])
    sampler = mmps(np.array([s, 0.0]), noise=0.1)
    found, _ = step_of(sampler, x)
    seen = np.vstack([np.eye(2), [1.0, 0.0]])
    noise = np.diag([s**2, s**2, 0.1**2])
    gain = COVARIANCE @ seen.T @ np.linalg.inv(seen @ COVARIANCE @ seen.T + noise)
    np.testing.assert_allclose(found[0], gain @ [*x[0], Y], atol=1e-9)


def test_dps_goes_down_the_gradient_of_the_distance() -> None:
    s, x = 0.8, np.array([[0.9, -0.4]])
    found, _ = step_of(dps(np.array([s, 0.0]), zeta=0.3), x)
    W = denoiser(s)
    residual = Y - W[0] @ x[0]  # of the known pixel; the gradient of its size is -sign W^T e_1
    expected = W @ x[0] + 0.3 * np.sqrt(1 + s**2) * np.sign(residual) * W[0]
    np.testing.assert_allclose(found[0], expected, atol=1e-9)


def step_of(sampler: Sampler, x: np.ndarray):
    row = {name: values[0] for name, values in sampler.rows.items()}
    step = jax.jit(lambda x: sampler.step(problem(), x, (), lambda: jnp.zeros(x.shape), **row))
    return step(jnp.asarray(x))


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampler", [smcdiff(dense(100), populations=8), tds(dense(100), spread=0.3)], ids=["SMCDiff", "TDS"]
)
def test_particles_have_the_posterior(sampler: Sampler) -> None:
    """Both are exact with many particles; SMCDiff up to the noise of its one path."""
    runs = [draw_results(problem(), sampler, 2000, jax.random.key(k)) for k in range(8)]
    results = np.concatenate(runs)
    assert abs(results.mean() - MEAN) < 0.03
    assert abs(results.var() - VARIANCE) < 0.02


def test_moments_are_those_of_samples() -> None:
    sampler = ddnm(SIGMAS, 0.6)
    mean, cov = moments(problem(), sampler, np.eye(2))
    results = draw_results(problem(), sampler, 20_000, jax.random.key(0))
    assert abs(results.mean() - mean[1]) < 4 * np.sqrt(cov[1, 1] / 20_000)
    assert abs(results.var() / cov[1, 1] - 1) < 4 * np.sqrt(2 / 20_000)


def test_the_moments_of_a_call_budget_are_those_of_the_reference() -> None:
    config = rp.RePaintSchedulerConfig(clip_sample=False)
    sampler = call_budget(config, 24)
    state = rp.set_timesteps_for_budget(rp.create_state(config), 24)
    abar = np.cumprod(1 - config.betas)[np.asarray(state.timesteps)]
    mean, cov = propagate_correlated(
        np.zeros(2), COVARIANCE, TO_Y, np.array([1, 0]), np.sqrt((1 - abar) / abar)
    )
    found_mean, found = moments(problem(), sampler, np.eye(2))
    np.testing.assert_allclose(found_mean, mean, atol=1e-5)
    np.testing.assert_allclose(found, cov, atol=1e-5)


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_keeps_to_its_budget_and_counts_what_it_calls(name: str, monkeypatch) -> None:
    """Calls of the denoiser are counted as they are made; a product counts 2."""
    for settings in PEERS[name][1]:
        sampler = make(name, settings, 64, clip=False)
        steps = len(sampler.rows["sigma"])
        assert sampler.calls <= 64
        assert sampler.calls > 64 - sampler.calls // steps
        assert count_of_a_step(sampler) == sampler.calls // steps


def count_of_a_step(sampler: Sampler) -> int:
    """Calls of the prior's denoiser, and twice those of its transpose, in one step."""
    counts = {"call": 0, "product": 0}
    case = problem()

    class Counting:
        weights = case.prior.weights

        def denoise(self, signal, noise, x):
            @jax.custom_vjp
            def run(x):
                counts["call"] += 1
                return case.prior.denoise(signal, noise, x)

            def forward(x):
                return run(x), None

            def backward(_, cotangent):
                counts["product"] += 1
                return (case.prior.denoise(signal, noise, cotangent),)

            run.defvjp(forward, backward)
            return run(x)

    row = {name: jnp.asarray(values[0]) for name, values in sampler.rows.items()}
    draw = lambda: jnp.ones((8, 2))  # noqa: E731
    counted = case._replace(prior=Counting())
    start = jax.eval_shape(lambda: sampler.start(counted, draw, **row))
    counts.update(call=0, product=0)
    jax.eval_shape(lambda x, memory: sampler.step(counted, x, memory, draw, **row), *start)
    return counts["call"] + 2 * counts["product"]


def test_the_levels_fall_to_zero() -> None:
    for make_levels in (even, dense):
        for count in (2, 8, 64, 256):
            sigmas = make_levels(count)
            assert len(sigmas) == count + 1
            assert sigmas[-1] == 0
            assert (np.diff(sigmas) < 0).all(), (make_levels, count)
    assert even(8)[0] > 100
    assert 0.009 < dense(64)[-2] < 0.0101


def test_the_reference_of_this_file_is_the_posterior() -> None:
    mean, cov = gaussian_posterior(np.zeros(2), COVARIANCE, TO_Y, np.array([1, 0]))
    assert np.isclose(mean[0], MEAN)
    assert np.isclose(cov[0, 0], VARIANCE)
