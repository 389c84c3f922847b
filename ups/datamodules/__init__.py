"""LightningDataModules, and the reader of PDEBench's HDF5 layout."""

from ups.datamodules.burgers import BurgersDataModule

__all__ = ["BurgersDataModule"]
