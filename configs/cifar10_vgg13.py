"""VGG-13 with BatchNorm on CIFAR-10, five blocks, four stages.

Recipe: as configs/cifar10_resnet56.py with a learning rate of 0.05, as is
usual for VGG; keep ratios 1 / 0.75 / 0.5 / 0.5 / 0.35; 200 epochs in all:
4 x 15 for the stages, 140 for the thaw.

Accuracy: not yet measured.

  TFDS_DATA_DIR=... python -m cbkd_jax.train \
    --config=configs/cifar10_vgg13.py --workdir=runs/cifar10_vgg13
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
  config = default.get_config()
  config.teacher.model = 'vgg13'
  config.teacher.epochs = 200.0
  config.teacher.learning_rate = 0.05
  config.compression.keep = (1.0, 0.75, 0.5, 0.5, 0.35)
  config.stage.epochs = 15.0
  config.stage.learning_rate = 0.05
  config.thaw.epochs = 140.0
  config.thaw.learning_rate = 0.05
  return config
