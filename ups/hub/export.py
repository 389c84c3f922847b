"""Simulators for other tools: a folder as on Hugging Face, graphs, xarray data sets.

    python -m ups.export RUN FOLDER --to folder     config.json, model.safetensors, README.md:
                                                    what ups.load reads, and a card
    python -m ups.export RUN FOLDER --to onnx       encode.onnx, step.onnx, decode.onnx
    python -m ups.export RUN FOLDER --to torch      encode.pt2, step.pt2, decode.pt2, for
                                                    torch.export.load

RUN is what ups.load takes. Graphs take batches of any size, at the simulator's own dt and without
correctors and noise: z = encode(u), z = step(z, nu), u = decode(z). Of fields on points they are
encode(u, positions, features, mask) and decode(z, positions, features, mask), with any number of
points; the mask is False where a sample with fewer of them is padded.
"""

import argparse
import copy
import hashlib
import io
import json
import logging
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.onnx import ONNXProgram

import ups
from ups.core.errors import UpsError
from ups.core.fields import FieldSpec, PointCloud
from ups.core.gradients import to_tensor
from ups.core.io import write_bytes
from ups.core.optional_packages import import_optional
from ups.core.points import PLACES, Points
from ups.hub.model_card import render_model_card
from ups.runs.provenance import git_state, hardware
from ups.simulation.arguments import validate_fields, validate_places
from ups.simulation.checkpoint import load
from ups.simulation.model_folder import to_safetensors
from ups.simulation.resampling import resampling
from ups.simulation.simulator import Simulator

if TYPE_CHECKING:
    from xarray import Dataset

# the content of a file, and a function that calls the graph in it
Graph = tuple[bytes, Callable[..., Tensor]]
AXES = "xyz"
TOLERANCE = 1e-4  # error of a graph, relative to the simulator's largest value


class ExportWrapper(nn.Module):
    """One of a simulator's three maps, "encode", "step" or "decode", as a module.

    As in rollouts, fields of one channel have no channel axis. One parameter is ``nu`` (B,). After
    fields and tokens on points come the tensors of ``Points``.
    """

    def __init__(self, simulator: Simulator, name: str) -> None:
        super().__init__()
        self.simulator = simulator
        self.name = name

    def forward(self, *inputs: Tensor) -> Tensor:
        spec = self.simulator.spec
        if self.name == "encode":
            u, *places = inputs
            field = u.unsqueeze(-1) if spec.num_channels == 1 else u
            return self.simulator.encode(field, None, _points(places))
        if self.name == "step":
            z, nu = inputs
            return self.simulator.step(z, nu[:, None] if len(spec.parameters) == 1 else nu)
        z, *places = inputs
        u = self.simulator.decode(z, _points(places))
        return u.squeeze(-1) if spec.num_channels == 1 else u


def _points(places: Sequence[Tensor]) -> Points | None:
    """The points of a map's arguments; None on a grid, where there are none."""
    return Points(*places) if places else None


def to_torch(simulator: Simulator, folder: Path) -> None:
    """Write encode.pt2, step.pt2 and decode.pt2, for ``torch.export.load``.

    Nothing is written if a graph differs from the simulator.

    Raises:
        UpsError: a graph can't be made, or differs from the simulator.
    """

    def convert(program: ExportedProgram, names: tuple[str, ...]) -> Graph:
        file = io.BytesIO()
        torch.export.save(program, file)
        return file.getvalue(), torch.export.load(io.BytesIO(file.getvalue())).module()

    _write_graphs(simulator, folder, "pt2", convert)


