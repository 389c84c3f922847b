"""What the two stages that train correctors share.

That is the residuals of the frozen operator, computed or cached, and the noise.
"""

import logging
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor

from ups.core.batch import Batch
from ups.core.errors import UpsError
from ups.core.io import format_bytes
from ups.core.schema import NonNegativeFloat
from ups.modules.base import BaseModule
from ups.simulation.correctors import ResidualCorrector
from ups.simulation.residual_targets import LatentCache, ResidualTargets, residual_targets

log = logging.getLogger(__name__)


class CorrectorModule(BaseModule):
    """Trains a corrector on ``ups.simulation.residual_targets.ResidualTargets``.

    Args:
        projection_steps: descent steps that move a prediction to its target.
        latent_cache_dtype: "float16" or "float32" for a cache of the targets on disk, which needs
            the same windows in every epoch, or None.
        latent_cache_max_bytes: maximum size of the cache in bytes.

    The other arguments are those of ``BaseModule``.
    """

    corrector: ResidualCorrector
    cache: LatentCache | None = None

    def __init__(
        self,
        *,
        projection_steps: Annotated[int, Ge(1), Le(1000)] = 3,
        latent_cache_dtype: Literal["float16", "float32"] | None = None,
        latent_cache_max_bytes: NonNegativeFloat = 4e9,
        **options: Any,
    ) -> None:
        super().__init__(**options)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        dtype = self.hparams["latent_cache_dtype"]
        if dtype is None:
            return
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not data.hparams["fixed_windows"]:
            raise UpsError(
                f"latent_cache_dtype={dtype} needs data.fixed_windows=true, "
                "the same windows in every epoch; "
                "or latent_cache_dtype=null"
            )
        loader = data.train_dataloader()
        folder = Path(self.trainer.default_root_dir) / "cache"
        path = folder / f"{self.stage}-{self.trainer.global_rank}.latents"
        windows = loader.sampler.num_windows
        frames = data.hparams["unroll_steps"] + 1
        batches = (
            batch.to(self.device) for batch in loader.sampler.iter_fixed_batches(loader.dataset)
        )
        self.cache = LatentCache(
            path,
            self.simulator,
            batches,
            windows,
            frames,
            dtype,
            projection_steps=self.hparams["projection_steps"],
            max_bytes=self.hparams["latent_cache_max_bytes"],
        )
        log.info(
            "%s: latents of %d windows cached in %s, %s",
            self.stage,
            windows,
            path,
            format_bytes(self.cache.bytes),
        )

    def on_fit_end(self) -> None:
        self.clean_up()

    def clean_up(self) -> None:
        if self.cache is not None:
            self.cache.remove()

    def steps(self, batch: Batch) -> ResidualTargets:
        """Read the residual targets of a batch from the cache, or compute them."""
        return (
            self.cache.read(batch)
            if self.cache is not None
            else residual_targets(self.simulator, batch, self.hparams["projection_steps"])
        )

    def noise(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """White noise (B, K, N, num_dynamic_channels) for the steps of a batch of windows."""
        shape = (
            len(batch),
            batch.u.shape[1] - 1,
            self.simulator.model.num_tokens,
            self.corrector.num_dynamic_channels,
        )
        return torch.randn(shape, generator=generator, device=self.device)
