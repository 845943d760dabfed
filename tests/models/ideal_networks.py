"""Ideal denoisers, and the network of each family of models derived from one by the family's definition.

A level is a scalar, or one for each entry of the leading axis.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import reference

import repaint_jax as rp


def mixture_denoiser(weights, means, covs):
    """E[x0 | x = x0 + sigma z] of a mixture of Gaussians: weights [K], means [K, d], covs [K, d, d]."""
    values, vectors = np.linalg.eigh(covs)
    weights, means, values, vectors = map(np.asarray, (weights, means, values, vectors))
    einsum = partial(jnp.einsum, precision="highest")

    def denoise(params, x, sigma):
        prior, centres, spreads, axes = (jnp.asarray(a, x.dtype) for a in (weights, means, values, vectors))
        leading = (1,) * (x.ndim - 1)
        centres, spreads = (a.reshape(*leading, *a.shape) for a in (centres, spreads))
        along = einsum("...kd,kde->...ke", x[..., None, :] - centres, axes)
        variances = spreads + of_rank(x, sigma)[..., None] ** 2
        logits = -jnp.sum(along**2 / variances + jnp.log(variances), -1) / 2
        shares = jax.nn.softmax(logits + jnp.log(prior).reshape(*leading, -1))
        clean = centres + einsum("...ke,kde->...kd", along * spreads / variances, axes)
        return einsum("...k,...kd->...d", shares, clean)

    return denoise


def of_rank(x, level):
    """The level in the dtype of x, to be multiplied with x."""
    level = jnp.asarray(level, x.dtype)
    return level.reshape(level.shape + (1,) * (x.ndim - level.ndim))


def edm_network(denoise, params, scaled, c_noise, *labels, sigma_data=0.5):
    sigma = of_rank(scaled, jnp.exp(4 * c_noise))
    total = jnp.sqrt(sigma**2 + sigma_data**2)
    x = scaled * total
    skip, out = sigma_data**2 / total**2, sigma * sigma_data / total
    return (denoise(params, x, jnp.exp(4 * c_noise), *labels) - skip * x) / out


def velocity(denoise, params, x, time, *labels):
    """Of x = (1 - t) x0 + t z, which is (1 - t)(x0 + t/(1 - t) z)."""
    t = of_rank(x, time)
    x0 = denoise(params, x / (1 - t), time / (1 - time), *labels)
    return (x - (1 - t) * x0) / t - x0  # z - x0


def velocity_to_data(denoise, params, x, time, *labels):
    """Of x = t x0 + (1 - t) z."""
    t = of_rank(x, time)
    x0 = denoise(params, x / t, (1 - time) / time, *labels)
    return x0 - (x - t * x0) / (1 - t)  # x0 - z


def ve_score(denoise, params, x, sigma, *labels):
    return (denoise(params, x, sigma, *labels) - x) / of_rank(x, sigma) ** 2


def vp_score(denoise, betas, params, x, timestep, *labels):
    """Of x = sqrt(abar) x0 + sqrt(1 - abar) z, whose variance given x0 is 1 - abar."""
    signal, noise, sigma = levels_of(betas, x, timestep)
    return (signal * denoise(params, x / signal, sigma, *labels) - x) / noise**2


def in_ddpm_terms(denoise, prediction_type, betas, params, x, timestep, *labels):
    signal, noise, sigma = levels_of(betas, x, timestep)
    x0 = denoise(params, x / signal, sigma, *labels)
    eps = (x - signal * x0) / noise
    return {"sample": x0, "epsilon": eps, "v_prediction": signal * eps - noise * x0}[prediction_type]


def levels_of(betas, x, timestep):
    """Square roots of abar and of 1 - abar, and their ratio sigma."""
    abar = reference.alphas_cumprod(betas)
    signal, noise = (jnp.asarray(part, x.dtype)[timestep] for part in (np.sqrt(abar), np.sqrt(1 - abar)))
    return of_rank(x, signal), of_rank(x, noise), noise / signal


def families(denoise):
    """Name -> what the family's model_fn predicts, and a function that makes it for a config's levels."""
    edm, other_edm = partial(edm_network, denoise), partial(edm_network, denoise, sigma_data=0.3)
    flow, flow_to_data = partial(velocity, denoise), partial(velocity_to_data, denoise)
    score = partial(ve_score, denoise)

    def with_betas(config, network, *arguments):
        return partial(network, denoise, *arguments, tuple(config.betas))

    return {
        "denoiser": ("sample", partial(rp.denoiser_model_fn, denoise)),
        "edm": ("sample", partial(rp.edm_model_fn, edm)),
        "edm, other data": ("sample", partial(rp.edm_model_fn, other_edm, sigma_data=0.3)),
        "flow": ("sample", partial(rp.flow_model_fn, flow)),
        "flow to data": ("sample", partial(rp.flow_model_fn, flow_to_data, data_at=1)),
        "score of VE": ("sample", partial(rp.score_model_fn, score)),
        "score of VP": (
            "epsilon",
            lambda config: rp.score_model_fn(with_betas(config, vp_score), config, process="vp"),
        ),
        "v": ("v_prediction", lambda config: with_betas(config, in_ddpm_terms, "v_prediction")),
        "noise": ("epsilon", lambda config: with_betas(config, in_ddpm_terms, "epsilon")),
    }


def config_and_model_fn(family, config):
    """The config with what this family (an entry of `families`) predicts, and its model_fn."""
    prediction_type, make = family
    config = dataclasses.replace(config, prediction_type=prediction_type)
    return config, make(config)
