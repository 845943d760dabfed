"""Steps of DPS, PiGDM, MMPS and TDS against azula's own code, with the same noise."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest
from samplers.dps import dps
from samplers.mmps import mmps
from samplers.pigdm import pigdm
from samplers.tds import tds
from two_pixels import COVARIANCE, Y, problem

pytestmark = pytest.mark.torch

TIMES = 0.6, 0.45  # of a step
X = np.array([[0.9, -0.4], [0.7, 0.1], [0.5, 0.3], [0.8, -0.2]])  # of x0 + sigma noise
Z = np.array([[0.3, -1.1], [0.2, 0.4], [-0.9, 0.1], [0.5, 0.6]])


class Azula:
    """azula's denoiser of the two pixels, and the levels of the step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.torch = torch = pytest.importorskip("torch")
        pytest.importorskip("azula")
        from azula.denoise import GaussianDenoiser
        from azula.linalg.covariance import FullCovariance
        from azula.noise import VPSchedule

        schedule = VPSchedule(sigma_min=0.0)
        values, vectors = torch.linalg.eigh(torch.tensor(COVARIANCE))
        mean = torch.zeros(2, dtype=torch.float64)
        self.denoiser = GaussianDenoiser(mean, FullCovariance(vectors, values), schedule)
        self.t, self.s = (torch.tensor(time, dtype=torch.float64) for time in TIMES)
        (self.a, sigma), (self.p, after) = (
            [float(value) for value in schedule(time)] for time in (self.t, self.s)
        )
        self.sigmas = np.array([sigma / self.a, after / self.p])
        self.y = torch.tensor([[Y]], dtype=torch.float64)
        self.noise = Z
        monkeypatch.setattr(torch, "randn_like", lambda x: torch.tensor(self.noise[: len(x)]))

    def step(self, sampler, x: np.ndarray, **options) -> np.ndarray:
        """A step in the units of this package."""
        sample = sampler.step(self.torch.tensor(self.a * x), self.t, self.s, **options)
        return sample.detach().numpy() / self.p


@pytest.fixture
def azula(monkeypatch: pytest.MonkeyPatch) -> Azula:
    return Azula(monkeypatch)


def known(x):
    return x[..., :1]


def step_of(sampler, x: np.ndarray, memory=(), draw: Callable | None = None):
    row = {name: np.asarray(values)[0] for name, values in sampler.rows.items()}
    return sampler.step(
        problem(), jnp.asarray(x), memory, draw or (lambda: jnp.asarray(Z[: len(x)])), **row
    )


def test_a_step_of_dps_is_that_of_azula(azula: Azula) -> None:
    from azula.guidance import DPSSampler

    sampler = DPSSampler(azula.denoiser, azula.y, known, zeta=0.7, silent=True)
    found, _ = step_of(dps(azula.sigmas, zeta=0.7), X[:1])
    np.testing.assert_allclose(found, azula.step(sampler, X[:1]), atol=1e-10)


def test_a_step_of_pigdm_is_that_of_azula(azula: Azula) -> None:
    """azula weighs the guidance by both levels' signals, a p. The paper's weight is sqrt(a)."""
    from azula.guidance import PGDMSampler

    def pseudo_inverse(y):
        return azula.torch.cat([y, azula.torch.zeros_like(y)], -1)

    sampler = PGDMSampler(azula.denoiser, azula.y, known, pseudo_inverse, eta=1.0, silent=True)
    scale = 1 / np.sqrt(1 + azula.sigmas[1] ** 2)
    found, _ = step_of(pigdm(azula.sigmas, eta=1.0, scale=scale), X)
    np.testing.assert_allclose(found, azula.step(sampler, X), atol=1e-10)


@pytest.mark.parametrize("iterations", [1, 2])
def test_the_prediction_of_mmps_is_that_of_azula(azula: Azula, iterations: int) -> None:
    from azula.guidance import MMPSDenoiser
    from azula.linalg.covariance import IsotropicCovariance

    variance = IsotropicCovariance(azula.torch.tensor(0.04, dtype=azula.torch.float64))
    guided = MMPSDenoiser(azula.denoiser, azula.y, known, variance, "cg", iterations)
    expected = guided(azula.torch.tensor(azula.a * X), azula.t).mean.detach().numpy()
    found, _ = step_of(mmps(np.array([azula.sigmas[0], 0.0]), iterations, noise=0.2), X)
    np.testing.assert_allclose(found, expected, atol=1e-8)


def test_a_step_and_the_weights_of_tds_are_those_of_azula(azula: Azula, monkeypatch) -> None:
    """Without resampling, which either does in its own way."""
    from azula.guidance import TDSSampler

    torch = azula.torch
    variance = azula.sigmas[0] ** 2 / (1 + azula.sigmas[0] ** 2)

    def twist(x_hat, _):
        return -((azula.y - known(x_hat)) ** 2) / (2 * variance)

    monkeypatch.setattr(torch, "multinomial", lambda weights, count, replacement: torch.arange(count))
    monkeypatch.setattr(
        torch.distributions.Normal, "sample", lambda self: self.loc + self.scale * torch.tensor(Z)
    )
    carry: dict = {}
    expected = azula.step(TDSSampler(azula.denoiser, twist, silent=True), X, carry=carry)
    found, log_weights = step_of(tds(azula.sigmas, spread=1.0), X, jnp.zeros(4))
    np.testing.assert_allclose(found, expected, atol=1e-10)
    # azula has resampled, so it starts from equal weights; here the twist of this call stays, and cancels.
    prediction = azula.denoiser(torch.tensor(azula.a * X), azula.t).mean
    twists = twist(prediction, None).detach().numpy()[:, 0]
    np.testing.assert_allclose(log_weights - twists, carry["log_w"].detach().numpy(), atol=1e-9)
