"""The whole method on embedded data, in half a minute on two CPU cores.

scikit-learn's digits, 8x8 grey; ResNet-8 -> a student of three blocks.

  python -m cbkd_jax.train --config=configs/digits.py --workdir=runs/digits
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
  config = default.get_config()
  config.batch_size = 64
  config.eval_batch_size = 360
  config.data.name = 'digits'
  config.data.image_shape = (8, 8, 1)
  config.data.train_size = 1437
  config.data.pad = 1
  config.data.flip = False
  config.teacher.model = 'resnet8'
  config.teacher.epochs = 10.0
  config.compression.keep = (1.0, 0.5, 0.35)
  config.stage.epochs = 4.0
  config.thaw.epochs = 10.0
  config.checkpoint_every_steps = 100
  config.log_every_steps = 10
  return config
