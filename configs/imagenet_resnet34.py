"""ResNet-34 on ImageNet, its blocks cut down to about ResNet-18's depth.

Recipe: as `imagenet_resnet50.py`, with a ResNet-34 teacher and a student that
is as wide as it is, but has 3 / 2 / 2 / 2 residual units where the teacher has
3 / 4 / 6 / 3: ResNet-18 has 2 / 2 / 2 / 2. Block 0 is inherited as it is, so
it keeps its three units. 90 epochs in all: 3 x 10 for the stages, 60 for the
thaw.

Accuracy: not yet run, neither teacher nor student.

  TFDS_DATA_DIR=... python -m cbkd_jax.train \
    --config=configs/imagenet_resnet34.py --workdir=runs/imagenet_resnet34
"""

from ml_collections import ConfigDict

from configs import default, imagenet_resnet50


def get_config() -> ConfigDict:
  config = imagenet_resnet50.imagenet(default.get_config())
  config.teacher.model = 'resnet34'
  config.compression.keep = (1.0, 1.0, 1.0, 1.0)
  config.compression.depth = (3, 2, 2, 2)
  return config
