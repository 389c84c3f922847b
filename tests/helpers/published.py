"""Small files to the public descriptions of published data sets; most values say their indices."""

import h5py
import numpy as np

T, X, Y = 5, 16, 18
SIZES = (16, 18, 20)


def numbered(*shape, first=0):
    """An array whose every value is different, and exact in float32."""
    return (first + np.arange(np.prod(shape)).reshape(shape)).astype(np.float32)


def centers(points, cell, offset=0.0):
    return (offset + (np.arange(points) + 0.5) * cell).astype(np.float32)


def pdebench_file(
    path,
    trajectories=8,
    frames=21,
    points=64,
    *,
    names=("tensor", "x-coordinate", "t-coordinate"),
    t_extra=1,
    dtype=np.float32,
):
    """A file of PDEBench's in one dimension, of random fields; returns its path."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file[names[0]] = rng.normal(size=(trajectories, frames, points)).astype(dtype)
        file[names[1]] = (np.arange(points, dtype=np.float32) + 0.5) / points
        file[names[2]] = np.arange(frames + t_extra, dtype=np.float32) * np.float32(0.01)
    return path


def write_well(path, trajectories, first=0, **changes):
    """A file of The Well in two dimensions; returns its channels (N, T, X, Y, C)."""
    shape = (trajectories, T, X, Y)
    density = numbered(*shape, first=first)
    forcing = numbered(trajectories, X, Y, first=first) + 0.5
    height = numbered(X) + 0.25
    velocity = np.stack([-density, density + 1], -1)
    stress = np.stack([np.stack([density * i + j for j in (1, 2)], -1) for i in (2, 3)], -2)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs["dataset_name"] = "made_up"
        file.attrs["grid_type"] = changes.get("grid_type", "cartesian")
        file.attrs["n_spatial_dims"] = 2
        file.attrs["n_trajectories"] = trajectories
        file.attrs["simulation_parameters"] = ["alpha", "kappa"]
        file.attrs["kappa"] = changes.get("kappa", 7.0)
        dimensions = file.create_group("dimensions")
        dimensions.attrs["spatial_dims"] = ["x", "y"]
        for name, values in {
            "time": changes.get("time", np.arange(T) * np.float32(0.2)),
            "x": centers(X, 0.5),
            "y": np.tile(centers(Y, 2.0, offset=-1), (trajectories, 1)),  # of each trajectory
            **changes.get("dimensions", {}),
        }.items():
            dimensions[name] = values
            dimensions[name].attrs["sample_varying"] = np.ndim(values) == 2
        conditions = file.create_group("boundary_conditions")
        for name, (axis, kind, places) in {
            "x_periodic": ("x", "PERIODIC", [0, -1]),
            "y_wall": ("y", changes.get("kind", "wall"), [0]),
            "y_open": ("y", "open", [-1]),
        }.items():
            mask = np.zeros({"x": X, "y": Y}[axis], bool)
            mask[places] = True
            condition = conditions.create_group(name)
            condition.attrs["associated_dims"] = [axis]
            condition.attrs["bc_type"] = kind
            condition["mask"] = mask
        scalars = file.create_group("scalars")
        add(scalars, "alpha", numbered(trajectories, first=first + 1), sample=True)
        add(scalars, "beta", np.float32(changes.get("beta", 3.0)))
        add(scalars, "inflow", numbered(T), time=True)
        add(scalars, "gravity", np.float32(-9.81))
        scalars.attrs["field_names"] = ["alpha", "beta", "inflow", "gravity"]
        fields = [
            {"density": density, "forcing": forcing, "height": height},
            {"velocity": velocity},
            {"stress": stress},
        ]
        fields[0].update(changes.get("fields", {}))
        for order, arrays in enumerate(fields):
            group = file.create_group(f"t{order}_fields")
            for name, array in arrays.items():
                add(
                    group, name, array,
                    sample=name != "height", time=name not in ("forcing", "height"),
                    dims=[True, name != "height"],
                )  # fmt: skip
            group.attrs["field_names"] = list(arrays)
    still = np.broadcast_to(forcing[:, None], shape)
    column = np.broadcast_to(height[:, None], shape)
    parts = [density, still, column, velocity, stress.reshape(*shape, 4)]
    return np.concatenate([part.reshape(*shape, -1) for part in parts], -1)


def add(group, name, values, *, sample=False, time=False, dims=None):
    group[name] = values
    group[name].attrs["sample_varying"] = sample
    group[name].attrs["time_varying"] = time
    if dims is not None:
        group[name].attrs["dim_varying"] = dims


def write_flow(path, num_dims, trajectories=12, first=0, times=T + 1):
    """PDEBench's compressible flow; returns its channels."""
    shape = (trajectories, T, *SIZES[:num_dims])
    names = ["density", "pressure", "Vx", "Vy", "Vz"][: num_dims + 2]
    arrays = [numbered(*shape, first=first) * (-1) ** c + c for c in range(len(names))]
    with h5py.File(path, "w") as file:
        file.update(dict(zip(names, arrays, strict=True)))
        for k, axis in enumerate("xyz"[:num_dims]):
            file[f"{axis}-coordinate"] = centers(SIZES[k], 0.5 * (k + 1))
        file["t-coordinate"] = (np.arange(times) * 0.05).astype(np.float32)
        file.attrs["eta"], file.attrs["zeta"] = 0.01, 1e-8
        if num_dims > 1:
            file.attrs["M"] = 0.1
    return np.stack(arrays, -1)


