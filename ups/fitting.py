"""From an array to a trained model in one call: ``ups.fit``."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from ups import pipeline
from ups.core.errors import UpsError
from ups.core.io import atomic_write
from ups.core.schema import plain
from ups.core.settings import quoted
from ups.datamodules.generate import short_hash
from ups.datamodules.readers.arrays import RESERVED
from ups.datamodules.readers.pdebench import digest
from ups.run import compose_config
from ups.runs.session import restored_session
from ups.simulation.checkpoint import load
from ups.simulation.simulator import Simulator

# keys with a meaning of their own in the file, and arguments of np.savez
TAKEN = ("u", *RESERVED, "file", "allow_pickle")


def fit(
    array: ArrayLike,
    *,
    dt: float,
    length: float | Sequence[float],
    num_dims: int | None = None,
    boundary: str | Sequence[str] = "periodic",
    channels: Sequence[str] | None = None,
    parameters: Mapping[str, ArrayLike] | None = None,
    name: str | None = None,
    output_dir: str | Path = "outputs",
    init_from: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> Simulator:
    """Train a model on trajectories in one, two or three dimensions, and test it.

    It is ``python -m ups.run stage=operator data=own``: eight tenths of the trajectories are for
    training, a tenth each for validation and for the test; no equation is assumed. The run's folder
    ``output_dir/name`` holds the report, as always, and the same call again resumes, or returns
    what is done.

    Args:
        array: fields (N, T, *space) or (N, T, *space, C): trajectories, frames, points of one to
            three axes, channels.
        dt: the time between frames.
        length: the length of each axis, or one for all: one cell more than from its first to its
            last point.
        num_dims: number of axes of space; None if the shape or ``length`` says it.
        boundary: "periodic", "wall" or "open", for all axes or one for each.
        channels: names of the channels; None for u, u1, ...
        parameters: positive numbers (N,) by name, one for each trajectory.
        name: the run's folder; None for one that the array names, fit-1a2b3c4d.
        output_dir: the folder of all runs.
        init_from: a finished model of the same kind of data, whose weights training begins with.
        overrides: further settings, as on the command line: ``["trainer.max_epochs=5"]``.

    Returns:
        The trained simulator.

    Raises:
        UpsError: the array or a setting can't be used.
    """
    path = _saved(array, parameters or {}, Path(output_dir) / "data", name or "fit")
    name = name or path.stem
    own = [
        "data=own",
        f"data.path={quoted(path)}",
        f"data.dt={dt}",
        f"data.length={_listed(length)}",
        f"data.num_dims={'null' if num_dims is None else num_dims}",
        f"data.boundary={_listed(boundary)}",
        f"data.channels={'null' if channels is None else _listed(channels)}",
        f"name={quoted(name)}",
        f"output_dir={quoted(output_dir)}",
        f"init_from={'null' if init_from is None else quoted(init_from)}",
    ]
    cfg = compose_config([*own, *overrides], "`overrides` must be settings of a run")
    with restored_session():
        pipeline.run(cfg, overrides)
        return load(Path(output_dir) / name)


def _saved(array: ArrayLike, parameters: Mapping[str, ArrayLike], folder: Path, name: str) -> Path:
    """Write fields and parameters to a file that is named by their content.

    Raises:
        UpsError: there are no numbers, or a parameter has another shape, or a name with another
            meaning.
    """
    try:
        u = np.asarray(array)
    except ValueError:
        raise UpsError("`array` must be trajectories of one shape.") from None
    if u.dtype.kind not in "fiu":
        raise UpsError(
            f"`array` must be an array of real numbers, got {u.dtype}; for a file there is "
            "python -m ups.run data=own data.path=..."
        )
    columns = {key: np.asarray(values) for key, values in parameters.items()}
    for key, values in columns.items():
        if key in TAKEN or values.shape != u.shape[:1]:
            raise UpsError(
                f"`parameters` must be arrays ({len(u)},), one number for each trajectory, under "
                f"names other than {', '.join(TAKEN)}; got {key!r} of shape {values.shape}."
            )
    folder.mkdir(parents=True, exist_ok=True)
    content = [digest([np.ascontiguousarray(each)[..., None]]) for each in (u, *columns.values())]
    identity = short_hash({"arrays": content, "names": list(columns)})
    path = folder / f"{name}-{identity}.npz"
    if not path.exists():
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **{"u": u, **columns})  # type: ignore[arg-type]
    return path


def _listed(values: object) -> str:
    """A value, or a list of values, as Hydra's overrides take them."""
    plain_values = plain(values)
    if not isinstance(plain_values, list):
        return quoted(plain_values) if isinstance(plain_values, str) else str(plain_values)
    return f"[{','.join(map(_listed, plain_values))}]"
