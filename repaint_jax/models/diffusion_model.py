"""A pretrained diffusion model with its scheduler: everything that a pipeline holds."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray

from repaint_jax.files import StrPath
from repaint_jax.models.adapters import nnx_model_fn
from repaint_jax.models.autoencoder import Autoencoder
from repaint_jax.models.classifier import UNet2DClassifier
from repaint_jax.models.families import (
    Family,
    Scheduler,
    check_time_embedding,
    config_of,
    model_fn_of,
)
from repaint_jax.models.guidance import Classifier, guided_model
from repaint_jax.models.latents import LatentSpace
from repaint_jax.models.pretrained import load_classifier, load_pretrained, save_pretrained
from repaint_jax.models.unet2d import UNet2D
from repaint_jax.models.unet2d_config import UNet2DConfig
from repaint_jax.sampling.checks import described, kind_of
from repaint_jax.sampling.config import RePaintSchedulerConfig
from repaint_jax.sampling.inpaint import ModelFn
from repaint_jax.sampling.scheduler import RePaintSchedulerState, create_state


@dataclasses.dataclass(frozen=True, eq=False)  # compared by identity: equal params are equal memory
class DiffusionModel:
    """A model with the scheduler it was trained for.

    Attributes:
        model_fn: the function `model_fn(params, sample, timestep)`. It takes the class labels as a fourth
            argument if unet_config describes a class-conditional model.
        params: the model's parameters.
        state: the scheduler's state, without a schedule.
        image_shape: the shape [H, W, C] of the model's images.
        unet_config: the architecture of the `UNet2D` that model_fn runs. None for any other model.
        classifier: a classifier of noisy pictures, for guidance.
        family: how the `UNet2D` is called at continuous noise levels. None for levels with betas, and for
            any other model.
        latents: the autoencoder of a latent model, as `LatentSpace.of(autoencoder)`. model_fn then takes
            its latents. None for a model of pixels.
    """

    model_fn: Callable[..., jax.Array]
    params: Any
    state: RePaintSchedulerState
    image_shape: tuple[int, int, int]
    unet_config: UNet2DConfig | None = None
    classifier: Classifier | None = None
    family: Family | None = None
    latents: LatentSpace | None = None

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: StrPath,
        *,
        dtype: Any = None,
        revision: str | None = None,
        classifier: StrPath | None = None,
        autoencoder: StrPath | Autoencoder | None = None,
        subfolder: StrPath | None = None,
        variant: str | None = None,
        token: str | bool | None = None,
        cache_dir: StrPath | None = None,
    ) -> Self:
        """Load a pretrained model and its scheduler's settings.

        `path_or_repo` is one of these:

        - A diffusers folder of an unconditional or class-conditional `UNet2DModel`, with
          `model_index.json`, `unet/` and `scheduler/`, or with all its files in one folder. A latent model
          also has `vqvae/` or `vae/`.
        - A repository of the Hugging Face hub with the same layout. This needs huggingface_hub, and
          respects its cache and HF_HUB_OFFLINE.
        - A `.pt`, `.pth` or `.ckpt` checkpoint of guided-diffusion, the format of the official RePaint
          models. This needs torch.
        - A model of this package: "bundled/fashion_mnist", for which "bundled" is short, or
          "bundled/emoji".

        Args:
            path_or_repo: the model's folder, repository, checkpoint or bundled name.
            dtype: the dtype of the model's parameters and arithmetic. float32 if None.
            revision: the branch, tag or commit on the hub.
            classifier: a classifier of noisy pictures, for guidance: a `.pt` checkpoint of
                guided-diffusion, or the folder that `repaint-jax convert` made from it.
            autoencoder: the autoencoder of a latent model, if it is not the one in the folder: a module, or
                what `models.load_autoencoder` takes.
            subfolder: the folder inside path_or_repo that holds the pipeline, such as "checkpoint-500", or
                the network alone, such as "unet_ema". The scheduler's settings are then those of the
                nearest folder above it.
            variant: the variant of the weights, such as "fp16".
            token: the access token for a private or gated repository. None means the stored one.
            cache_dir: the folder for downloads. None means that of huggingface_hub.
        """
        unet, scheduler, own_autoencoder = load_pretrained(
            path_or_repo,
            dtype=dtype,
            autoencoder=autoencoder,
            revision=revision,
            subfolder=subfolder,
            variant=variant,
            token=token,
            cache_dir=cache_dir,
        )
        pipe = cls.from_unet2d(unet, scheduler, autoencoder=own_autoencoder)
        if classifier is None:
            return pipe
        return pipe.with_classifier(load_classifier(classifier, dtype=dtype))

    @classmethod
    def from_unet2d(
        cls, unet: UNet2D, scheduler: Scheduler, *, autoencoder: Autoencoder | None = None
    ) -> Self:
        """Make a pipeline from a model and its scheduler's settings.

        Args:
            unet: the model.
            scheduler: the settings of the scheduler that the model was trained for: a
                `RePaintSchedulerConfig`, or one of `models.families`.
            autoencoder: the autoencoder of a latent model.

        Raises:
            TypeError: if unet is no `UNet2D`, scheduler is none, or autoencoder is no `AutoencoderKL` and
                no `VQModel`.
            ValueError: if the autoencoder's latents do not have the model's channels, or the model's time
                embedding does not go with the scheduler.
        """
        if not isinstance(unet, UNet2D):
            raise TypeError(f"unet is {kind_of(unet)}, expected a UNet2D")
        if not isinstance(scheduler, Scheduler):
            raise TypeError(
                f"scheduler is {described(scheduler)}, expected a RePaintSchedulerConfig or one of "
                "models.families"
            )
        check_time_embedding(unet.config, scheduler)
        network, params = nnx_model_fn(unet)
        config = config_of(scheduler)
        family = scheduler if isinstance(scheduler, Family) else None
        height, width, channels = *unet.config.height_and_width, unet.config.in_channels
        latents = None
        if autoencoder is not None:
            latents = LatentSpace.of(autoencoder)
            if latents.channels != channels:
                raise ValueError(
                    f"autoencoder has latents of {latents.channels} channels, expected the {channels} of "
                    "the model's input"
                )
            height, width = height * latents.factor, width * latents.factor
            channels = latents.config.in_channels
            config = dataclasses.replace(config, clip_sample=False)  # latents have no limits
        return cls(
            model_fn_of(scheduler, network),
            params,
            create_state(config),
            (height, width, channels),
            unet.config,
            family=family,
            latents=latents,
        )

    def with_classifier(self, classifier: UNet2DClassifier) -> Self:
        """Return a copy of the pipeline that uses a classifier for guidance.

        Args:
            classifier: a classifier of noisy pictures, for pictures of the model's shape.

        Raises:
            ValueError: if the classifier takes pictures of another shape.
        """
        shape = (*classifier.config.height_and_width, classifier.config.in_channels)
        if shape != self.latent_shape:
            raise ValueError(
                f"classifier takes pictures of shape {shape}, expected the model's {self.latent_shape} "
                "(height, width, channels)"
            )
        model_fn, params = nnx_model_fn(classifier)
        return dataclasses.replace(
            self, classifier=Classifier(model_fn, params, classifier.config.out_channels)
        )

    def save_pretrained(self, folder: StrPath, *, dtype: Any = np.float32) -> None:
        """Save the model in a folder that `from_pretrained` and diffusers' RePaintPipeline can load.

        All parts are written or none. Other files in the folder stay.

        Args:
            folder: the folder to write.
            dtype: the NumPy dtype of the network's stored weights. An autoencoder's keep their dtype.

        Raises:
            ValueError: if the model is not a `UNet2D`, or a weight is not finite in dtype.
        """
        if self.unet_config is None:
            raise ValueError("unet_config is None, expected a pipeline of a UNet2D: only that can be saved")
        config = self.unet_config
        unet = nnx.eval_shape(lambda: UNet2D(config, rngs=nnx.Rngs(0)))
        nnx.update(unet, self.params)
        autoencoder = None if self.latents is None else self.latents.autoencoder()
        save_pretrained(folder, unet, self.scheduler, dtype, autoencoder)

    @property
    def scheduler(self) -> Scheduler:
        """The settings of the scheduler that the model was trained for."""
        return self.state.config if self.family is None else self.family

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """The shape [H, W, C] of what model_fn takes: latents, or the model's images."""
        return self.image_shape if self.latents is None else self.latents.shape_of(self.image_shape)

    @property
    def side_multiple(self) -> int:
        """What the sides of pictures must be a multiple of: the model halves them several times."""
        halvings = 0 if self.unet_config is None else len(self.unet_config.block_out_channels) - 1
        return 2**halvings * (1 if self.latents is None else self.latents.factor)

    @property
    def is_class_conditional(self) -> bool:
        """Whether the model takes class labels."""
        return self.unet_config is not None and self.unet_config.is_class_conditional

    def digest(self) -> str:
        """Return a digest of settings, architecture and parameters: of all but your own model_fn."""
        of_latents = None if self.latents is None else self.latents.config
        settings = [self.state.config, self.unet_config, *filter(None, [self.family, of_latents])]
        digest = hashlib.sha256(repr(tuple(settings)).encode())
        of_classifier = None if self.classifier is None else self.classifier.params
        for leaf in jax.tree.leaves((self.params, of_classifier, self.latents)):
            is_key = jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)  # nnx.Dropout keeps one
            digest.update(np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes())
        return digest.hexdigest()

    def guided_model(
        self, config: RePaintSchedulerConfig, class_labels: NDArray[np.int32] | None, **guidance: Any
    ) -> tuple[ModelFn, Any]:
        """Return the model_fn and params that a call of the pipeline with these arguments uses.

        Args:
            config: the settings of the scheduler.
            class_labels: one label for each image of the batch, or None.
            guidance: `guidance_scale`, `null_label`, `cond_fn` and `cond_params`, as for a call of the
                pipeline.
        """
        return guided_model(
            self.model_fn,
            self.params,
            config,
            class_labels,
            unet_config=self.unet_config,
            classifier=self.classifier,
            **guidance,
        )
