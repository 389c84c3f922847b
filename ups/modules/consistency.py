"""Stage 3: the diffusion sampler in one network call."""

import torch
from torch import Tensor

from ups.datamodules.windows import Batch
from ups.errors import UpsError
from ups.modules.residual import ResidualModule
from ups.rollout import Simulator
from ups.sampling import Corrector, heun


class ConsistencyModule(ResidualModule):
    """Distils ``simulator.correctors["diffusion"]`` into ``simulator.correctors["consistency"]``; everything else is frozen.

    The student learns the consistency function of the sampler's paths (Song et al., "Consistency models", ICML 2023): from anywhere on a
    path it jumps to the path's end. The paths are short and their network small, so the end is computed, by the sampler itself, and not
    taken from the student's own next jump (Luhman and Luhman, "Knowledge distillation in iterative generative models", 2021): nothing
    is bootstrapped. Half of the batches begin at the highest level, where sampling does. The network begins as the sampler's.
    """

    stage = "consistency"
    correct = "consistency"

    def __init__(
        self,
        simulator: Simulator,
        *,
        gradient_steps: int = 3,
        latent_cache: str | None = None,
        latent_cache_limit: float = 4e9,
        optimizer: str = "muon",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.99),
        momentum: float = 0.95,
        warmup: float = 0.03,
        final_lr: float = 0.0,
        threads: int = 1,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["simulator"], logger=False)
        if "diffusion" not in simulator.correctors:
            raise UpsError("stage consistency distils a diffusion corrector, and the simulator has none; stage diffusion trains one")
        simulator.requires_grad_(False)
        self.teacher: Corrector = simulator.correctors["diffusion"]  # type: ignore[assignment]
        self.corrector = simulator.add_corrector("consistency", {**self.teacher.spec, "sampler": "consistency", "steps": 1})
        self.corrector.load_state_dict(self.teacher.state_dict())
        self.corrector.mean_network.requires_grad_(False)
        self.simulator = simulator

    def trained(self) -> torch.nn.Module:
        return self.corrector.noise_network

    def draw(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, ...]:
        noise = self.noise(batch, generator)
        top = torch.rand((), generator=generator, device=self.device) < 0.5
        level = torch.randint(self.teacher.steps, (), generator=generator, device=self.device) * ~top
        return level.expand(len(batch)), noise  # one level for the whole batch

    def loss_terms(self, batch: Batch, *drawn: Tensor) -> dict[str, Tensor]:
        level, noise = int(drawn[0][0]), drawn[1].flatten(0, 1)
        with torch.no_grad():
            steps = self.steps(batch)
            about = steps.state, steps.pred, torch.full_like(steps.nu, self.simulator.dt), steps.nu
            mean = self.teacher.mean(*about)
            rest = self.teacher.residual(steps.pred, steps.target) - mean
        return {"loss": distance(self.corrector, self.teacher, rest, noise, level, (mean, *about))}


def distance(student: Corrector, teacher: Corrector, rest: Tensor, noise: Tensor, level: int, about: tuple[Tensor, ...]) -> Tensor:
    """Mean squared distance of two ends of a path from ``rest`` (S, N, free) under ``noise`` of the teacher's ``level``-th level: where the
    student jumps to, and where the teacher's sampler leads. From the highest level paths begin as in sampling, at noise alone. ``about``:
    what the networks are told.
    """
    levels = teacher.levels()[level:]
    x = levels[0] * noise + (rest if level > 0 else 0)
    with torch.no_grad():
        end = heun(lambda x, sigma: teacher.denoise(x, sigma, *about), x, levels)
    return (student.denoise(x, x.new_full(x.shape[:1], levels[0]), *about) - end).square().mean()
