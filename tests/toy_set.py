"""A small set on disk, written as TFDS writes it: any features and examples."""

from pathlib import Path

import cv2
import numpy as np
import tensorflow_datasets as tfds


class Toy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A small set with any features and examples, written as TFDS does."""

  VERSION = tfds.core.Version('1.0.0')

  def __init__(self, features, splits, **kwargs):
    self.toy_features, self.toy_splits = features, splits
    # TFDS would look for the package of this class, which has none.
    type(self).pkg_dir_path = Path(__file__).parent
    super().__init__(file_format='array_record', **kwargs)

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(self.toy_features)
    )

  def _split_generators(self, dl_manager):
    return {k: iter(enumerate(v)) for k, v in self.toy_splits.items()}

  def _generate_examples(self):
    raise NotImplementedError


def png(image):
  return cv2.imencode('.png', image)[1].tobytes()


def toy_images(n, shape=(6, 4, 3)):
  return np.random.default_rng(n).integers(0, 256, (n, *shape), np.uint8)


def toy(directory, images=None, shape=(6, 4, 3), labels=None, **features):
  """Prepares the set 'toy' with 20 train and 5 test examples."""
  images = list(toy_images(25)) if images is None else images
  labels = [i % 3 for i in range(25)] if labels is None else labels
  # OpenCV writes BGR.
  examples = [
    {'image': png(image[..., ::-1]), 'label': label}
    for image, label in zip(images, labels)
  ]
  features = {
    'image': tfds.features.Image(shape=shape, encoding_format='png'),
    'label': tfds.features.ClassLabel(names=['b', 'a', 'c']),
  } | features
  builder = Toy(
    features,
    {'train': examples[:20], 'test': examples[20:]},
    data_dir=str(directory),
  )
  tfds.disable_progress_bar()
  builder.download_and_prepare(download_dir=str(directory / 'downloads'))
  return directory / 'toy' / '1.0.0'
