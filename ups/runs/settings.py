"""The settings that no other constructor takes, and which keys are bookkeeping.

The rest of the schema are the constructors that a configuration names.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import StringConstraints

from ups.callbacks import (
    EpochSummary,
    InverseLossFrequency,
    LeaderboardWriter,
    ResumeCheckpoint,
)
from ups.core.schema import (
    BOOKKEEPING,
    BOOKKEEPING_EVERYWHERE,
    Argument,
    Bookkeeping,
    Decay,
    NonNegativeFloat,
    OneOrMore,
    PathStr,
    PositiveInt,
    Seed,
    SettingsOf,
    Text,
    Words,
    arguments,
)
from ups.datamodules import TrajectoryDataModule
from ups.datamodules.trajectories import Augmentation
from ups.models import MemoryUPT
from ups.models.denoiser import Denoiser
from ups.modules import ConsistencyModule, DiffusionModule, OperatorModule
from ups.modules.diffusion import CORRECTOR
from ups.simulation.correctors import NETWORK, ResidualCorrector
from ups.simulation.guidance import TTC

FolderName = Annotated[
    str,
    StringConstraints(pattern=r"^[^/\x00]*[^/.\x00][^/\x00]*$"),
    Words("a folder's name without '/'"),
]
Hash = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9a-f]{7,}$"),
    Words("a hash of at least 7 hex digits, in quotes"),
]
Duration = Annotated[
    str, StringConstraints(pattern=r"^[0-9]{2}:[0-9]{2}:[0-9]{2}:[0-9]{2}$"), Words("DD:HH:MM:SS")
]
StageName = Literal["operator", "diffusion", "consistency"]


@dataclass(frozen=True)
class ExpectSettings:
    """What a run must be made by; it does not start with anything else.

    Args:
        commit: the first digits of the commit, with no changes since.
        config_hash: the first digits of the configuration's hash.
        data_hash: the first digits of the test set's hash.
    """

    commit: Hash | None = None
    config_hash: Hash | None = None
    data_hash: Hash | None = None


@dataclass(frozen=True)
class RunSettings:
    """The keys outside of groups, and the groups.

    Args:
        name: the run's folder is ``<output_dir>/<name>``. By default it is the name of the data's
            file or, if the data are generated, of their equation.
        seed: seed of the weights and of the order of the batches; the data have ``data.seed``.
        lambda_inv: weight of both inverse losses. ``loss.lambda_inv_enc`` and
            ``loss.lambda_inv_dec`` set one each.
        init_from: a finished model, with whose weights the operator's training begins. It is a
            run's folder, a checkpoint, a model folder or the name of a model that comes with UPS.
        compile: whether to compile the losses of operator and diffusion with torch.compile, which
            takes about a minute when training begins. They are eager if there is no compiler.
        compile_cache_max_bytes: maximum size in bytes of compiled kernels in the run's folder.
        preflight: whether to rehearse the stages first: memory, disk space, time.
        overwrite: whether to retrain stages that the run's folder holds already.
        output_dir: folder of all runs.
        expect: see below.
    """

    stage: Mapping[str, object]
    loss: Mapping[str, object]
    data: Mapping[str, object]
    model: Mapping[str, object]
    trainer: Mapping[str, object]
    callbacks: Mapping[str, object]
    ttc: Mapping[str, object]
    logger: Annotated[Mapping[str, object], BOOKKEEPING]
    name: Annotated[FolderName, BOOKKEEPING] = "burgers"
    seed: Seed = 0
    lambda_inv: NonNegativeFloat = 1.0
    init_from: PathStr | None = None
    compile: bool = False
    compile_cache_max_bytes: Annotated[NonNegativeFloat, BOOKKEEPING] = 1e9
    preflight: Annotated[bool, BOOKKEEPING] = True
    overwrite: Annotated[bool, BOOKKEEPING] = False
    output_dir: Annotated[PathStr, BOOKKEEPING] = "outputs"
    expect: Annotated[Mapping[str, object], SettingsOf(ExpectSettings), BOOKKEEPING] = field(
        default_factory=dict
    )


@dataclass(frozen=True)
class LossSettings:
    """The operator's losses.

    Args:
        lambda_inv_enc: weight of |D(E(u)) - u|^2 / |u|^2.
        lambda_inv_dec: weight of |E(D(z)) - z|^2 / var(z).
        inverse_loss_frequency: the inverse losses are computed in every n-th batch.
        squared: whether all terms are means of squared relative errors, or of their roots.
        adaptive_inv_dec: whether each sample's L_inv_dec counts as far as the sample is
            reconstructed.
    """

    lambda_inv_enc: NonNegativeFloat = 1.0
    lambda_inv_dec: NonNegativeFloat = 1.0
    inverse_loss_frequency: PositiveInt = 1
    squared: bool = False
    adaptive_inv_dec: bool = False


@dataclass(frozen=True)
class ModelSettings:
    """The keys of every model.

    Args:
        name: the model's name in reports.
        architecture: one of ``ups.models.ARCHITECTURES``, or "package.module.Class".
    """

    name: Text
    architecture: Text


@dataclass(frozen=True)
class TrainerSettings:
    """The keys of Lightning's Trainer that have bounds; its other keys are allowed too.

    Args:
        max_epochs: number of epochs.
        max_time: a limit on one call, data and test included; the same command resumes.
        accelerator: the hardware.
        devices: number of processes, each with a GPU or a share of the CPU; or Lightning's words.
            ``data.batch_size`` is the batch size of each.
        num_nodes: number of machines.
        strategy: Lightning's strategy for several processes.
        precision: auto is bf16-mixed on GPUs that have it, otherwise 32-true.
        accumulate_grad_batches: number of batches in a step.
        gradient_clip_val: largest norm of a gradient.
        log_every_n_steps: number of steps between two log entries.
        check_val_every_n_epoch: number of epochs between two validations.
    """

    max_epochs: PositiveInt = 22
    max_time: Annotated[Duration | None, BOOKKEEPING] = None
    accelerator: Text = "auto"
    devices: OneOrMore[int] | Text = 1
    num_nodes: PositiveInt = 1
    strategy: Text = "auto"
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    accumulate_grad_batches: PositiveInt = 1
    gradient_clip_val: NonNegativeFloat | None = 1.0
    log_every_n_steps: Annotated[PositiveInt, BOOKKEEPING] = 50
    check_val_every_n_epoch: PositiveInt = 1


@dataclass(frozen=True)
class EMASettings:
    """Bounds of Lightning's EMAWeightAveraging.

    Args:
        decay: decay rate of the averaged weights in a step.
        use_buffers: whether buffers are averaged too.
    """

    decay: Decay = 0.99
    use_buffers: bool = False


@dataclass(frozen=True)
class CallbackSettings:
    """The group callbacks: a callback for each key, and ``on_finish``.

    Args:
        on_finish: a shell command, run once when all is over, however it ended.
        epoch_log: see ``ups.callbacks.EpochSummary``.
        finite_loss: see ``ups.callbacks.TerminateOnNaN``.
        learning_rate: Lightning's LearningRateMonitor.
        last: see ``ups.callbacks.ResumeCheckpoint``.
        leaderboard: see ``ups.callbacks.LeaderboardWriter``.
    """

    on_finish: Annotated[Text | None, BOOKKEEPING] = None
    epoch_log: Annotated[Mapping[str, object] | None, BOOKKEEPING] = None
    finite_loss: Annotated[Mapping[str, object] | None, BOOKKEEPING] = None
    learning_rate: Annotated[Mapping[str, object] | None, BOOKKEEPING] = None
    last: Annotated[Mapping[str, object] | None, BOOKKEEPING] = None
    leaderboard: Annotated[Mapping[str, object] | None, BOOKKEEPING] = None


@dataclass(frozen=True)
class LoggerSettings:
    """What the loggers have in common.

    Args:
        save_dir: the folder of their files.
    """

    save_dir: Annotated[PathStr, BOOKKEEPING_EVERYWHERE] = "outputs"


@dataclass(frozen=True)
class StageSettings:
    """The group stage.

    Args:
        name: the stage, all, evaluate or preflight.
        train: the stages to train, in order.
        evaluate: the correctors to test; []: the command only trains.
        operator: module, and what differs from ``trainer``, ``data`` and ``callbacks`` in this
            stage.
        diffusion: likewise.
        consistency: likewise.
    """

    name: Text
    train: list[StageName]
    evaluate: list[Literal["none", "diffusion", "consistency"]]
    operator: Mapping[str, object]
    diffusion: Mapping[str, object]
    consistency: Mapping[str, object]


@dataclass(frozen=True)
class TTCSettings(TTC):
    """The group ttc.

    Args:
        enabled: whether stage=evaluate and stage=all test with test-time conditioning too.
    """

    enabled: bool = True


@dataclass(frozen=True)
class Section:
    """Settings below one key.

    Args:
        key: the dotted key; "" for the root.
        target: the constructor that takes them.
        skip: number of its leading arguments that are not settings.
        without: further arguments that are not settings.
    """

    key: str
    target: Callable[..., object]
    skip: int = 0
    without: tuple[str, ...] = ()

    @property
    def named(self) -> dict[str, Argument]:
        """The settings by name."""
        found = arguments(self.target, self.skip).named
        return {name: value for name, value in found.items() if name not in self.without}

    def full(self, name: str) -> str:
        """The dotted key of the setting ``name``."""
        return f"{self.key}.{name}" if self.key else name


CORRECTOR_KEY = "stage.diffusion.module.corrector"
# the settings of the default configuration; another class by _target_ brings its own
SECTIONS = (
    Section("", RunSettings),
    Section("expect", ExpectSettings),
    Section("loss", LossSettings),
    Section("data", TrajectoryDataModule),
    Section("data.augmentation", Augmentation),
    Section("model", ModelSettings),
    Section("model", MemoryUPT, skip=1),
    Section("trainer", TrainerSettings),
    Section("ttc", TTCSettings),
    Section("stage", StageSettings),
    Section("stage.operator.module", OperatorModule, skip=1),
    Section("stage.diffusion.module", DiffusionModule, skip=1),
    Section(CORRECTOR_KEY, ResidualCorrector, without=CORRECTOR.without),
    Section(f"{CORRECTOR_KEY}.mean_network", Denoiser, without=NETWORK.without),
    Section(f"{CORRECTOR_KEY}.denoiser", Denoiser, without=NETWORK.without),
    Section("stage.consistency.module", ConsistencyModule, skip=1),
    Section("callbacks", CallbackSettings),
    Section("callbacks.ema", EMASettings),
    Section("callbacks.inverse_loss_frequency", InverseLossFrequency, without=("parts",)),
    Section("callbacks.epoch_log", EpochSummary),
    Section("callbacks.last", ResumeCheckpoint),
    Section("callbacks.leaderboard", LeaderboardWriter),
    Section("logger", LoggerSettings),
)


def _bookkeeping(*, everywhere: bool) -> set[str]:
    """The keys with a mark, or the names of arguments whose mark holds for every key."""
    return {
        name if everywhere else section.full(name)
        for section in SECTIONS
        for name, argument in section.named.items()
        if (mark := argument.marker(Bookkeeping)) and mark.everywhere == everywhere
    }


# those of the Trainer's other arguments that watch a training and don't change it
WATCHING = ("profiler", "detect_anomaly")
BOOKKEEPING_KEYS = frozenset(
    _bookkeeping(everywhere=False) | {f"trainer.{name}" for name in WATCHING}
)
_BOOKKEEPING_NAMES = tuple(f".{name}" for name in sorted(_bookkeeping(everywhere=True)))


def is_bookkeeping_key(key: str) -> bool:
    """Whether ``key`` may differ between two calls that continue one run."""
    parts = key.split(".")
    above = {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
    return bool(above & BOOKKEEPING_KEYS) or key.endswith(_BOOKKEEPING_NAMES)