def write_groups(path, num_dims, channels, trajectories=12):
    """PDEBench's diffusion-reaction, shallow water and diffusion-sorption; returns the fields."""
    fields = numbered(trajectories, T, *SIZES[:num_dims], channels)
    with h5py.File(path, "w") as file:
        for i, values in enumerate(fields):
            group = file.create_group(f"{i:04d}")
            group["data"] = values
            for k, axis in enumerate("xyz"[:num_dims]):
                group[f"grid/{axis}"] = centers(SIZES[k], 0.5, offset=-1)
            group["grid/t"] = np.arange(T) * np.float32(0.01)
            group.attrs["config"] = "sim: {seed: 1}"
    return fields


def write_incompressible(path, trajectories=4, first=0, config="{domain_size: [1, 2], NU: 0.01}"):
    """PDEBench's incompressible flow; returns its channels."""
    shape = (trajectories, T, X, Y)
    velocity = numbered(*shape, 2, first=first)
    particles = -numbered(*shape, 1, first=first)
    force = numbered(trajectories, X, Y, 2, first=first) + 0.5
    with h5py.File(path, "w") as file:
        file["velocity"], file["particles"], file["force"] = velocity, particles, force
        file["t"] = np.tile(np.arange(T) * np.float32(0.005), (trajectories, 1))
        if config:
            file.attrs["config"] = config
    still = np.broadcast_to(force[:, None], (*shape, 2))
    return np.concatenate([velocity, particles, still], -1)


def write_arena(path, split, trajectories, first=0, **changes):
    """A split of PDEArena's Navier-Stokes data; returns its channels."""
    shape = (trajectories, T, X, Y)
    arrays = {"u": numbered(*shape, first=first)}
    arrays |= {"vx": -arrays["u"], "vy": arrays["u"] + 1}
    with h5py.File(path, "a") as file:
        group = file.create_group(split)
        for name, values in {
            **arrays,
            "t": np.tile(18 + np.arange(T) * 1.5, (trajectories, 1)),
            "x": np.tile(np.linspace(0, 32, X), (trajectories, 1)),
            "y": np.tile(np.linspace(0, 36, Y), (trajectories, 1)),
            "dt": np.full(trajectories, 1.5),
            "dx": np.full(trajectories, 32 / X),
            "dy": np.full(trajectories, 36 / Y),
            "buo_y": 0.2 + numbered(trajectories, first=first),
            **changes,
        }.items():
            group[name] = values
    return np.stack(list(arrays.values()), -1)


def write_line(path, split, trajectories, **changes):
    """A split of PDEArena's Kuramoto-Sivashinsky data; returns the fields."""
    u = numbered(trajectories, T, X)
    with h5py.File(path, "a") as file:
        group = file.create_group(split)
        for name, values in {
            f"pde_{T}-{X}": u,
            "x": np.tile(np.arange(X) * 0.25, (trajectories, 1)),
            "t": np.tile(np.arange(T) * 0.2, (trajectories, 1)),
            "dt": np.full(trajectories, 0.2),
            "dx": np.full(trajectories, 0.25),
            **changes,
        }.items():
            group[name] = values
    return u[..., None]