def to_onnx(simulator: Simulator, folder: Path) -> None:
    """Write encode.onnx, step.onnx and decode.onnx.

    onnxruntime runs each of them, and nothing is written if one differs from the simulator.

    Raises:
        UpsError: packages are missing, the model has operations that ONNX lacks, or a graph
            differs.
    """
    onnxruntime = import_optional("onnxruntime", "ONNX", "onnx")
    import_optional("onnxscript", "ONNX", "onnx")  # torch.onnx.export needs it
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)

    def convert(program: ExportedProgram, names: tuple[str, ...]) -> Graph:
        made = torch.onnx.export(
            program, (), dynamo=True, input_names=names, output_names=["out"], verbose=False
        )
        content = cast(ONNXProgram, made).model_proto.SerializeToString()
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        return content, lambda *inputs: torch.from_numpy(
            session.run(None, {k: v.numpy() for k, v in zip(names, inputs, strict=True)})[0]
        )

    _write_graphs(simulator, folder, "onnx", convert)


def _write_graphs(
    simulator: Simulator,
    folder: Path,
    suffix: str,
    convert: Callable[[ExportedProgram, tuple[str, ...]], Graph],
) -> None:
    """Trace the three maps for any number of samples and points, check them and write them.

    Args:
        simulator: the simulator.
        folder: where to write.
        suffix: suffix of the files.
        convert: converts a traced program, given the names of its arguments.
    """
    simulator = copy.deepcopy(simulator).cpu().eval().requires_grad_(False)
    simulator.correctors.clear()  # graphs include neither correctors nor noise
    files = {}
    for name, inputs in examples(simulator, 2).items():
        path = Path(folder) / f"{name}.{suffix}"
        sizes = _sizes(simulator.spec, inputs)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                program = torch.export.export(
                    ExportWrapper(simulator, name),
                    tuple(inputs.values()),
                    dynamic_shapes={"inputs": sizes},
                )
                files[path], call = convert(program, tuple(inputs))
        except Exception as error:  # any operation of a model that a graph can't hold
            raise UpsError(
                f"{path} can't be made: the model does what such a graph can't hold "
                f"({type(error).__name__})"
            ) from error
        for batch in (1, 3):
            values = examples(simulator, batch)[name].values()
            expected = ExportWrapper(simulator, name)(*values)
            found = call(*values)
            gap = float((found - expected).abs().max() / expected.abs().max())
            if not gap < TOLERANCE:
                raise UpsError(
                    f"{path} would differ from the simulator by {gap:.1e} of its largest value; "
                    f"{TOLERANCE:g} is allowed"
                )
    for path, content in files.items():
        write_bytes(path, content)


def _sizes(spec: FieldSpec, inputs: Mapping[str, Tensor]) -> tuple[dict[int, Any], ...]:
    """The axes of inputs that have any size: that of samples, and on points that of points."""
    batch, points = torch.export.Dim("batch"), torch.export.Dim("points")
    along_points = ("u", *PLACES) if isinstance(spec.domain, PointCloud) else ()
    return tuple({0: batch, 1: points} if name in along_points else {0: batch} for name in inputs)


def examples(simulator: Simulator, batch: int) -> dict[str, dict[str, Tensor]]:
    """Example inputs of the three maps, by name."""
    spec = simulator.spec
    generator = torch.Generator().manual_seed(0)
    places = _places(spec, batch, generator)
    shape = (*places["mask"].shape, spec.num_channels) if places else (batch, *spec.shape)
    u = simulator.mean + simulator.std * torch.randn(shape, generator=generator)
    row = simulator.training_parameters[0] if simulator.training_parameters else [1e-3]
    parameters = torch.tensor([row] * batch, dtype=simulator.mean.dtype)
    z = simulator.encode(u, None, _points(list(places.values())))
    return {
        "encode": {"u": u.squeeze(-1) if spec.num_channels == 1 else u, **places},
        "step": {"z": z, "nu": parameters[:, 0] if len(row) == 1 else parameters},
        "decode": {"z": z, **places},
    }


