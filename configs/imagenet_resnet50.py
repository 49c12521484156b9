"""ResNet-50 on ImageNet (1,000 classes, 224x224), four blocks, three stages.

Recipe: images streamed from disk, random-resized crops and flips; batch 1024
in bfloat16, SGD with Nesterov momentum at learning rate 0.4, cosine after a
warm-up, weight decay 1e-4, label smoothing 0.1. Teacher 90 epochs. Keep ratios
1 / 0.75 / 0.5 / 0.5, sliced from the teacher, KD (T = 2, 0.1 ce + 0.9 kd), 90
epochs in all: 3 x 10 for the stages, 60 for the thaw. The validation split is
the test split. Top-5 is reported too.

Accuracy: not yet run, neither teacher nor student.

The set must be prepared with TFDS in the array_record format, from the two
archives that image-net.org gives to those who have registered. `data.workers`
is for a machine with 16 processors or more.

  TFDS_DATA_DIR=... python -m cbkd_jax.train \
    --config=configs/imagenet_resnet50.py --workdir=runs/imagenet_resnet50
"""

from ml_collections import ConfigDict

from configs import default


def imagenet(config: ConfigDict) -> ConfigDict:
  """The data and how they are trained on, whatever the networks."""
  config.batch_size = 1024
  config.eval_batch_size = 1000
  config.compute_dtype = 'bfloat16'
  config.checkpoint_every_steps = 1000
  config.log_every_steps = 100
  config.data.name = 'imagenet2012'
  config.data.test_split = 'validation'
  config.data.classes = 1000
  config.data.image_shape = (224, 224, 3)
  config.data.train_size = 1_281_167
  config.data.pipeline = 'stream'
  config.data.workers = 8
  config.data.crop = 'random_resized'
  config.data.pad = 0
  config.data.mean = (0.485, 0.456, 0.406)
  config.data.std = (0.229, 0.224, 0.225)
  config.teacher.objective = 'ce(label_smoothing=0.1)'
  config.objective = '0.1*ce(label_smoothing=0.1) + 0.9*kd(temperature=2)'
  for phase in config.teacher, config.stage, config.thaw:
    phase.learning_rate = 0.4
    phase.weight_decay = 1e-4
    phase.warmup = 0.05
  config.teacher.epochs = 90.0
  config.stage.epochs = 10.0
  config.thaw.epochs = 60.0
  return config


def get_config() -> ConfigDict:
  config = imagenet(default.get_config())
  config.teacher.model = 'resnet50'
  config.compression.keep = (1.0, 0.75, 0.5, 0.5)
  return config
