"""Stage 3: the diffusion sampler in one network call."""

import torch
from torch import Tensor

from ups.datamodules.windows import Batch
from ups.errors import UpsError
from ups.modules.residual import ResidualModule
from ups.rollout import Simulator
from ups.sampling import Corrector, heun_step


class ConsistencyModule(ResidualModule):
    """Distils ``simulator.correctors["diffusion"]`` into ``simulator.correctors["consistency"]``; everything else is frozen.

    Consistency distillation (Song et al., ICML 2023, algorithm 2): f(x, sigma), which jumps from anywhere on a path of the sampler to the
    path's end, is drawn towards its own value one step of the frozen sampler further on; with the student itself as target, without an
    average of its own, as in "Improved techniques for training consistency models" (Song and Dhariwal, ICLR 2024). The network begins as
    the sampler's.

    Args:
        steps: jumps that the distilled sampler makes, one network call each.
        levels: noise levels of the frozen sampler's steps.
    """

    stage = "consistency"
    correct = "consistency"

    def __init__(
        self,
        simulator: Simulator,
        *,
        steps: int = 1,
        gradient_steps: int = 3,
        latent_cache: str | None = None,
        levels: int = 16,
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
        self.save_hyperparameters(ignore=["simulator"])
        if "diffusion" not in simulator.correctors:
            raise UpsError("stage consistency distils a diffusion corrector, and the simulator has none; stage diffusion trains one")
        simulator.requires_grad_(False)
        self.teacher: Corrector = simulator.correctors["diffusion"]  # type: ignore[assignment]
        self.corrector = simulator.add_corrector("consistency", {**self.teacher.spec, "sampler": "consistency", "steps": steps})
        self.corrector.load_state_dict(self.teacher.state_dict())
        self.corrector.mean_network.requires_grad_(False)
        self.simulator = simulator

    def trained(self) -> torch.nn.Module:
        return self.corrector.noise_network

    def draw(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, ...]:
        noise = self.noise(batch, generator)
        return torch.randint(self.hparams["levels"], noise.shape[:2], generator=generator, device=self.device), noise

    def loss_terms(self, batch: Batch, *drawn: Tensor) -> dict[str, Tensor]:
        level, noise = (d.flatten(0, 1) for d in drawn)
        with torch.no_grad():
            steps = self.steps(batch)
            about = steps.state, steps.pred, torch.full_like(steps.nu, self.simulator.dt), steps.nu
            mean = self.teacher.mean(*about)
            levels = noise.new_tensor(self.teacher.levels(self.hparams["levels"]))
            high, low = levels[level], levels[level + 1]
            x = self.teacher.residual(steps.pred, steps.target) - mean + high[:, None, None] * noise
        return {"loss": self.distance(self.corrector, self.teacher, x, high, low, (mean, *about))}

    @staticmethod
    def distance(student: Corrector, teacher: Corrector, x: Tensor, high: Tensor, low: Tensor, about: tuple[Tensor, ...]) -> Tensor:
        """Mean squared distance of the student's jump from ``x`` (S, N, free) at level ``high`` (S,), and its jump from where one step of
        the teacher leads, at level ``low``; a jump from level 0 stays where it is. ``about``: what the networks are told.
        """
        with torch.no_grad():
            further = heun_step(lambda x, sigma: teacher.denoise(x, sigma, *about), x, high, low)
            end = student.denoise(further, low.clamp_min(teacher.sigma_min), *about)
            end = torch.where(low[:, None, None] > 0, end, further)
        return (student.denoise(x, high, *about) - end).square().mean()
