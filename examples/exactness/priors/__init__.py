"""Priors whose ideal denoiser and posterior are known.

A prior is a named tuple of arrays with three methods:

- `denoise(signal, noise, sample)` returns E[x0 | x] for x = signal x0 + noise z, [..., d].
- `responsibilities(signal, noise, sample)` returns the probability of each component given x, [..., K].
- `posterior(image, mask)` returns a `Posterior`.
"""
