"""UPT's transient flows: a folder for each simulation.

A folder holds `x.th` and `y.th` (P,), and the frames `00000000_mesh.th`, `00000001_mesh.th` ...
(3, P): the velocity's components and the pressure, saved by `torch.save`. `U_init.th`, the speed of
the inflow, is a parameter. No file says the time between frames, nor the splits.

Source: https://github.com/ml-jku/UPT, of Alkin et al. 2024, https://arxiv.org/abs/2402.12365.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence, Sized
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from ups.core.errors import UpsError
from ups.core.io import unreadable

FRAME = re.compile(r"\d+_mesh\.th")
PARAMETER = "U_init"


class TransientFlowFolders:
    """Reads UPT's transient flows.

    Args:
        path: the folder that holds the folders of the simulations.
        temporal_downsampling: keep every so many-th frame.
        spatial_downsampling: keep every so many-th point.
        dt: the time between the frames of the files.

    Raises:
        UpsError: ``dt`` is not given, there is no simulation, they have different numbers of
            frames, or a frame is missing.
    """

    channels: tuple[str, ...] = ("u", "v", "p")
    features: tuple[str, ...] = ()
    splits: Mapping[str, Sequence[int]] | None = None

    def __init__(
        self,
        path: Path,
        temporal_downsampling: int = 1,
        spatial_downsampling: int = 1,
        dt: float | None = None,
    ) -> None:
        self.path = Path(path)
        if dt is None:
            raise UpsError(f"`data.dt` must be given: {path} doesn't say the time between frames.")
        self._every_point = spatial_downsampling
        found = [
            (folder, sorted(frames, key=by_numbers))
            for folder in subfolders(self.path)
            if (frames := [f for f in folder.iterdir() if FRAME.fullmatch(f.name)])
        ]
        if not found:
            raise UpsError(
                f"{path} must hold a folder for each simulation, with x.th, y.th and "
                "00000000_mesh.th ..., as UPT's transient flows do."
            )
        check_equal_lengths(found)
        check_numbering(found)
        self._frames = [(folder, frames[::temporal_downsampling]) for folder, frames in found]
        self.trajectories = len(self._frames)
        self.frames = len(self._frames[0][1])
        self.dt = dt * temporal_downsampling
        self.parameters = self._parameters()

    def points(self, trajectory: int) -> tuple[np.ndarray, np.ndarray]:
        """Read the positions (P, 2) of a simulation's points, and no features (P, 0)."""
        folder, _ = self._frames[trajectory]
        x, y = (load(folder / name, 1) for name in ("x.th", "y.th"))
        if x.shape != y.shape:
            raise UpsError(f"{folder}: x.th and y.th must agree, got {x.shape} and {y.shape}.")
        positions = np.stack([x, y], 1)[:: self._every_point]
        return positions, np.empty((len(positions), 0), np.float32)

    def read(
        self, trajectories: Sequence[int], start: int = 0, frames: int | None = None
    ) -> list[np.ndarray]:
        """Read ``frames`` frames from ``start`` on of B simulations.

        Returns:
            B arrays (frames, P, 3), float32; the number of points P differs between them.
        """
        end = None if frames is None else start + frames
        return [self._read(*self._frames[i], slice(start, end)) for i in trajectories]

    def _read(self, folder: Path, files: Sequence[Path], frames: slice) -> np.ndarray:
        fields = [load(file, 2) for file in files[frames]]
        shape = (len(self.channels), len(load(folder / "x.th", 1)))
        for file, field in zip(files[frames], fields, strict=True):
            if field.shape != shape:
                raise UpsError(f"{file} must be {shape}, as x.th says, got {field.shape}.")
        return np.stack([field.T[:: self._every_point] for field in fields])

    def _parameters(self) -> Mapping[str, np.ndarray]:
        files = [folder / f"{PARAMETER}.th" for folder, _ in self._frames]
        missing = [file for file in files if not file.exists()]
        if missing == files:
            return {}
        if missing:
            raise UpsError(f"{missing[0]} must be there, as it is in other folders of {self.path}.")
        values = np.array([float(load(file, 0)) for file in files])
        if not (np.isfinite(values) & (values > 0)).all():
            raise UpsError(f"{PARAMETER}.th must be a number > 0 in all folders of {self.path}.")
        return {PARAMETER: values}


def subfolders(path: Path) -> list[Path]:
    """The folders in a folder, in the order of the numbers in their names.

    Raises:
        UpsError: ``path`` is no folder.
    """
    if not path.is_dir():
        raise UpsError(f"`data.path` must be a folder: there is no folder {path}.")
    return sorted((f for f in path.iterdir() if f.is_dir()), key=by_numbers)


