"""Class labels and guidance: callables that wrap a `model_fn` and are themselves a `model_fn`.

Labels, scales and the classifier's weights are part of the params, so new values do not compile again. Two
of these callables are equal if they wrap equal functions, so a new one can be made for each call of
`inpaint`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from repaint_jax.models.unet2d_config import UNet2DConfig
from repaint_jax.sampling import noise_levels
from repaint_jax.sampling.checks import check_callable
from repaint_jax.sampling.config import RePaintSchedulerConfig
from repaint_jax.sampling.inpaint import ModelFn

ConditionalModelFn = Callable[[Any, jax.Array, jax.Array, Any], jax.Array]
CondFn = Callable[[Any, jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class ClassConditional:
    """A class-conditional model. Its params are `(model_params, class_labels)`.

    Attributes:
        model_fn: `model_fn(params, sample, timestep, class_labels)`. `nnx_model_fn` of a class-conditional
            `UNet2D` returns such a function. class_labels has one label for each image, int32 [B] or [].
    """

    model_fn: ConditionalModelFn

    def __call__(self, params: tuple[Any, Any], sample: jax.Array, timestep: jax.Array) -> jax.Array:
        model_params, class_labels = params
        return self.model_fn(model_params, sample, timestep, class_labels)


@dataclasses.dataclass(frozen=True)
class ClassifierFreeGuidance:
    """Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598, eq. 6).

    The prediction is `unconditional + guidance_scale (conditional - unconditional)`, with guidance_scale =
    1 + w in the paper's notation; 1 gives the conditional model. A learned variance is that of the
    conditional model. Both predictions are computed in one call with twice the batch.

    The params are `(model_params, class_labels, null_labels, guidance_scale)`. null_labels has the shape of
    class_labels, and is the label for "no class" in the model's training.

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
    """Classifier guidance (Dhariwal and Nichol 2021, arXiv 2105.05233, algorithm 2).

    The prediction is `eps - guidance_scale sqrt(1 - abar) grad log p(y | x_t)`. For models that predict x0
    or v, it is the same shift in these terms. The official RePaint code instead shifts the mean of the step
    by variance * guidance_scale * grad (algorithm 1). The two differ by the ratio of that variance to beta,
    which is near 1 except in the last steps. They also differ because the shift here comes before x0 is
    clipped.

    The params are `(model_params, cond_params, guidance_scale)`.

    Attributes:
        model_fn: `model_fn(params, sample, timestep)`.
        cond_fn: `cond_fn(cond_params, sample, timestep)`, which returns the gradient of log p(y | x_t), of
            the sample's shape; for example a `ClassifierGradient`.
        config: the scheduler's settings, `state.config`, for the noise levels and the prediction type.
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
        abar = noise_levels.alphas_cumprod(self.config.betas)
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
    """The gradient of a classifier's log p(y | x_t). Its params are `(classifier_params, class_labels)`.

    Attributes:
        classifier_fn: `classifier_fn(params, sample, timestep)`, which returns logits [B, classes] or
            [classes]. `nnx_model_fn` of a `UNet2DClassifier` returns such a function.
    """

    classifier_fn: ModelFn

    def __call__(self, params: tuple[Any, Any], sample: jax.Array, timestep: jax.Array) -> jax.Array:
        classifier_params, class_labels = params

        def log_probability(sample: jax.Array) -> jax.Array:
            logits = self.classifier_fn(classifier_params, sample, timestep).astype(jnp.float32)
            labels = jnp.broadcast_to(jnp.asarray(class_labels), logits.shape[:-1])
            return jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1).sum()

        return jax.grad(log_probability)(sample)


class Classifier(NamedTuple):
    """A classifier of noisy pictures."""

    classifier_fn: Callable[..., jax.Array]  # (params, sample, timestep) -> logits [B, num_classes]
    params: Any  # the parameters of classifier_fn
    num_classes: int  # the number of classes


def checked_labels(
    name: str,
    class_labels: Any,
    num_images: int,
    unet_config: UNet2DConfig | None = None,
    classifier: Classifier | None = None,
) -> NDArray[np.int32]:  # [num_images]
    """Return one label for each image, or raise if the model or the classifier does not know a label.

    Args:
        name: name of the parameter, for messages.
        class_labels: one integer for all images, or one for each image.
        num_images: number of images.
        unet_config: architecture of the model if it is a UNet2D, or None.
        classifier: the classifier for guidance, or None.

    Raises:
        ValueError: the labels have a wrong shape, dtype or range, or the model takes embeddings.
    """
    if unet_config is not None and unet_config.class_embed_type == "identity":
        raise ValueError(
            f"{name} is {class_labels!r}, expected none: the model's class_embed_type is 'identity', "
            "its model_fn takes embeddings"
        )
    labels = np.asarray(class_labels)
    if labels.shape not in ((), (num_images,)) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{name} is {class_labels!r}, expected an integer, or one for each of {num_images} images"
        )
    model_classes = None if unet_config is None else unet_config.num_class_embeds
    classifier_classes = None if classifier is None else classifier.num_classes
    num_classes = min(model_classes or np.inf, classifier_classes or np.inf)
    if labels.min() < 0 or labels.max() >= num_classes:
        bound = f" to {num_classes - 1}" if num_classes < np.inf else ""
        raise ValueError(f"{name} is {class_labels!r}, expected labels from 0{bound}")
    return np.broadcast_to(labels.astype(np.int32), (num_images,))


def guided_model(
    model_fn: Callable[..., jax.Array],
    params: Any,
    config: RePaintSchedulerConfig,
    class_labels: NDArray[np.int32] | None,
    guidance_scale: float = 1.0,
    null_label: int | None = None,
    cond_fn: CondFn | None = None,
    cond_params: Any = None,
    *,
    unet_config: UNet2DConfig | None = None,
    classifier: Classifier | None = None,
) -> tuple[ModelFn, Any]:
    """Wrap a model in the callables that its labels and its guidance need.

    Args:
        model_fn: the model. If unet_config is class-conditional, its fourth argument is the labels.
        params: the model's parameters.
        config: the scheduler's settings.
        class_labels: labels [B], one for each image of the batch, or None.
        guidance_scale: see `RePaintPipeline`.
        null_label: see `RePaintPipeline`.
        cond_fn: see `RePaintPipeline`.
        cond_params: see `RePaintPipeline`.
        unet_config: architecture of the model if it is a UNet2D, or None.
        classifier: the classifier for guidance, used if cond_fn is None.

    Returns:
        `model_fn(params, sample, timestep)` and its params.

    Raises:
        ValueError: the labels, the guidance and the model do not fit together.
        TypeError: cond_fn is not a function.
    """
    conditional = unet_config is not None and unet_config.is_class_conditional
    follows_gradient = cond_fn is not None or classifier is not None
    if conditional and class_labels is None:
        raise ValueError("class_labels is None, expected labels: the model is class-conditional")
    if class_labels is not None and not conditional and classifier is None:
        raise ValueError(
            f"class_labels is {class_labels.tolist()}, but the model is not class-conditional and "
            "there is no classifier"
        )
    if null_label is not None and (follows_gradient or not conditional):
        raise ValueError(
            f"null_label is {null_label}, expected it only with a class-conditional model and without "
            "a classifier or cond_fn"
        )
    if guidance_scale != 1 and null_label is None and not follows_gradient:
        raise ValueError(
            f"guidance_scale is {guidance_scale}, but there is nothing to guide: no classifier, "
            "no cond_fn and no null_label"
        )
    if null_label is not None and class_labels is not None:
        null_labels = checked_labels("null_label", null_label, len(class_labels), unet_config, classifier)
        model_fn = ClassifierFreeGuidance(model_fn)
        params = (params, class_labels, null_labels, guidance_scale)
    elif conditional:
        model_fn, params = ClassConditional(model_fn), (params, class_labels)
    if cond_fn is None and classifier is not None:
        if class_labels is None:
            raise ValueError("class_labels is None, expected labels for the classifier")
        cond_fn = ClassifierGradient(classifier.classifier_fn)
        cond_params = (classifier.params, class_labels)
    if cond_fn is not None:
        check_callable("cond_fn", cond_fn)
        model_fn = ClassifierGuidance(model_fn, cond_fn, config)
        params = (params, cond_params, guidance_scale)
    return model_fn, params
