"""Each logger's own files, read back: series, configuration, pictures, weights and evaluations.

A resumed run is the same run.
"""

import csv
import json
import struct
import sys

import pytest
from conftest import TINY
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

import ups
from ups.callbacks import GracefulStop
from ups.core.errors import RunIncomplete, UpsError
from ups.pipeline import run
from ups.run import CONF

pytestmark = pytest.mark.integration  # starts processes, or whole runs

SERIES = {
    "training/operator/loss", "training/operator/L_forward", "training/operator/L_inv_enc",
    "training/operator/L_inv_dec", "validation/operator/nrmse", "test/latent/nrmse",
}  # fmt: skip
KEPT = {
    "checkpoints/operator_ema.ckpt",
    "reports/eval_operator.json",
    "config.yaml",
    "provenance.json",
}

STEPS = set(range(24)) - {4}


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Runs what `python -m ups.run` runs, here and now."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")

    def call(*args):
        with initialize_config_dir(CONF, version_base="1.3"):
            cfg = compose(
                "config",
                [*TINY, "trainer.max_epochs=2", "trainer.log_every_n_steps=1", "name=one", *args],
            )
        GlobalHydra.instance().clear()
        return run(cfg)

    return call


@pytest.fixture
def interrupted(call, monkeypatch):
    """Calls twice: the first call is stopped in its fifth step, before that is logged.

    The second one finishes.
    """

    def interrupted(*args):
        stop_if_asked = GracefulStop._stop_if_asked

        def in_the_fifth_step(self, trainer):
            self.signal = "SIGTERM" if trainer.global_step == 5 else None
            stop_if_asked(self, trainer)

        with monkeypatch.context() as patch, pytest.raises(RunIncomplete):
            patch.setattr(GracefulStop, "_stop_if_asked", in_the_fifth_step)
            call(*args)
        call(*args)

    return interrupted


def wandb_records(path):
    """What the client has written: LevelDB's log format, blocks of 32 kB, a protobuf message a
    record.
    """
    from wandb.proto import wandb_internal_pb2

    data, at, message = path.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:  # no header fits into the rest of the block
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        message += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record.FromString(message)
            yield record.WhichOneof("record_type"), record
            message = b""


def test_wandb_offline(interrupted, tmp_path):
    interrupted("logger=wandb", "logger.offline=true")
    import wandb

    # its service may write a finished run's last records some milliseconds after `finish` returns
    wandb.teardown()
    files = sorted((tmp_path / "outputs/one/wandb").glob("offline-run-*/run-*.wandb"))
    records = [record for path in files for record in wandb_records(path)]
    runs = [record.run for kind, record in records if kind == "run"]
    assert len(files) == 2
    assert {(r.run_id, r.project, r.entity, r.display_name) for r in runs} == {
        (runs[0].run_id, "universal-simulator", "", "one")
    }
    assert files[1].name == f"run-{runs[0].run_id}.wandb"
    histories = [
        {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in r.history.item}
        for kind, r in records
        if kind == "history"
    ]
    assert {name for row in histories for name in row} >= SERIES
    steps = {row["trainer/global_step"] for row in histories if "training/operator/loss" in row}
    assert steps == STEPS
    config = {
        item.key: json.loads(item.value_json)
        for kind, record in records
        if kind == "config"
        for item in record.config.update
    }
    assert config["data"]["num_points"] == 32
    assert config["lambda_inv"] == 1.0
    assert "lr" not in config  # it stands in stage.operator.module, and nowhere else
    media = [
        file.path
        for kind, record in records
        if kind == "files"
        for file in record.files.files
        if file.path.endswith(".png")
    ]
    assert [path.rpartition("/")[2].startswith("eval_operator") for path in media] == [True]
    assert list((tmp_path / "outputs/one/wandb").glob(f"offline-run-*/files/{media[0]}"))
    (artifact,) = [record.artifact for kind, record in records if kind == "artifact"]
    contents = {entry.path: entry for entry in artifact.manifest.contents}
    assert artifact.type == "model"
    assert contents.keys() >= KEPT
    for path, entry in contents.items():
        assert entry.size == (tmp_path / "outputs/one" / path).stat().st_size
        assert entry.local_path == str(
            tmp_path / "outputs/one" / path
        )  # so that `wandb sync` finds it from anywhere


@pytest.mark.usefixtures("drawn")
def test_tensorboard(interrupted, call, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    interrupted("logger=tensorboard")
    (folder,) = (tmp_path / "outputs/one/tensorboard").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    assert set(events.Tags()["scalars"]) >= SERIES
    assert {event.step for event in events.Scalars("training/operator/loss")} == STEPS
    (picture,) = events.Images("test/eval_operator")
    assert picture.width > 1000
    assert "points: 32" in (folder / "hparams.yaml").read_text()
    with (
        tmp_path / "outputs/one/logs/version_1/metrics.csv"
    ).open() as file:  # the CSV logger stands beside every other
        assert set(csv.DictReader(file).fieldnames) >= SERIES
    call("logger=tensorboard", "overwrite=true")
    assert len(list(folder.parent.iterdir())) == 2


def test_mlflow(interrupted, call, tmp_path):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    interrupted("logger=mlflow")
    client = MlflowClient("sqlite:///outputs/mlflow.db")
    experiment = client.get_experiment_by_name("universal-simulator")
    (one,) = client.search_runs([experiment.experiment_id])
    assert (one.info.status, one.info.run_name) == ("FINISHED", "one")
    assert one.data.metrics.keys() >= SERIES
    assert one.data.params["data/num_points"] == "32"
    assert {
        point.step for point in client.get_metric_history(one.info.run_id, "training/operator/loss")
    } == STEPS
    kept = {
        file.path
        for within in ("", "checkpoints", "reports")
        for file in client.list_artifacts(one.info.run_id, within)
    }
    assert kept >= {*KEPT, "reports/eval_operator.png"}
    simulator = ups.load(
        client.download_artifacts(one.info.run_id, "")
    )  # the files that were kept are a run's folder
    assert len(simulator.x) == 32
    with pytest.raises(UpsError, match=r"MLFlowLogger: .*nosuch"):
        call("logger=mlflow", "logger.run_id=nosuch", "name=other")


@pytest.mark.parametrize("name", ["mlflow", "tensorboard", "wandb"])
def test_what_is_not_installed_is_said_with_its_extra(call, monkeypatch, name):
    for module in [
        *(m for m in sys.modules if m.partition(".")[0] == name),
        name,
        "torch.utils.tensorboard",
    ]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UpsError, match=rf"pip install 'ups\[{name}\]'"):
        call(f"logger={name}")
