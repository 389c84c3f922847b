"""Trajectories of the first equation, 1D viscous Burgers in PDEBench's setting."""

from typing import Annotated, Any

from ups.core.schema import OneOrMore, PathStr, PositiveFloat, Without
from ups.datamodules.trajectories import TrajectoryDataModule

DEFAULT_NU = 0.001


class BurgersDataModule(TrajectoryDataModule):
    """Trajectories of Burgers' equation.

    The defaults are those of PDEBench's files, kept at every fourth of their points, at the
    smallest viscosity. Early frames, in which shocks form, are drawn more often.

    Args:
        path: PDEBench files to read; None to generate the data.
        nu: the viscosity in PDEBench's meaning, or a list of viscosities; None for that of the
            files, or for ``DEFAULT_NU`` if data are generated.
        start_time_bias: see ``TrajectoryDataModule``.
        options: all other arguments of ``TrajectoryDataModule`` but ``equation``.
    """

    def __init__(
        self,
        path: OneOrMore[PathStr] | None = None,
        nu: OneOrMore[PositiveFloat] | None = None,
        start_time_bias: PositiveFloat = 2.0,
        **options: Annotated[Any, Without(("equation",))],
    ) -> None:
        if nu is None and path is None:
            nu = DEFAULT_NU
        super().__init__(
            equation="burgers", path=path, nu=nu, start_time_bias=start_time_bias, **options
        )
