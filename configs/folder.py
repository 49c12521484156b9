"""Your own images, in folders: copy this file, or override its fields.

DIR/train/CLASS/IMAGE and DIR/val/CLASS/IMAGE; or DIR/CLASS/IMAGE, with
--config.data.train_split='train[:80%]' --config.data.test_split='train[80%:]',
which takes the same share of every class. JPEG, PNG, WebP, TIFF and others.

Recipe: images averaged down to 64x64 and kept in memory; ResNet-18 teacher,
100 epochs of SGD; keep ratios 1 / 0.75 / 0.5 / 0.5; KD; 3 x 10 epochs for the
stages, 70 for the thaw. For thousands of images; with fewer, give a trained
teacher's checkpoint. For larger images that don't fit into memory see
`imagenet_resnet50.py`, whose data.pipeline and data.crop go with folders too.

The first command reads all images and prints fields to add to the second
(classes, train_size, image_shape; mean and std are measured otherwise):

  python -m cbkd_jax.inspect_data --config=configs/folder.py \
    --config.data.dir=DIR
  python -m cbkd_jax.train --config=configs/folder.py --workdir=runs/own \
    --config.data.dir=DIR --config.data.classes=... --config.data.train_size=...

For an .npz file or a set of Hugging Face's `datasets`: the same with
--config.data.name=npz or hf.

Accuracy: depends on your images.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
  config = default.get_config()
  config.data.name = 'folder'
  config.data.test_split = 'val'
  config.data.resize = 64
  config.data.image_shape = (64, 64, 3)
  # Placeholders: what is there instead is told.
  config.data.classes = 10
  config.data.train_size = 10_000
  config.data.pad = 8
  config.teacher.model = 'resnet18'
  config.teacher.epochs = 100.0
  config.compression.keep = (1.0, 0.75, 0.5, 0.5)
  config.stage.epochs = 10.0
  config.thaw.epochs = 70.0
  return config
