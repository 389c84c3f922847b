"""LightningDataModules, and the reader of PDEBench's HDF5 layout."""

from ups.datamodules.trajectories import BurgersDataModule, TrajectoryDataModule

__all__ = ["BurgersDataModule", "TrajectoryDataModule"]
