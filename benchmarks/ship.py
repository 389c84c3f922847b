"""Make a model that comes with UPS from a run.

python benchmarks/ship.py NAME [RUN]

NAME: burgers-small, from a run of benchmarks/stages.py, or navier-stokes-small, from the run of
``python -m ups.run stage=operator data=navier_stokes_1e-5``. Writes ups/hub/shipped/NAME.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import ups
from ups.hub.model_card import load_test_results, render_model_card
from ups.simulation.model_folder import SHIPPED


class Shipped(NamedTuple):
    """A model that comes with UPS: the run that it is made from, and notes of its card."""

    run: str
    notes: str


MODELS = {
    "burgers-small": Shipped(
        "outputs/stages/all-0",
        """
- The command above is that of the run's last call, which tested it. The weights were trained by \
the same command at commit a145740, in
  21 min 36 s on the same machine; what `stage=all` trains at a later commit may differ.
- The correctors were trained with temperature 0.85, which only the choice of the epoch sees, and \
set to 0.25, since then the default,
  before the test.
- This is the first of three seeds, not the best. docs/stages.md has mean and standard deviation \
over all three, and an operator trained
  as long as all stages together: without test-time conditioning it is no less accurate than \
`latent + diffusion`, with it more accurate
  than any row here.
- One test trajectory of 128, an initial condition that a smooth window cuts off, carries 39 % of \
the operator's squared error.
- In 1D on a CPU the numerical solver is the faster choice: its times above are those of eager \
PyTorch. Compiled, the same scheme
  takes 0.19 ms a trajectory at 256 points (`python benchmarks/solver.py`).
- The figures above are those of the model at rest, on fields of which most have no mean. \
`rollout` now sees fields from a frame that moves
  with them. On PDEBench's published initial conditions, which have a mean, the model's error is \
0.0069 in that way, and 0.0351 at rest
  (`python benchmarks/shifts.py`).
""",
    ),
    "navier-stokes-small": Shipped(
        "outputs/navier_stokes",
        """
- Not searched and not the best of several seeds: it is what the command above trains.
- The data were solved on 128 x 128 points. Solved on 256 x 256, the same fields differ by 0.02 \
(relative L2 over frames 11 to 20
  together), which the model can't know.
- The solver's times above are those of one call a frame, as a model is called. All frames in one \
call take it less: see the notebook
  `07_flow_in_two_dimensions`.
""",
    ),
}


def main(name: str, run: Path) -> None:
    sim = ups.load(run)
    if not sim.training_parameters:  # the run is older than the simulator's memory of its data
        sim.training_parameters = [[load_test_results(run).dataset["nu"]]]
    card = render_model_card(run, name, licence="MIT", notes=MODELS[name].notes)
    sim.save(SHIPPED / name, card)
    print("written:", SHIPPED / name)


if __name__ == "__main__":
    if sys.argv[1:2] not in [[name] for name in MODELS]:
        sys.exit(__doc__)
    main(sys.argv[1], Path(sys.argv[2] if sys.argv[2:] else MODELS[sys.argv[1]].run))
