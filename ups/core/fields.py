"""What a field is: its domain, channels, parameters, time step and statistics.

Arrays are channels-last: (B, *space, C) for one frame, (B, T, *space, C) for trajectories. Whatever
reduces over space asks the ``FieldSpec`` for the axes.
"""

import math
from dataclasses import asdict, dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor

from ups.core.agreement import Box
from ups.core.errors import UpsError
from ups.core.settings import PlainDict

# units of dt and the parameters at the input of networks, unless the spec has others
TIME_UNIT = 0.05
PARAMETER_UNIT = 1e-3


class Boundary(StrEnum):
    """What lies beyond one side of an axis."""

    PERIODIC = "periodic"
    WALL = "wall"
    OPEN = "open"


PERIODIC_AXIS = (Boundary.PERIODIC, Boundary.PERIODIC)


@dataclass(frozen=True)
class Grid:
    """A uniform grid of D axes.

    Args:
        shape: number of points of each axis (D,).
        extent: length of each axis (D,).
        boundary: lower and upper side of each axis; default: periodic.
        origin: position of the first point (D,); default: half a cell, the centers of cells.

    Raises:
        UpsError: the lengths of the arguments differ, or a value is out of its range.
    """

    shape: tuple[int, ...]
    extent: tuple[float, ...]
    boundary: tuple[tuple[Boundary, Boundary], ...] = ()
    origin: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        extent = tuple(float(length) for length in self.extent)
        sides = self.boundary or (PERIODIC_AXIS,) * len(shape)
        if not {len(shape)} == {len(extent), len(sides), len(self.origin or shape)}:
            raise UpsError(f"a grid must have one extent, boundary and origin an axis, got {self}.")
        if not shape or min(shape) < 1:
            raise UpsError(f"a grid's shape must be integers >= 1, got {shape}.")
        if not all(0 < length < math.inf for length in extent):
            raise UpsError(f"a grid's extent must be finite numbers > 0, got {extent}.")
        boundary = tuple((Boundary(lower), Boundary(upper)) for lower, upper in sides)
        for lower, upper in boundary:
            if (lower is Boundary.PERIODIC) != (upper is Boundary.PERIODIC):
                raise UpsError("an axis must be periodic on both sides or on none.")
        half_cells = (length / n / 2 for length, n in zip(extent, shape, strict=True))
        origin = tuple(float(first) for first in self.origin or half_cells)
        # the attributes of a frozen dataclass: plain values of other types are converted
        for name, value in (
            ("shape", shape),
            ("extent", extent),
            ("boundary", boundary),
            ("origin", origin),
        ):
            object.__setattr__(self, name, value)

    @property
    def num_dims(self) -> int:
        return len(self.shape)

    @property
    def num_axes(self) -> int:
        """The number of array axes of a field on the grid."""
        return len(self.shape)

    @property
    def num_points(self) -> int:
        return math.prod(self.shape)

    @property
    def cell_size(self) -> tuple[float, ...]:
        return tuple(length / n for length, n in zip(self.extent, self.shape, strict=True))

    @property
    def is_periodic(self) -> bool:
        """Whether every axis is periodic."""
        return all(sides == PERIODIC_AXIS for sides in self.boundary)

    @property
    def is_periodic_line(self) -> bool:
        return self.num_dims == 1 and self.is_periodic

    @property
    def edges(self) -> tuple[tuple[float, float], ...]:
        """Where each axis begins and ends: the outer edges of its first and last cell (D,)."""
        edges = []
        for first, cell, length in zip(self.origin, self.cell_size, self.extent, strict=True):
            # files have float32 positions: without its rounding, so that 0 is 0
            lower = length * round((first - cell / 2) / length, 6) + 0.0
            edges.append((lower, lower + length))
        return tuple(edges)

    def axis(self, d: int) -> Tensor:
        """The positions (X,) of the points along axis ``d``, float32."""
        steps = torch.arange(self.shape[d], dtype=torch.float64)
        return (self.origin[d] + steps * (self.extent[d] / self.shape[d])).float()

    def positions(self) -> Tensor:
        """The positions (*shape, D) of the points, float32."""
        axes = [self.axis(d) for d in range(self.num_dims)]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)

    def can_coarsen_to(self, num_points: int) -> bool:
        """Whether there is a coarser grid of ``num_points`` points along the first axis."""
        factor, rest = divmod(self.shape[0], num_points)
        return rest == 0 and factor > 0 and all(n % factor == 0 for n in self.shape)

    def coarsened(self, factor: int) -> "Grid":
        """The grid of the same edges whose cells are ``factor`` cells wide.

        Raises:
            UpsError: ``factor`` does not divide the shape.
        """
        if any(n % factor for n in self.shape):
            raise UpsError(f"a grid of {self.shape} points can't be coarsened by {factor}.")
        cells = self.cell_size
        origin = (o + (factor - 1) / 2 * cell for o, cell in zip(self.origin, cells, strict=True))
        shape = tuple(n // factor for n in self.shape)
        return Grid(shape, self.extent, self.boundary, tuple(origin))


@dataclass(frozen=True)
class PointCloud:
    """Points without an order in a box of D dimensions; where they lie, each sample says itself.

    See ``ups.core.points.Points``.

    Args:
        edges: where each axis of the box begins and ends (D,).
        features: the names of what is known of each point besides its position (F,).
        feature_units: a usual size of each feature (F,), by which it is divided before a model gets
            it; default: 1.

    Raises:
        UpsError: an axis does not end behind its beginning, or a unit is out of its range.
    """

    edges: tuple[tuple[float, float], ...]
    features: tuple[str, ...] = ()
    feature_units: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        edges = tuple((float(first), float(last)) for first, last in self.edges)
        object.__setattr__(self, "edges", edges)
        object.__setattr__(self, "features", tuple(self.features))
        units = tuple(float(unit) for unit in self.feature_units or (1.0,) * len(self.features))
        object.__setattr__(self, "feature_units", units)
        if len(units) != len(self.features) or not all(0 < unit < math.inf for unit in units):
            raise UpsError(
                f"a point cloud must have a unit > 0 for each of its features {self.features}, "
                f"got {units}."
            )
        if not edges or not all(-math.inf < first < last < math.inf for first, last in edges):
            raise UpsError(f"the edges of a point cloud must be finite and increase, got {edges}.")

    @property
    def num_dims(self) -> int:
        return len(self.edges)

    @property
    def num_axes(self) -> int:
        """The number of array axes of a field on the points."""
        return 1

    @property
    def extent(self) -> tuple[float, ...]:
        """The length of each axis of the box (D,)."""
        return tuple(last - first for first, last in self.edges)


@dataclass(frozen=True)
class FieldSpec:
    """Describes a field once, for data, model, metrics, report and checkpoint.

    Args:
        domain: where the values lie.
        channels: names of the C channels.
        parameters: names of the P parameters of the equation or the data.
        dt: the time between frames.
        mean: mean of each channel (C,), subtracted before a model gets the field; default: 0.
        std: standard deviation of each channel (C,), by which the rest is divided; default: 1.
        conserves_mean: whether the mean of each channel stays the same. If not, no model keeps it.
        time_unit: a usual time between frames, the unit of dt at the input of networks.
        parameter_units: usual values (P,) of the parameters, their units at the input of networks;
            default: ``PARAMETER_UNIT``.
        is_homogeneous: whether a shifted solution is a solution. If not, models that can't tell
            positions apart get them as inputs.
        largest: largest distance of a value from ``mean`` in the training data, of each channel
            (C,); rollouts of models whose tokens carry values stay within twice as much. Default:
            not known, no bound.

    Raises:
        UpsError: there is no channel, or a value is out of its range.
    """

    domain: Grid | PointCloud
    channels: tuple[str, ...] = ("u",)
    parameters: tuple[str, ...] = ()
    dt: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    conserves_mean: bool = True
    time_unit: float = TIME_UNIT
    parameter_units: tuple[float, ...] = ()
    is_homogeneous: bool = True
    largest: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        object.__setattr__(self, "parameters", tuple(self.parameters))
        object.__setattr__(self, "dt", float(self.dt))
        object.__setattr__(self, "time_unit", float(self.time_unit))
        mean = self.mean or (0.0,) * len(self.channels)
        std = self.std or (1.0,) * len(self.channels)
        object.__setattr__(self, "mean", tuple(float(value) for value in mean))
        object.__setattr__(self, "std", tuple(float(value) for value in std))
        object.__setattr__(self, "largest", tuple(float(value) for value in self.largest))
        units = tuple(float(value) for value in self.parameter_units)
        object.__setattr__(self, "parameter_units", units)
        if units and len(units) != len(self.parameters):
            raise UpsError("a field must have one unit for each parameter.")
        if not all(0 < value < math.inf for value in (self.time_unit, *self.parameter_units)):
            raise UpsError(
                "the units must be finite and > 0, got "
                f"{self.time_unit} and {self.parameter_units}."
            )
        if not self.channels or {len(self.mean), len(self.std)} != {len(self.channels)}:
            raise UpsError("a field must have at least one channel, each with a mean and a std.")
        if self.largest and len(self.largest) != len(self.channels):
            raise UpsError("a field must have one largest value for each channel, or none.")
        if not 0 < self.dt < math.inf:
            raise UpsError(f"dt must be a finite number > 0, got {self.dt}.")
        if not all(map(math.isfinite, self.mean)):
            raise UpsError(f"the means must be finite, got {self.mean}.")
        if not all(0 < value < math.inf for value in self.std):
            raise UpsError(f"the standard deviations must be finite and > 0, got {self.std}.")
        if not all(0 < value < math.inf for value in self.largest):
            raise UpsError(f"the largest values must be finite and > 0, got {self.largest}.")

    @property
    def grid(self) -> Grid:
        """The domain as a grid.

        Raises:
            UpsError: the field lies on points.
        """
        if not isinstance(self.domain, Grid):
            raise UpsError("this needs a field on a grid; the field lies on a point cloud.")
        return self.domain

    @property
    def point_cloud(self) -> PointCloud:
        """The domain as a point cloud.

        Raises:
            UpsError: the field lies on a grid.
        """
        if not isinstance(self.domain, PointCloud):
            raise UpsError("this needs a field on points; the field lies on a grid.")
        return self.domain

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one frame (*space, C) on a grid.

        Raises:
            UpsError: the field lies on points.
        """
        return (*self.grid.shape, self.num_channels)

    @property
    def num_channels(self) -> int:
        return len(self.channels)

    @property
    def space_axes(self) -> tuple[int, ...]:
        """The axes of space in arrays (..., *space, C), counted from the end."""
        return space_axes(self.domain.num_axes)

    def condition(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs of networks at ``parameters`` (B, P): dt (B,) and parameters (B, P),
        scaled so that one unit is ``TIME_UNIT`` and ``PARAMETER_UNIT``.
        """
        dt = self.dt / self.time_unit * TIME_UNIT
        scaled = parameters
        if self.parameter_units:
            # plain numbers: a tensor of them would be copied to the device at every step
            columns = zip(parameters.unbind(-1), self.parameter_units, strict=True)
            scaled = torch.stack([own / (unit / PARAMETER_UNIT) for own, unit in columns], -1)
        return parameters.new_full(parameters.shape[:1], dt), scaled

    def essentials(self) -> dict[str, object]:
        """What data and a model for them must agree in, see ``agreement``.

        Where an axis begins does not matter, nor do the statistics.
        """
        values: dict[str, object] = {
            "channels": self.channels,
            "parameters": self.parameters,
            "dt": self.dt,
        }
        return values | domain_essentials(self.domain)

    def with_domain(self, domain: Grid | PointCloud) -> "FieldSpec":
        return replace(self, domain=domain)

    def add_channel_axis(self, u: Tensor) -> tuple[Tensor, bool]:
        """Give fields the channel axis, which may be left out if there is one channel.

        Args:
            u: fields (B, *space, C) or (*space, C); with one channel (B, *space) or (*space).

        Returns:
            Fields (B, *space, C), and whether ``u`` had a channel axis.
        """
        dims = self.domain.num_axes
        has_channels = self.num_channels > 1 or u.ndim == dims + 2
        u = u if has_channels else u.unsqueeze(-1)
        return (u.unsqueeze(0) if u.ndim == dims + 1 else u), has_channels

    def to_dict(self) -> dict[str, object]:
        """Plain values, from which ``from_dict`` makes the spec again."""
        kind = "grid" if isinstance(self.domain, Grid) else "points"
        values = asdict(self)
        domain = values.pop("domain")
        if kind == "grid":
            domain["boundary"] = [[side.value for side in sides] for sides in domain["boundary"]]
        return {kind: domain, **values}

    @classmethod
    def from_dict(cls, values: PlainDict) -> "FieldSpec":
        """The spec that ``to_dict`` described."""
        rest = {key: value for key, value in values.items() if key not in ("grid", "points")}
        if "grid" in values:
            return cls(Grid(**values["grid"]), **rest)
        return cls(PointCloud(**values["points"]), **rest)


def domain_essentials(domain: Grid | PointCloud) -> dict[str, object]:
    """What two domains must agree in so that fields on them can be compared, see ``agreement``."""
    if isinstance(domain, PointCloud):
        return {"box": Box(domain.edges), "features": domain.features}
    sides = tuple((str(lower), str(upper)) for lower, upper in domain.boundary)
    return {"points": domain.shape, "length": domain.extent, "boundary": sides}


def space_axes(num_axes: int) -> tuple[int, ...]:
    """The ``num_axes`` axes of space in arrays (..., *space, C), counted from the end."""
    return tuple(range(-num_axes - 1, -1))