def _places(spec: FieldSpec, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Random points, of which the last sample has fewer; none on a grid."""
    if not isinstance(spec.domain, PointCloud):
        return {}
    shape = (batch, 60 + batch)
    lower = torch.tensor([first for first, _ in spec.domain.edges])
    share = torch.rand(*shape, spec.domain.num_dims, generator=generator)
    mask = torch.ones(shape, dtype=torch.bool)
    mask[-1, -9:] = False
    features = torch.rand(*shape, len(spec.domain.features), generator=generator)
    values = (lower + share * torch.tensor(spec.domain.extent), features, mask)
    return dict(zip(PLACES, values, strict=True))


def to_xarray(
    simulator: Simulator,
    u0: Tensor,
    steps: int,
    *,
    nu: float | Tensor | None = None,
    x: Tensor | Points | None = None,
    x_out: Tensor | Points | None = None,
    **options: Any,
) -> "Dataset":
    """Roll out ``u0`` and return the trajectories, t = 0 included, as an xarray data set.

    ``.to_netcdf(path)`` writes it. The attributes describe its origin.

    Args:
        simulator: the simulator.
        u0: initial fields (B, *space, C), see ``Simulator.stream``.
        steps: number of steps.
        nu: see ``Simulator.stream``.
        x: see ``Simulator.stream``.
        x_out: see ``Simulator.stream``.
        options: other arguments of ``Simulator.rollout``.

    Returns:
        A data set with a variable (trajectory, time, *space) for each channel, the initial frame
        and then every ``stride``-th, and a coordinate
        (trajectory,) for each parameter. With ``x_out`` in several dimensions, and on points, the
        variables are (trajectory, time, point). On points the positions are (trajectory, point),
        and all is NaN behind the last point of a trajectory; the first frame at ``x_out`` is what
        the model reconstructs.

    Raises:
        UpsError: xarray is not installed.
    """
    xarray = import_optional("xarray", "a data set", "xarray")
    spec = simulator.spec
    fields, _ = spec.add_channel_axis(to_tensor(u0, None, None).detach().to(simulator.mean))
    u = simulator.rollout(fields, steps, nu=nu, x=x, x_out=x_out, **{**options, "grad": False})
    if isinstance(x, Points):
        queries = cast(Points | None, x_out)
        first, dims, coordinates = _on_points(simulator, fields, x, queries)
        mask = (queries or x).mask[:, None, :, None].to(u.device)
        first, u = first.masked_fill(~mask[:, 0], torch.nan), u.masked_fill(~mask, torch.nan)
    else:
        first, dims, coordinates = _on_grid(simulator, fields, x, cast(Tensor | None, x_out))
    values = torch.cat((first[:, None].to(u), u), 1).cpu().numpy()
    one = {"units": "1"}  # everything is dimensionless
    coordinates |= {
        "trajectory": range(len(u)),
        "time": (
            "time",
            decimal_times(simulator.dt, steps + 1)[:: options.get("stride", 1)],
            {**one, "axis": "T", "long_name": "time"},
        ),
    }
    given = options.get("parameters") or dict.fromkeys(spec.parameters, nu)
    for name, value in given.items():
        column = to_tensor(value, None, None).detach().expand(len(u)).cpu().numpy()
        coordinates[name] = ("trajectory", column, {**one, "long_name": "parameter of the data"})
    variables = {
        channel: (
            ("trajectory", "time", *dims),
            values[..., c],
            {**one, "long_name": "field"},
        )
        for c, channel in enumerate(spec.channels)
    }
    return xarray.Dataset(variables, coordinates, _origin(simulator, options))


# of a data set in space: the first frame (B, *space, C), the names of *space, and its coordinates
Space = tuple[Tensor, tuple[str, ...], dict[str, object]]


def _on_grid(simulator: Simulator, fields: Tensor, x: Tensor | None, x_out: Tensor | None) -> Space:
    grid = simulator.spec.grid
    names = AXES[: grid.num_dims]
    places = [
        None if p is None else to_tensor(p, None, None).detach().reshape(-1, len(names))
        for p in (x, x_out)
    ]
    sampling = resampling(grid, *places)
    first = sampling.from_grids(sampling.to_grids(fields))
    queries = places[1]
    axes = [grid.axis(d) for d in range(len(names))] if queries is None else queries.mT
    # values at any points of a plane lie along one axis
    is_scattered = queries is not None and len(names) > 1
    coordinates: dict[str, object] = {
        name: ("point" if is_scattered else name, axis.cpu().numpy(), _position(d, grid.edges[d]))
        for d, (name, axis) in enumerate(zip(names, axes, strict=True))
    }
    return first, ("point",) if is_scattered else tuple(names), coordinates


@torch.no_grad()
def _on_points(simulator: Simulator, fields: Tensor, x: Points, x_out: Points | None) -> Space:
    """At other points than its own the first frame is the model's reconstruction of it."""
    cloud = simulator.spec.point_cloud
    first = fields
    if x_out is not None:
        _, seen, asked = validate_places(x, x_out, cloud, fields)
        fields, _ = validate_fields(fields, simulator.spec, fields, seen)
        first = simulator.decode(simulator.encode(fields, None, seen), asked)
    points = x_out or x
    positions = points.positions.masked_fill(~points.mask[..., None], torch.nan).cpu().numpy()
    coordinates: dict[str, object] = {
        name: (("trajectory", "point"), positions[..., d], _position(d, cloud.edges[d]))
        for d, name in enumerate(AXES[: cloud.num_dims])
    }
    return first, ("point",), coordinates


def _position(d: int, edges: tuple[float, float]) -> dict[str, str]:
    """The attributes of the positions along an axis."""
    low, high = edges
    where = f"position, from {low:g} to {high:g}"
    return {"units": "1", "axis": AXES[d].upper(), "long_name": where}


def decimal_times(dt: float, count: int) -> list[float]:
    """The times 0, dt, 2 dt, ... as somebody would write them.

    A dt read from a file is that of float32, 0.0500000007; a time is looked up as 1.0.
    """
    written = float(str(np.float32(dt)))
    return [float(f"{written * i:.7g}") for i in range(count)]


def _origin(simulator: Simulator, options: Mapping[str, object]) -> dict[str, object]:
    """The attributes of a data set of rollouts."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    commit, dirty = git_state()
    model = simulator.model_config.get("name", "a simulator")
    code = f"{commit or 'unknown'}{' with changes' if dirty else ''}"
    arguments = ", ".join(f"{key}={value}" for key, value in options.items())
    return {
        "Conventions": "CF-1.11",
        "title": f"rollouts of {simulator.equation_name or 'data'} by {model} of UPS",
        "source": f"ups {ups.__version__}, commit {code}, torch {torch.__version__}",
        "history": f"{now} rollout({arguments})",
        "equation": simulator.equation_name or "",
        "dt": simulator.dt,
        "model": json.dumps(simulator.model_config),
        # as in config.json of an exported folder
        "weights_sha256": hashlib.sha256(to_safetensors(simulator.state_dict())).hexdigest(),
        "hardware": hardware(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m ups.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "run", help="a run directory, a checkpoint file, or the name of a model that comes with UPS"
    )
    parser.add_argument(
        "folder", type=Path, help="where to write; what it holds by the same names is replaced"
    )
    parser.add_argument("--to", choices=("folder", "onnx", "torch"), default="folder")
    said = parser.parse_args()
    try:
        simulator = load(said.run)
        if said.to == "folder":  # with a card if it is a run directory
            simulator.save(
                said.folder,
                render_model_card(Path(said.run), said.folder.name)
                if (Path(said.run) / "config.yaml").is_file()
                else "",
            )
        else:
            {"onnx": to_onnx, "torch": to_torch}[said.to](simulator, said.folder)
    except UpsError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print("written:", *sorted(path.name for path in said.folder.iterdir()), "in", said.folder)
