"""Make the model that comes with UPS from a run of benchmarks/stages.py.

python benchmarks/ship.py [RUN]      writes ups/shipped/burgers-small from outputs/stages/all-0
"""

import sys
from pathlib import Path

import ups
from ups.hub.model_card import load_test_results, render_model_card
from ups.simulation.model_folder import SHIPPED

NAME = "burgers-small"
NOTES = """
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
"""


def main(run: Path) -> None:
    sim = ups.load(run)
    # the run is older than the simulator's memory of its data
    sim.training_parameters = [[load_test_results(run).dataset["nu"]]]
    sim.save(SHIPPED / NAME, render_model_card(run, NAME, licence="MIT", notes=NOTES))
    print("written:", SHIPPED / NAME)


if __name__ == "__main__":
    main(Path(sys.argv[1] if sys.argv[1:] else "outputs/stages/all-0"))
