"""AnatPaste, CutPaste and Opacity on a batch of images; results lie where the batch lies.

Element *i* of every result is what the functional form returns for image *i* with the same
parameters. Triton kernels run the lung mask and AnatPaste on NVIDIA and AMD GPUs, where nothing
waits for the device; all else goes over the CPU.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        "anatpaste_aug.batch needs PyTorch: pip install 'anatpaste-aug[torch]'"
    ) from error

from anatpaste_aug.batch import functions, modules, params
from anatpaste_aug.batch.functions import *
from anatpaste_aug.batch.modules import *
from anatpaste_aug.batch.params import *

__all__ = functions.__all__ + modules.__all__ + params.__all__
