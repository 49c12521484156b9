"""ImageNet ResNets, four blocks: stem and group 1, then groups 2 to 4.

The layout is torchvision's: a bottleneck strides in its 3x3 convolution
(ResNet "v1.5"). Only the stem depends on the image size:

  side up to 40   3x3 convolution                         32 -> 32
  side up to 96   3x3 convolution, 3x3 max-pooling of 2   64 -> 32
  larger          7x7 convolution of stride 2, pooling    224 -> 56

so that group 1 sees about 32 to 64 pixels a side in all common data sets.
"""

import functools
from collections.abc import Sequence
from typing import Any

from cbkd_jax.blocks import Architecture
from cbkd_jax.models import resnet

_STEM_WIDTH = 64
_BASIC = (3, 3)
_BOTTLENECK = (1, 3, 1)


def _imagenet_resnet(
  num_classes: int,
  image_shape: Sequence[int],
  dtype: Any,
  axis_name: str | None,
  *,
  units: Sequence[int],
  kernels: tuple[int, ...],
) -> Architecture:
  side = min(image_shape[:2])
  kernel, stride = (3, 1) if side <= 96 else (7, 2)
  stem = resnet.Stem(_STEM_WIDTH, kernel, stride, side > 40, dtype, axis_name)
  expansion = 4 if kernels == _BOTTLENECK else 1
  widths = [_STEM_WIDTH * expansion * 2**i for i in range(4)]
  names = {'torchvision': resnet.torch_name, 'timm': resnet.torch_name}
  return resnet.architecture(stem, widths, units, kernels, num_classes, names)


MODELS = {
  'resnet18': functools.partial(
    _imagenet_resnet, units=(2, 2, 2, 2), kernels=_BASIC
  ),
  'resnet34': functools.partial(
    _imagenet_resnet, units=(3, 4, 6, 3), kernels=_BASIC
  ),
  'resnet50': functools.partial(
    _imagenet_resnet, units=(3, 4, 6, 3), kernels=_BOTTLENECK
  ),
}
