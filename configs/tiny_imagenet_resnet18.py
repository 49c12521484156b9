"""ResNet-18 on Tiny ImageNet (200 classes, 64x64), four blocks, three stages.

Recipe: teacher 100 epochs of SGD (batch 256, learning rate 0.1, cosine);
keep ratios 1 / 0.75 / 0.5 / 0.5; KD; 100 epochs in all: 3 x 10 for the
stages, 70 for the thaw. The official validation split is the test split (the
official test split has no labels). Top-5 is reported too.

Accuracy: not yet measured.

  python -m cbkd_jax.data.tiny_imagenet --zip=tiny-imagenet-200.zip \
    --data_dir=data
  python -m cbkd_jax.train --config=configs/tiny_imagenet_resnet18.py \
    --config.data.dir=data --workdir=runs/tiny_imagenet_resnet18
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
  config = default.get_config()
  config.batch_size = 256
  config.data.name = 'tiny_imagenet'
  config.data.test_split = 'validation'
  config.data.classes = 200
  config.data.image_shape = (64, 64, 3)
  config.data.train_size = 100_000
  config.data.pad = 8
  config.teacher.model = 'resnet18'
  config.teacher.epochs = 100.0
  config.compression.keep = (1.0, 0.75, 0.5, 0.5)
  config.stage.epochs = 10.0
  config.thaw.epochs = 70.0
  return config
