"""Stage 3: distill the diffusion sampler into one network call."""

from typing import Any

import torch
from torch import Tensor

from ups.core.batch import Batch
from ups.core.errors import UpsError
from ups.core.schema import NonNegativeFloat, PositiveFloat
from ups.modules.corrector import CorrectorModule
from ups.simulation.correctors import ResidualCorrector, heun_sampler
from ups.simulation.simulator import Simulator


class ConsistencyModule(CorrectorModule):
    """Distills the corrector "diffusion" of a simulator into its corrector "consistency".

    Both are in ``simulator.correctors``; everything else is frozen. The student learns the
    consistency function of the sampler's paths (Song et al., "Consistency models", ICML 2023): from
    any point of a path it jumps to the end of the path.

    The paths are short and the network is small. So the end is computed by the sampler itself
    (Luhman and Luhman, "Knowledge distillation in iterative generative models", 2021) and not
    bootstrapped from the student's own next jump. Half of the batches start at the highest level,
    where sampling starts. The network is initialized with the sampler's.

    Args:
        simulator: a simulator with a trained corrector "diffusion".
        lr: see ``BaseModule``.
        weight_decay: see ``BaseModule``.

    The other arguments are those of ``CorrectorModule`` and ``BaseModule``.

    Raises:
        UpsError: the simulator has no corrector "diffusion".
    """

    stage = "consistency"
    correct = "consistency"

    def __init__(
        self,
        simulator: Simulator,
        *,
        lr: PositiveFloat = 2e-3,
        weight_decay: NonNegativeFloat = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(lr=lr, weight_decay=weight_decay, **options)
        if "diffusion" not in simulator.correctors:
            raise UpsError(
                "stage consistency distils a diffusion corrector, and the simulator has none; "
                "stage diffusion trains one"
            )
        simulator.requires_grad_(False)
        self.teacher = simulator.correctors["diffusion"]
        self.corrector = simulator.add_corrector(
            "consistency", {**self.teacher.spec, "sampler": "consistency", "num_steps": 1}
        )
        self.corrector.load_state_dict(self.teacher.state_dict())
        self.corrector.mean_network.requires_grad_(False)
        self.simulator = simulator

    def trainable_module(self) -> torch.nn.Module:
        return self.corrector.denoiser

    def sample_noise(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, ...]:
        noise = self.noise(batch, generator)
        top = torch.rand((), generator=generator, device=self.device) < 0.5
        level = (
            torch.randint(self.teacher.num_steps, (), generator=generator, device=self.device)
            * ~top
        )
        return level.expand(len(batch)), noise  # one level for the whole batch

    # each level takes its own number of steps, and would be compiled on its own
    @torch.compiler.disable
    def compute_losses(self, batch: Batch, *drawn: Tensor) -> dict[str, Tensor]:
        level = int(drawn[0][0])
        noise = drawn[1].flatten(0, 1)
        with torch.no_grad():
            steps = self.steps(batch)
            condition = steps.conditions(self.simulator.spec)
            mean = self.teacher.predict_mean(*condition)
            remainder = self.teacher.residual(steps.pred, steps.target) - mean
        conditions = (mean, *condition)
        loss = distance(self.corrector, self.teacher, remainder, noise, level, conditions)
        return {"loss": loss}


def distance(
    student: ResidualCorrector,
    teacher: ResidualCorrector,
    remainder: Tensor,
    noise: Tensor,
    level: int,
    condition: tuple[Tensor, ...],
) -> Tensor:
    """Mean squared distance between the student's and the teacher's end of a path.

    The path starts from ``remainder`` plus noise of one of the teacher's levels. The student jumps
    to its end; the teacher's sampler integrates to it. At the highest level the path starts from
    noise alone, as in sampling.

    Args:
        student: the consistency corrector.
        teacher: the diffusion corrector.
        remainder: the residual minus its predicted mean (S, N, num_dynamic_channels).
        noise: white noise (S, N, num_dynamic_channels).
        level: index of the noise level in the teacher's schedule.
        condition: the networks' conditions: the mean, state, prediction, dt and parameters.
    """
    levels = teacher.sigma_schedule()[level:]
    x = levels[0] * noise + (remainder if level > 0 else 0)
    with torch.no_grad():
        end = heun_sampler(lambda x, sigma: teacher.denoise(x, sigma, *condition), x, levels)
    jump = student.denoise(x, x.new_full(x.shape[:1], levels[0]), *condition)
    return (jump - end).square().mean()
