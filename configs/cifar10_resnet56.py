"""ResNet-56 on CIFAR-10 to a student with deeper blocks smaller.

Recipe: teacher 200 epochs of SGD (Nesterov 0.9, batch 128, learning rate 0.1,
cosine to 0, weight decay 5e-4), pad-crop and flip. Student: keep ratios
1 / 0.5 / 0.35, sliced from the teacher, KD (T = 4, 0.1 ce + 0.9 kd), 200
epochs in all: 30 + 30 for the two stages, 140 for the thaw.

Accuracy: not yet measured.

  TFDS_DATA_DIR=... python -m cbkd_jax.train \
    --config=configs/cifar10_resnet56.py --workdir=runs/cifar10_resnet56
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
  config = default.get_config()
  config.teacher.model = 'resnet56'
  config.teacher.epochs = 200.0
  config.compression.keep = (1.0, 0.5, 0.35)
  config.stage.epochs = 30.0
  config.thaw.epochs = 140.0
  return config
