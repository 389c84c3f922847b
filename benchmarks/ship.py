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
- This is the first of three seeds, not the best. docs/stages.md has mean and standard deviation \
over all three, and an operator
  trained as long as all stages together, which is more accurate than `latent + diffusion`.
- Diffusion and consistency don't lower the operator's error. They add draws, whose spread fits \
their error.
- In 1D on a CPU the numerical solver is the faster choice: its times above are those of one call \
a frame, as a model is called. All
  frames in one call take 0.3 ms a trajectory at 256 points (`python benchmarks/solver.py`).
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