def by_numbers(path: Path) -> list[tuple[bool, int, str]]:
    """Sorts case_2 before case_10."""
    parts = re.split(r"(\d+)", path.name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def check_equal_lengths(trajectories: Sequence[tuple[Path, Sized]]) -> None:
    """Check that all trajectories, each with its path, have the number of frames of the first."""
    first, frames = trajectories[0]
    for path, others in trajectories:
        if len(others) != len(frames):
            raise UpsError(
                f"trajectories must have equally many frames: {path} has {len(others)}, {first} "
                f"has {len(frames)}."
            )


def check_numbering(trajectories: Sequence[tuple[Path, Sequence[Path]]]) -> None:
    """Check that no frame is missing: the numbers in the names of a trajectory's files are evenly
    spaced, as 0, 10, 20 ..., and have the same step in all trajectories.

    What has no numbers can't be checked, nor what has them at no usual step, as the counts of a
    solver's own steps.

    Args:
        trajectories: the folder of each trajectory, with its files in order.
    """
    pattern = number_pattern([file.stem for _, files in trajectories for file in files])
    first: tuple[Path, Decimal] | None = None
    for folder, files in trajectories:
        step = number_step(folder, files, pattern)
        if step is None:
            continue
        first = first or (folder, step)
        if abs(step - first[1]) > rounding(step):
            raise UpsError(
                f"the numbers of the frames must have the same step in all trajectories: in "
                f"{folder} it is {step}, in {first[0]} {first[1]}."
            )


def number_pattern(names: Sequence[str]) -> re.Pattern[str]:
    """What the numbers of frames look like in the names of all files."""
    found = [re.search(r"(\d+)\.\d+\D*$", name) for name in names]
    # flow_0.9 and flow_1.0 are at decimal times, flow2.9 and flow2.10 are frames of flow2
    is_decimal = all(found) and len({number[1] for number in found if number}) > 1
    return re.compile(r"\d+\.\d+" if is_decimal else r"\d+")


def number_step(folder: Path, files: Sequence[Path], pattern: re.Pattern[str]) -> Decimal | None:
    """The usual step of the numbers in the names of a trajectory's files; None if there is none.

    Of several numbers in a name the last one counts that is not the same in all names.

    Raises:
        UpsError: a file has no number, numbers do not increase, or one step among equal ones is
            another.
    """
    found = [(file, [Decimal(number) for number in pattern.findall(file.stem)]) for file in files]
    bare = [file for file, numbers in found if not numbers]
    if bare and len(bare) < len(files):
        raise UpsError(f"{bare[0]} must have a number in its name, as the other frames have.")
    place = _place_of_frames([numbers for _, numbers in found])
    numbered = [(file, numbers[place]) for file, numbers in found if numbers]
    steps = [after - before for (_, before), (_, after) in pairwise(numbered)]
    if not any(steps):
        return None
    usual, _ = Counter(map(abs, steps)).most_common(1)[0]
    is_odd = [step <= 0 or abs(step - usual) > rounding(usual) for step in steps]
    if min(steps) > 0 and 2 * sum(is_odd) > len(steps):
        return None
    if any(is_odd):
        place = is_odd.index(True)
        (before, _), (after, _) = numbered[place : place + 2]
        hint = "; write decimal numbers with as many digits each" if min(steps) <= 0 else ""
        raise UpsError(
            f"{folder}: the numbers of the frames must be evenly spaced, but from {before.name} to "
            f"{after.name} is a step of {steps[place]}, not {usual}{hint}."
        )
    return usual


def _place_of_frames(names: Sequence[Sequence[Decimal]]) -> int:
    """Which of the numbers in each name is that of the frame, counted from the end."""
    fewest = min(map(len, names))
    varying = (k for k in range(-1, -fewest - 1, -1) if len({numbers[k] for numbers in names}) > 1)
    return next(varying, -1)


def rounding(step: Decimal) -> Decimal:
    """How far steps of rounded numbers may differ: by one in their last digit, if they are many."""
    unit = Decimal(1).scaleb(int(step.as_tuple().exponent))
    return unit if step > 4 * unit else Decimal(0)


def load(path: Path, dims: int) -> np.ndarray:
    """Read a tensor of so many dimensions, float32; files may hold halves."""
    try:
        tensor = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise unreadable(path, error, "a tensor that torch saved") from None
    if not isinstance(tensor, torch.Tensor) or tensor.ndim != dims or tensor.is_complex():
        raise UpsError(f"{path} must hold a tensor of {dims} dimensions of real numbers.")
    return tensor.float().numpy()
