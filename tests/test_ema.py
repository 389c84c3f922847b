"""The average of the weights: it is never that of an untrained model."""

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from ups.callbacks import EMAWeightAveraging
from ups.core.errors import UpsError

STEPS = 4  # an epoch


class Ascent(pl.LightningModule):
    """A weight that starts at 0 and grows by 1 in each step."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.validated = []
        self.saved = []

    def training_step(self, batch, batch_idx):
        return -self.weight

    def validation_step(self, batch, batch_idx):
        self.validated.append(self.weight.item())

    def on_validation_end(self):
        state = self.trainer._checkpoint_connector.dump_checkpoint()
        raw = state["current_model_state"]
        self.saved.append((state["state_dict"]["weight"].item(), raw["weight"].item()))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


@pytest.fixture
def train(tmp_path):
    def run(epochs=2, **options):
        module = Ascent()
        trainer = pl.Trainer(
            max_epochs=epochs,
            callbacks=[EMAWeightAveraging(**{"decay": 0.5, **options})],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=tmp_path,
        )
        loaders = [DataLoader(torch.zeros(n), num_workers=0) for n in (STEPS, 1)]
        trainer.fit(module, *loaders)
        return module

    return run


pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's, of few workers and batches


def average(weights, decay=0.5):
    value = weights[0]
    for weight in weights[1:]:
        value = decay * value + (1 - decay) * weight
    return value


def test_average_is_that_of_all_steps(train):
    module = train()
    assert module.weight.item() == average(range(1, 9))
    assert module.validated == [average(range(1, 5)), average(range(1, 9))]
    assert [average for average, _ in module.saved] == module.validated


def test_weights_are_raw_where_the_average_never_starts(train, caplog):
    module = train(update_starting_at_step=400)
    assert module.weight.item() == 8
    assert module.validated == [4, 8]
    assert [average for average, _ in module.saved] == [4, 8]
    assert "`callbacks.ema` has no update within the 8 steps" in caplog.text


def test_weights_are_raw_until_the_average_starts(train):
    module = train(update_starting_at_step=5)
    assert module.validated == [4, average([6, 7, 8])]
    assert module.weight.item() == average([6, 7, 8])
    assert [average for average, _ in module.saved] == module.validated
    assert [raw for _, raw in module.saved] == [4, 8]


def test_of_several_steps_the_last_is_averaged(train):
    assert train(update_every_n_steps=3).weight.item() == average([3, 6])
    assert train(update_every_n_steps=1000).weight.item() == 8


def test_average_of_epochs(train):
    options = {"update_every_n_steps": 0, "update_starting_at_epoch": 1}
    module = train(epochs=3, **options)
    assert module.weight.item() == average([8, 12])
    assert train(epochs=3, update_every_n_steps=0, update_starting_at_epoch=9).weight.item() == 12


def test_an_average_that_never_moves_is_refused():
    with pytest.raises(UpsError, match=r"`decay` must be a number in \[0, 1\), got 1"):
        EMAWeightAveraging(decay=1.0)
