"""Graphs of models on points: any number of points, padded, and the same rollout."""

import importlib.util

import pytest
import torch
from helpers.points import PARAMETERS, draw_points, padded, simulator_of, waves
from test_point_memory import MODEL as POINT_MEMORY_UPT
from test_point_upt import MODEL as POINT_UPT

import ups.export as export

pytestmark = pytest.mark.slow  # a trace of each map, and one of a model in many parts


def rolled(encode, step, decode, u0, points, parameters, steps):
    places = (points.positions, points.features, points.mask)
    z, frames = encode(u0, *places), []
    for _ in range(steps):
        z = step(z, parameters)
        frames.append(decode(z, *places))
    return torch.stack(frames, 1)


def assert_rolls_out_like(simulator, maps):
    for num_points in (40, 90):
        points = draw_points(num_points)
        u0 = waves(points)
        expected = simulator.rollout(u0, 3, nu=PARAMETERS[:, 0], x=points)
        more, more_u0 = padded(points, u0)
        found = rolled(*maps, more_u0, more, PARAMETERS[:, 0], 3)
        size = float(expected.abs().max())  # untrained models let fields grow
        assert torch.allclose(found[:, :, :num_points], expected, atol=1e-5 * max(size, 10))


@pytest.mark.parametrize(
    "config",
    [
        POINT_MEMORY_UPT,
        POINT_UPT,
        {"architecture": "interpolated_grid", "num_points": [16, 8]},
    ],
    ids=lambda config: config["architecture"],
)
def test_torch_graphs_on_points_roll_out_like_the_simulator(config, tmp_path):
    simulator = simulator_of(config)
    export.to_torch(simulator, tmp_path)
    maps = [
        torch.export.load(tmp_path / f"{name}.pt2").module()
        for name in ("encode", "step", "decode")
    ]
    assert_rolls_out_like(simulator, maps)


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))),
    reason="not installed: onnx, onnxscript or onnxruntime",
)
def test_onnx_graphs_on_points_roll_out_like_the_simulator(tmp_path):
    import onnxruntime

    simulator = simulator_of(POINT_MEMORY_UPT)
    export.to_onnx(simulator, tmp_path)

    def graph(name):
        session = onnxruntime.InferenceSession(tmp_path / f"{name}.onnx")
        inputs = [i.name for i in session.get_inputs()]
        places = ["positions", "features", "mask"]
        assert inputs == {"encode": ["u", *places], "step": ["z", "nu"]}.get(name, ["z", *places])
        return lambda *values: torch.from_numpy(
            session.run(None, {k: v.numpy() for k, v in zip(inputs, values, strict=True)})[0]
        )

    assert_rolls_out_like(simulator, [graph(name) for name in ("encode", "step", "decode")])
    # onnxruntime sums many points in parallel
    points = draw_points(2000)
    expected = simulator.encode(waves(points), None, points)
    places = (points.positions, points.features, points.mask)
    for _ in range(20):
        assert torch.allclose(graph("encode")(waves(points), *places), expected, atol=1e-4)
