"""A device that this machine lacks: its tensors say that they lie there, and lie on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from anatpaste_aug.batch import operators


class There(Tensor):
    """A tensor on the simulated device."""

    @staticmethod
    def __new__(cls, here, device):
        layout = {"strides": here.stride(), "storage_offset": here.storage_offset()}
        out = Tensor._make_wrapper_subclass(
            cls, here.shape, dtype=here.dtype, device=device, **layout
        )
        out.here = here
        return out

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} on a simulated device, outside of its mode")

    def __getitem__(self, index):  # before it is dispatched, torch asks for the device's driver
        return There(self.here[index], self.device)

    def __repr__(self):
        return f"There({self.device})"


class Device(TorchDispatchMode):
    """Run torch as if there were a device: operators as they are registered for it."""

    def __init__(self, kind):
        super().__init__()
        self.device = torch.device(kind, 0)

    def put(self, tensor):
        """Return a tensor of the CPU as one of the device."""
        assert (self.device.type, tensor.dtype) != ("mps", torch.float64), "MPS has no float64"
        return There(tensor, self.device)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [part for part in tree_leaves((args, kwargs)) if isinstance(part, Tensor)]
        there = [isinstance(tensor, There) for tensor in tensors]
        assert all(there) or not any(there) or any(t.ndim == 0 for t in tensors), f"{func} mixes"
        if func.namespace == "anatpaste_aug" and any(there):
            one = getattr(operators, func._opname)
            with self:
                return one._backend_fns.get(self.device.type, one._init_fn)(*args, **kwargs)
        asked = kwargs.get("device")
        moved = any(there) if asked is None else torch.device(asked).type == self.device.type
        if asked is not None:
            kwargs["device"] = torch.device("cpu")
        args, kwargs = tree_map_only(There, lambda tensor: tensor.here, (args, kwargs))
        out = func(*args, **kwargs)
        # What goes from one device to the other is a copy there, and must not be one here.
        return tree_map_only(Tensor, self.put, out) if moved else out
