"""Simulators for other tools: a folder as on Hugging Face, graphs of torch.export and ONNX, rollouts as xarray data sets.

    python -m ups.export RUN FOLDER --to folder     config.json, model.safetensors, README.md: what ups.load reads, and a card
    python -m ups.export RUN FOLDER --to onnx       encode.onnx, step.onnx, decode.onnx
    python -m ups.export RUN FOLDER --to torch      encode.pt2, step.pt2, decode.pt2, for torch.export.load

RUN is what ups.load takes. Graphs take batches of any size, at the simulator's own dt and without correctors: z = encode(u),
z = step(z, nu), u = decode(z).
"""

import argparse
import copy
import hashlib
import io
import json
import logging
import sys
import warnings
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import ups
from ups.card import card
from ups.errors import UpsError
from ups.files import write_bytes
from ups.models.geometry import interpolate
from ups.pretrained import pack
from ups.provenance import git_state, hardware
from ups.rollout import Simulator, load

if TYPE_CHECKING:
    from xarray import Dataset

TOLERANCE = 1e-4  # of a graph's answer, relative to the largest of the simulator's


class Map(nn.Module):
    """One of a simulator's three maps, "encode", "step" or "decode", as a module of its own."""

    def __init__(self, simulator: Simulator, name: str) -> None:
        super().__init__()
        self.simulator, self.name = simulator, name

    def forward(self, *inputs: Tensor) -> Tensor:
        return getattr(self.simulator, self.name)(*inputs)


def to_torch(simulator: Simulator, folder: Path) -> None:
    """Write encode.pt2, step.pt2 and decode.pt2, for ``torch.export.load``; nothing is written that differs from the simulator."""

    def convert(program: Any, names: tuple[str, ...]) -> tuple[bytes, Callable[..., Tensor]]:
        file = io.BytesIO()
        torch.export.save(program, file)
        return file.getvalue(), torch.export.load(io.BytesIO(file.getvalue())).module()

    _write_graphs(simulator, folder, "pt2", convert)


def to_onnx(simulator: Simulator, folder: Path) -> None:
    """Write encode.onnx, step.onnx and decode.onnx; each is run by onnxruntime, and nothing is written that differs from the simulator.

    Raises:
        UpsError: packages are missing, or the model has operations that ONNX hasn't.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ModuleNotFoundError:
        raise UpsError("ONNX needs packages that are not installed; pip install 'ups[onnx]'") from None
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)

    def convert(program: Any, names: tuple[str, ...]) -> tuple[bytes, Callable[..., Tensor]]:
        made: Any = torch.onnx.export(program, (), dynamo=True, input_names=names, output_names=["out"], verbose=False)
        content = made.model_proto.SerializeToString()
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        return content, lambda *inputs: torch.from_numpy(session.run(None, {k: v.numpy() for k, v in zip(names, inputs, strict=True)})[0])

    _write_graphs(simulator, folder, "onnx", convert)


def _write_graphs(simulator: Simulator, folder: Path, suffix: str, convert: Callable[..., tuple[bytes, Callable[..., Tensor]]]) -> None:
    """Trace the three maps for batches of any size, ``convert`` them to a file's content and a way to call it, check and write them."""
    simulator = copy.deepcopy(simulator).cpu().eval().requires_grad_(False)
    simulator.correctors.clear()  # no graph holds them
    files = {}
    for name, inputs in examples(simulator, 2).items():
        path, sizes = Path(folder) / f"{name}.{suffix}", tuple({0: torch.export.Dim("batch")} for _ in inputs)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                program = torch.export.export(Map(simulator, name), tuple(inputs.values()), dynamic_shapes={"inputs": sizes})
                files[path], call = convert(program, tuple(inputs))
        except Exception as error:  # whatever a model does that graphs can't hold
            raise UpsError(f"{path} can't be made: the model does what such a graph can't hold ({type(error).__name__})") from error
        for batch in (1, 3):
            values = examples(simulator, batch)[name].values()
            expected, found = getattr(simulator, name)(*values), call(*values)
            gap = float((found - expected).abs().max() / expected.abs().max())
            if not gap < TOLERANCE:
                raise UpsError(f"{path} would differ from the simulator by {gap:.1e} of its largest value; {TOLERANCE:g} is allowed")
    for path, content in files.items():
        write_bytes(path, content)


