"""Stage 1, continued: train the operator as an ensemble."""

from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from ups.core.batch import Batch
from ups.core.fields import PointCloud
from ups.core.schema import Fraction, PositiveInt
from ups.evaluation.ensembles import EnsembleMetrics
from ups.modules.base import check_takes_points
from ups.modules.losses import ensemble_errors
from ups.modules.operator import OperatorModule
from ups.simulation.simulator import Simulator

VALIDATION_SCORES = ("crps", "energy_score", "ensemble_nrmse", "spread_skill_ratio")


class EnsembleOperatorModule(OperatorModule):
    """Trains a ``Simulator`` to draw ensembles, by their almost fair CRPS.

    The simulator gets ``ups.simulation.latent_noise.LatentNoise``, and

    loss = L_crps + lambda_inv_enc L_inv_enc + lambda_inv_dec L_inv_dec, see
    ``ups.modules.losses.ensemble_errors``.

    The noise is zero at first: begin with a finished operator (``init_from``).

    Validation also rolls out ``num_members`` draws of each trajectory and logs their
    ``VALIDATION_SCORES``; of these ``validation/operator/crps`` selects the best weights
    (conf/loss/crps.yaml). ``validation/operator/nrmse`` is that of the rollout without noise.

    Args:
        simulator: the simulator to train.
        num_members: number of draws M from each window.
        fairness: 1 for the fair CRPS, 0 for that of the ``num_members`` draws alone, see
            ``ups.modules.losses.almost_fair_crps``.
        noise_channels: number of values of white noise.
        shared_noise: whether all tokens of a field have the same noise, or each its own.

    The other arguments are those of ``OperatorModule`` and ``BaseModule``.

    Raises:
        UpsError: the fields lie on points.
    """

    takes_points = False

    def __init__(
        self,
        simulator: Simulator,
        *,
        num_members: Annotated[int, Ge(2)] = 2,
        fairness: Fraction = 0.5,
        noise_channels: PositiveInt = 16,
        shared_noise: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(simulator, **options)
        if isinstance(simulator.spec.domain, PointCloud):
            check_takes_points(type(self))
        noise = simulator.add_noise({"num_channels": noise_channels, "shared": shared_noise})
        self.noise_shape = noise.shape(simulator.model.num_tokens)

    def sample_noise(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, ...]:
        """White noise (B, M, K, N or 1, R) for each member and step of a batch of windows."""
        shape = (len(batch), self.hparams["num_members"], batch.u.shape[1] - 1, *self.noise_shape)
        return (torch.randn(shape, generator=generator, device=self.device),)

    def compute_losses(self, batch: Batch, *drawn: Tensor) -> dict[str, Tensor]:
        (noise,) = drawn
        inverse = self.needs_inverse_losses()
        errors = ensemble_errors(
            self.simulator, batch.u, batch.parameters, noise, inverse, self.hparams["fairness"]
        )
        crps = errors.pop("L_crps").mean()
        terms = self.combine(errors)
        return {**terms, "loss": crps + terms["loss"], "L_crps": crps}

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.ensembles: EnsembleMetrics | None = None

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        members = self.hparams["num_members"]
        target = batch.u[:, 1:]
        frames = target.shape[1]
        if self.ensembles is None:
            ensembles = EnsembleMetrics(frames, self.simulator.spec, members)
            self.ensembles = ensembles.to(self.device)
        stepper = self.simulator.stepper(temperature=1.0)
        draws = [
            self.simulator.predict(stepper, batch.u[:, 0], frames, batch.parameters)
            for _ in range(members)
        ]
        self.ensembles.update(torch.stack(draws), target)

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        assert self.ensembles is not None
        scores = self.ensembles.compute()
        self.log_dict(
            {f"validation/{self.stage}/{name}": scores[name] for name in VALIDATION_SCORES}
        )
