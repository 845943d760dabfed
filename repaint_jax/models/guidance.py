"""Class labels and guidance: functions around a `model_fn` that are a `model_fn` again.

Labels, scales and the classifier's weights are part of the params, so that new ones compile nothing. Two of
these functions are equal when they wrap equal functions; they may be made anew for each call of `inpaint`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from repaint_jax import noise
from repaint_jax.config import RePaintSchedulerConfig
from repaint_jax.inpaint import ModelFn

ConditionalModelFn = Callable[[Any, jax.Array, jax.Array, Any], jax.Array]
CondFn = Callable[[Any, jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class ClassConditional:
    """A model that is told the classes; its params are `(model_params, class_labels)`.

    Attributes:
        model_fn: `model_fn(params, sample, timestep, class_labels)`, such as `nnx_model_fn` of a
            class-conditional `UNet2D` returns. class_labels are one for each image, int32 [B] or [].
    """

    model_fn: ConditionalModelFn

    def __call__(self, params: tuple[Any, Any], sample: jax.Array, timestep: jax.Array) -> jax.Array:
        model_params, class_labels = params
        return self.model_fn(model_params, sample, timestep, class_labels)


@dataclasses.dataclass(frozen=True)
class ClassifierFreeGuidance:
    """Go beyond the class-conditional prediction, away from the unconditional one.

    `unconditional + guidance_scale (conditional - unconditional)`, Ho and Salimans 2022 (arXiv 2207.12598),
    eq. 6 with guidance_scale = 1 + w; 1 is the conditional model itself. A learned variance is that of the
    conditional one. Both predictions are one call with twice the batch.

    The params are `(model_params, class_labels, null_labels, guidance_scale)`: null_labels, of
    class_labels' shape, is the label that the model was trained with for "no class".

    Attributes:
        model_fn: `model_fn(params, sample, timestep, class_labels)`.
    """

    model_fn: ConditionalModelFn

    def __call__(
        self, params: tuple[Any, Any, Any, Any], sample: jax.Array, timestep: jax.Array
    ) -> jax.Array:
        model_params, class_labels, null_labels, guidance_scale = params
        labels = jnp.stack([jnp.asarray(class_labels), jnp.asarray(null_labels)])
        conditional, unconditional = jax.vmap(
            lambda label: self.model_fn(model_params, sample, timestep, label)
        )(labels)
        channels = sample.shape[-1]
        prediction = unconditional + guidance_scale * (conditional - unconditional)
        return conditional.at[..., :channels].set(prediction[..., :channels].astype(conditional.dtype))


@dataclasses.dataclass(frozen=True)
class ClassifierGuidance:
    """Follow the gradient of log p(y | x_t), Dhariwal and Nichol 2021 (arXiv 2105.05233), algorithm 2.

    `eps - guidance_scale sqrt(1 - abar) grad log p(y | x_t)`, and the same shift in the terms of x0 and v.
    The official RePaint code shifts the step's mean by variance * guidance_scale * grad instead (algorithm
    1); the two differ by the ratio of that variance to beta, which is near 1 but for the last steps, and in
    that this shift comes before x0 is clipped.

    The params are `(model_params, cond_params, guidance_scale)`.

    Attributes:
        model_fn: `model_fn(params, sample, timestep)`.
        cond_fn: `cond_fn(cond_params, sample, timestep)`, the gradient, of the sample's shape; such as a
            `ClassifierGradient`.
        config: of the scheduler, `state.config`: its noise levels and prediction type.
    """

    model_fn: ModelFn
    cond_fn: CondFn
    config: RePaintSchedulerConfig

    def __call__(self, params: tuple[Any, Any, Any], sample: jax.Array, timestep: jax.Array) -> jax.Array:
        model_params, cond_params, guidance_scale = params
        model_output = self.model_fn(model_params, sample, timestep)
        gradient = self.cond_fn(cond_params, sample, timestep).astype(jnp.float32)
        if gradient.shape != sample.shape:
            raise ValueError(f"cond_fn returned shape {gradient.shape}, expected {sample.shape}")
        abar = noise.alphas_cumprod(self.config.betas)
        shift_of = {
            "epsilon": -((1 - abar) ** 0.5),
            "sample": (1 - abar) / abar**0.5,
            "v_prediction": -(((1 - abar) / abar) ** 0.5),
        }
        shift = jnp.asarray(shift_of[self.config.prediction_type], jnp.float32)[timestep]
        shifted = model_output[..., : sample.shape[-1]] + guidance_scale * shift * gradient
        return model_output.at[..., : sample.shape[-1]].set(shifted.astype(model_output.dtype))


@dataclasses.dataclass(frozen=True)
class ClassifierGradient:
    """Gradient of a classifier's log p(y | x_t); its params are `(classifier_params, class_labels)`.

    Attributes:
        classifier_fn: `classifier_fn(params, sample, timestep)` -> logits [B, classes] or [classes], such
            as `nnx_model_fn` of a `UNet2DClassifier` returns.
    """

    classifier_fn: ModelFn

    def __call__(self, params: tuple[Any, Any], sample: jax.Array, timestep: jax.Array) -> jax.Array:
        classifier_params, class_labels = params

        def log_probability(sample: jax.Array) -> jax.Array:
            logits = self.classifier_fn(classifier_params, sample, timestep).astype(jnp.float32)
            labels = jnp.broadcast_to(jnp.asarray(class_labels), logits.shape[:-1])
            return jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1).sum()

        return jax.grad(log_probability)(sample)
