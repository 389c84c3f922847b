"""The parameter of a file: what is given, else the file's attribute, else its name."""

import logging

import h5py
import pytest
from helpers.published import pdebench_file
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from ups.core.errors import UpsError
from ups.datamodules import BurgersDataModule, TrajectoryDataModule
from ups.datamodules.readers.parameters import parameter_in_name
from ups.run import CONF

SIZES = {"num_train": 5, "num_validation": 1, "num_test": 2, "unroll_steps": 2}


@pytest.mark.parametrize(
    ("name", "symbol", "value"),
    [
        ("1D_Burgers_Sols_Nu0.001.hdf5", "nu", 0.001),
        ("1D_Burgers_Sols_Nu4.0.hdf5", "nu", 4.0),
        ("1D_Advection_Sols_beta0.4.hdf5", "beta", 0.4),
        ("1D_Advection_Sols_beta7.0.hdf5", "beta", 7.0),
        ("burgers_nu0p01.hdf5", "nu", 0.01),
        ("burgers-nu1e-05-0a1b2c3d.hdf5", "nu", 1e-5),
        ("nu=0.5.h5", "nu", 0.5),
        ("a_nu_2.5E+1_b", "nu", 25.0),
        ("nu0.1_nu0.1.hdf5", "nu", 0.1),
        *((name, "nu", None) for name in ("menu2.hdf5", "minus_menu0.1", "nu2x.hdf5", "nu.hdf5")),
        *((name, "nu", None) for name in ("nu0.5abc", "nu0.hdf5", "nu0.1_nu0.2.hdf5", "nu1e999")),
        ("1D_CFD_Rand_Eta1.e-8_Zeta1.e-7_periodic_Train.hdf5", "eta", 1e-8),
        ("1D_CFD_Rand_Eta1.e-8_Zeta1.e-7_periodic_Train.hdf5", "zeta", 1e-7),
        ("nu1.hdf5", "nu", 1.0),
        ("1D_Burgers_Sols_Nu0.001.hdf5", "beta", None),
        ("alphabet3_beta0.4", "beta", 0.4),
    ],
)
def test_name_says_a_parameter_only_as_a_word(name, symbol, value):
    assert parameter_in_name(name, symbol) == value


def with_attribute(path, **attributes):
    pdebench_file(path)
    with h5py.File(path, "r+") as file:
        file.attrs.update(attributes)
    return str(path)


def read(path, nu=None, equation="burgers"):
    data = TrajectoryDataModule(equation=equation, path=path, nu=nu, **SIZES)
    data.setup()
    return data


@pytest.mark.parametrize(
    ("equation", "attributes"),
    [("burgers", {"Nu": 0.3}), ("burgers", {"nu": [0.3]}), ("advection", {"beta": 0.3})],
)
def test_attribute_comes_before_the_name(tmp_path, equation, attributes):
    path = with_attribute(tmp_path / "a_nu0.1_beta0.1.hdf5", **attributes)
    data = read(path, equation=equation)
    assert data.training_parameters == [[0.3]]
    assert data.dataset["nu"] == 0.3
    path = with_attribute(tmp_path / "menu2.hdf5", **attributes)
    assert read(path, equation=equation).training_parameters == [[0.3]]


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), "small", [0.1, 0.2]])
def test_attribute_that_is_no_positive_number_is_refused(tmp_path, value):
    path = with_attribute(tmp_path / "a_nu0.1.hdf5", Nu=value)
    with pytest.raises(UpsError, match=r"its attribute 'Nu' must be a number > 0, got"):
        read(path)


def test_given_parameter_is_final_with_a_warning(tmp_path, caplog):
    named = str(pdebench_file(tmp_path / "a_nu0.1.hdf5"))
    attributed = with_attribute(tmp_path / "b_nu0.1.hdf5", Nu=0.2)
    silent = str(pdebench_file(tmp_path / "menu2.hdf5"))
    with caplog.at_level(logging.WARNING):
        for path in (named, attributed, silent):
            assert read(path, nu=0.4).training_parameters == [[0.4]]
    assert caplog.messages == [
        f"`data.nu` is 0.4, but its name says that {named} has nu 0.1; 0.4 is used.",
        f"`data.nu` is 0.4, but its attribute 'Nu' says that {attributed} has nu 0.2; 0.4 is used.",
    ]
    caplog.clear()
    assert read(named, nu=0.1).training_parameters == [[0.1]]
    assert not caplog.messages


def test_default_parameter_is_that_of_the_file(tmp_path):
    path = str(pdebench_file(tmp_path / "1D_Burgers_Sols_Nu0.1.hdf5"))
    assert BurgersDataModule(path=path, **SIZES).training_parameters == [[0.1]]
    assert BurgersDataModule().training_parameters == [[0.001]]
    advection = str(pdebench_file(tmp_path / "1D_Advection_Sols_beta2.0.hdf5"))
    found = {}
    with initialize_config_dir(CONF, version_base="1.3"):
        for name, file in (("burgers", path), ("advection", advection)):
            for given in ([], [f"data.path={file}"]):
                cfg = compose("config", [f"data={name}", *given])
                data = instantiate(cfg.data, _convert_="all")
                found[name, bool(given)] = data.training_parameters
    assert found == {
        ("burgers", False): [[0.001]],
        ("burgers", True): [[0.1]],
        ("advection", False): [[0.4]],
        ("advection", True): [[2.0]],
    }


def test_generated_file_says_its_parameter_whatever_its_name(tmp_path):
    made = BurgersDataModule(
        nu=0.02, num_points=32, reference_num_points=32, num_frames=5, num_train=4,
        num_validation=1, num_test=1, cache_dir=str(tmp_path),
    )  # fmt: skip
    made.prepare_data()
    moved = made.path.rename(tmp_path / "fields.hdf5")
    assert BurgersDataModule(path=str(moved)).training_parameters == [[0.02]]
