"""LightningDataModules; ``readers`` has what opens their files."""

from ups.datamodules.burgers import BurgersDataModule
from ups.datamodules.own import OwnDataModule
from ups.datamodules.point_clouds import PointCloudDataModule
from ups.datamodules.trajectories import TrajectoryDataModule

__all__ = ["BurgersDataModule", "OwnDataModule", "PointCloudDataModule", "TrajectoryDataModule"]
