"""A real run of a few minutes on two CPU cores: CIFAR-10 at 16x16 pixels.

ResNet-14 -> a student of about a fifth of the parameters; 10,000 training
images, the whole test split.

  TFDS_DATA_DIR=... python -m cbkd_jax.train --config=configs/cifar10_small.py \
    --workdir=runs/cifar10_small
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
  config = default.get_config()
  config.data.train_split = 'train[:10000]'
  config.data.train_size = 10_000
  config.data.resize = 16
  config.data.image_shape = (16, 16, 3)
  config.data.pad = 2
  config.teacher.model = 'resnet14'
  config.teacher.epochs = 10.0
  config.compression.keep = (1.0, 0.5, 0.35)
  config.stage.epochs = 3.0
  config.thaw.epochs = 6.0
  config.checkpoint_every_steps = 100
  config.log_every_steps = 20
  return config
