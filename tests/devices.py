"""A device that this machine lacks: its tensors say that they lie there, and lie on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from anatpaste_aug.batch import operators

# The host must know what they give, or its size: it waits for the device.
ASKED = ["_local_scalar_dense", "is_nonzero", "equal", "nonzero", "nonzero_numpy", "argwhere"]
ASKED += ["masked_select", "bincount", "_unique", "_unique2", "unique_dim"]
ASKED += ["unique_consecutive", "unique_dim_consecutive"]


class There(Tensor):
    """A tensor on the simulated device; on "meta" to torch's inside, which needs no driver."""

    @staticmethod
    def __new__(cls, here, device):
        layout = {"strides": here.stride(), "storage_offset": here.storage_offset()}
        out = Tensor._make_wrapper_subclass(
            cls, here.shape, dtype=here.dtype, device="meta", **layout
        )
        out.here, out.where = here, device
        return out

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} on a simulated device, outside of its mode")

    @property
    def device(self):
        return self.where

    def __repr__(self):
        return f"There({self.device})"


class Device(TorchDispatchMode):
    """Run torch as if there were a device: operators as they are registered for it.

    `waits` names what the host has waited in: operators whose result it must know, and copies from
    one to the other, but for those from pinned memory that need not be waited for.
    """

    def __init__(self, kind):
        super().__init__()
        self.device, self.waits = torch.device(kind, 0), []

    def put(self, tensor):
        """Return a tensor of the CPU as one of the device."""
        assert (self.device.type, tensor.dtype) != ("mps", torch.float64), "MPS has no float64"
        return There(tensor, self.device)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [part for part in tree_leaves((args, kwargs)) if isinstance(part, Tensor)]
        there = [isinstance(tensor, There) for tensor in tensors]
        asked = kwargs.get("device")
        moved = any(there) if asked is None else asked.type in (self.device.type, "meta")
        if func._opname in ("is_pinned", "_pin_memory"):
            return self.pin(func, *args)
        if func._opname in ("_to_copy", "copy_") and {*there, moved} == {True, False}:
            slow = not kwargs.get("non_blocking") and True not in args[2:]
            if slow or not moved or not hasattr(tensors[-1], "pinned"):
                self.waits.append(func._opname)
        else:
            scalar = any(tensor.ndim == 0 for tensor in tensors)
            assert all(there) or not any(there) or scalar, f"{func} mixes"
            if any(there) and is_asked(func._opname, args):
                self.waits.append(func._opname)
        if func.namespace == "anatpaste_aug" and any(there):
            one = getattr(operators, func._opname)
            with self:
                return one._backend_fns.get(self.device.type, one._init_fn)(*args, **kwargs)
        if asked is not None:
            kwargs["device"] = torch.device("cpu")
        args, kwargs = tree_map_only(There, lambda tensor: tensor.here, (args, kwargs))
        out = func(*args, **kwargs)
        # What goes from one device to the other is a copy there, and must not be one here.
        return tree_map_only(Tensor, self.put, out) if moved else out

    def pin(self, func, tensor, *args):
        """Pin memory, for which torch asks a driver, or tell whether it is pinned."""
        if func._opname == "is_pinned":
            return hasattr(tensor, "pinned")
        out = tensor.clone()
        out.pinned = True
        return out


def is_asked(name, args):
    """Tell whether the host waits for what an operator gives, or for its size."""
    masks = tree_leaves(args[1]) if name in ("index", "index_put_") else []
    repeats = name == "repeat_interleave" and isinstance(args[-1], Tensor)
    chosen = any(isinstance(m, Tensor) and m.dtype in (torch.bool, torch.uint8) for m in masks)
    return name in ASKED or repeats or chosen