def examples(simulator: Simulator, batch: int) -> dict[str, dict[str, Tensor]]:
    """Inputs of the three maps, by name."""
    u = simulator.scale * torch.randn(batch, len(simulator.x), generator=torch.Generator().manual_seed(0))
    nu = torch.full((batch,), simulator.nus[0] if simulator.nus else 1e-3)
    z = simulator.encode(u)
    return {"encode": {"u": u}, "step": {"z": z, "nu": nu}, "decode": {"z": z}}


def to_xarray(
    simulator: Simulator,
    u0: Tensor,
    steps: int,
    *,
    nu: float | Tensor,
    x: Tensor | None = None,
    x_out: Tensor | None = None,
    **how: Any,
) -> "Dataset":
    """Roll out ``u0`` and return the trajectories, t = 0 included, as an xarray data set; ``.to_netcdf(path)`` writes it.

    ``u`` has the dimensions (trajectory, time, x), ``nu`` (trajectory,); the attributes say what made it.
    Arguments as in ``Simulator.rollout``.
    """
    try:
        import xarray
    except ModuleNotFoundError:
        raise UpsError("data sets need a package that is not installed; pip install 'ups[xarray]'") from None
    u = simulator.rollout(u0, steps, nu=nu, x=x, x_out=x_out, **how)
    place = simulator.x if x_out is None else torch.as_tensor(x_out)
    first = torch.as_tensor(u0, dtype=u.dtype, device=u.device).reshape(len(u), -1)
    if x is not None or x_out is not None:
        first = interpolate(first, simulator.x if x is None else x, place, simulator.length)
    now, (commit, dirty) = datetime.now(timezone.utc).isoformat(timespec="seconds"), git_state()
    about = {
        "Conventions": "CF-1.11",
        "title": f"rollouts of {simulator.equation} by {simulator.spec.get('name', 'a simulator')} of UPS",
        "source": f"ups {ups.__version__}, commit {commit or 'unknown'}{' with changes' if dirty else ''}, torch {torch.__version__}",
        "history": f"{now} rollout({', '.join(f'{key}={value}' for key, value in how.items())})",
        "equation": simulator.equation,
        "dt": simulator.dt,
        "model": json.dumps(simulator.spec),
        "weights_sha256": hashlib.sha256(pack(simulator.state_dict())).hexdigest(),  # as in config.json of an exported folder
        "hardware": hardware(),
    }
    one = {"units": "1"}  # everything is dimensionless
    return xarray.Dataset(
        {"u": (("trajectory", "time", "x"), torch.cat((first[:, None], u), 1).cpu().numpy(), {**one, "long_name": "field"})},
        {
            "trajectory": range(len(u)),
            "time": ("time", [simulator.dt * i for i in range(steps + 1)], {**one, "axis": "T", "long_name": "time"}),
            "x": (
                "x",
                place.cpu().numpy(),
                {**one, "axis": "X", "long_name": f"position on a periodic line of length {simulator.length:g}"},
            ),
            "nu": ("trajectory", torch.as_tensor(nu).expand(len(u)).cpu().numpy(), {**one, "long_name": "viscosity, as in PDEBench"}),
        },
        about,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ups.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run directory, a checkpoint file, or the name of a model that comes with UPS")
    parser.add_argument("folder", type=Path, help="where to write; what it holds by the same names is replaced")
    parser.add_argument("--to", choices=("folder", "onnx", "torch"), default="folder")
    said = parser.parse_args()
    try:
        simulator = load(said.run)
        if said.to == "folder":  # with a card, where there is a run to tell of
            simulator.save(said.folder, card(Path(said.run), said.folder.name) if (Path(said.run) / "config.yaml").is_file() else "")
        else:
            {"onnx": to_onnx, "torch": to_torch}[said.to](simulator, said.folder)
    except UpsError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print("written:", *sorted(path.name for path in said.folder.iterdir()), "in", said.folder)


if __name__ == "__main__":
    main()
