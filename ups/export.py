"""python -m ups.export, and its functions under their public names; see ``ups.hub.export``."""

from ups.hub.export import main, to_onnx, to_torch, to_xarray

__all__ = ["main", "to_onnx", "to_torch", "to_xarray"]

if __name__ == "__main__":
    main()
