"""Write a file as PDEBench publishes them, by our solver.

    python benchmarks/pdebench_file.py 1D_Burgers_Sols_Nu0.001.hdf5 [TRAJECTORIES]

Its initial conditions, 1024 points, 201 frames and float32 coordinates, of which the times have one
entry more than there are frames. `data=pdebench data.path=...` reads it as the original. The
viscosity is that of the file's name; the default is 228 trajectories, 128 of them for a test:

    python -m ups.run stage=evaluate name=RUN data=pdebench data.path=... data.num_train=80 \\
        data.num_validation=20 data.num_test=128
"""

import sys
from pathlib import Path

import h5py
import numpy as np

from ups.core.fields import Grid
from ups.core.io import atomic_write
from ups.datamodules.generate import solve_all
from ups.datamodules.readers.parameters import parameter_in_name
from ups.physics import burgers

POINTS, FRAMES, DT = 1024, 201, 0.01
SEED = 2022  # of none of this project's own data sets


def main(path: Path, trajectories: int) -> None:
    nu = parameter_in_name(path.name, "nu")
    if nu is None:
        raise SystemExit(f"the name of {path} must hold the viscosity, as '..._Nu0.001.hdf5' does")
    grid = Grid((POINTS,), (1.0,))
    u0 = burgers.EQUATION.initial_conditions["published"](trajectories, grid, SEED)
    times = np.arange(FRAMES + 1) * DT
    u = solve_all(burgers.EQUATION, [u0], times[:FRAMES].tolist(), [nu], grid, keep=1)
    with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
        file["tensor"] = u[..., 0].numpy()
        file["x-coordinate"] = grid.axis(0).numpy()
        file["t-coordinate"] = times.astype(np.float32)
        file.attrs["Nu"] = nu
    print("written:", path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else 228)
