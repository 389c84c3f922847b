"""What the two stages that train correctors share: the frozen operator's residuals, computed or cached, and the noise."""

import logging
from pathlib import Path

import torch
from torch import Tensor

from ups.datamodules.windows import Batch
from ups.errors import UpsError
from ups.files import size
from ups.latents import LatentCache, Steps, assimilated
from ups.modules.stage import StageModule
from ups.sampling import Corrector

log = logging.getLogger(__name__)


class ResidualModule(StageModule):
    """Trains a corrector on ``ups.latents.Steps``.

    Hyperparameters beside those of every stage: gradient_steps, that move a prediction's tokens to where they should be; latent_cache,
    "float16" or "float32" for a cache on disk of the windows that every epoch then repeats, or None; latent_cache_limit, its bytes at most.
    """

    corrector: Corrector
    cache: LatentCache | None = None

    def on_fit_start(self) -> None:
        super().on_fit_start()
        dtype = self.hparams["latent_cache"]
        if dtype is None:
            return
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not data.hparams["repeat"]:
            raise UpsError(f"latent_cache={dtype} needs data.repeat=true, the same windows in every epoch; or latent_cache=null")
        loader = data.train_dataloader()
        path = Path(self.trainer.default_root_dir) / "cache" / f"{self.stage}-{self.trainer.global_rank}.latents"
        windows, frames = loader.sampler.windows, data.hparams["window"] + 1
        batches = (Batch(*(t.to(self.device) for t in vars(batch).values())) for batch in loader.sampler.first_epoch(loader.dataset))
        steps, limit = self.hparams["gradient_steps"], self.hparams["latent_cache_limit"]
        self.cache = LatentCache(path, self.simulator, batches, windows, frames, dtype, steps, limit)
        log.info("%s: latents of %d windows cached in %s, %s", self.stage, windows, path, size(self.cache.bytes))

    def on_fit_end(self) -> None:
        self.close()

    def close(self) -> None:
        if self.cache is not None:
            self.cache.remove()

    def steps(self, batch: Batch) -> Steps:
        return self.cache.read(batch) if self.cache is not None else assimilated(self.simulator, batch, self.hparams["gradient_steps"])

    def noise(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """White noise (B, K, N, free) for the steps of a batch of windows."""
        shape = len(batch), batch.u.shape[1] - 1, self.simulator.model.tokens, self.corrector.free
        return torch.randn(shape, generator=generator, device=self.device)
