"""Every field of a run, with its unit and meaning.

Other configs change a few of these. On the command line any field can be
overridden: `--config.thaw.epochs=30`, `--config.compression.keep='(1,.5,.25)'`.
The config is locked: a misspelt field is an error.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

MAX_STAGES = 8  # stages that `stage_overrides` can name


def phase(epochs: float, **more) -> ConfigDict:
  """How one phase (the teacher, a stage, the thaw) is trained."""
  return ConfigDict(
    {
      **more,
      # Passes over the training examples; fractions are allowed.
      'epochs': float(epochs),
      # Optimiser steps; None: as many as `epochs` need.
      'steps': placeholder(int),
      # 'sgd', 'adamw' or 'muon' (for kernels; AdamW for all else).
      'optimizer': 'sgd',
      # Peak learning rate, reached after the warm-up. 'muon' wants rates
      # of AdamW's order, 0.02 rather than 0.1: its updates of a kernel
      # have the size of AdamW's, and one rate and decay serve both.
      'learning_rate': 0.1,
      # 'cosine' (to 0), 'step' or 'constant'.
      'schedule': 'cosine',
      # Linear warm-up from 0, as a fraction of the phase's steps.
      'warmup': 0.0,
      # For 'step': fractions of the phase's steps at which the learning
      # rate is multiplied by `decay`.
      'milestones': (0.625, 0.75, 0.875),
      'decay': 0.1,
      # Momentum of SGD and Muon, and whether it is Nesterov's (which
      # makes Muon's AdamW NAdamW).
      'momentum': 0.9,
      'nesterov': True,
      # Applied to every trained parameter: added to the gradient for
      # SGD, decoupled for AdamW and Muon.
      'weight_decay': 5e-4,
      # Largest norm of the trained parameters' gradient; 0: no clipping.
      'clip_norm': 1.0,
    }
  )


def overrides() -> ConfigDict:
  """The fields of `phase`, and an objective, all unset (None)."""
  types = {name: type(value) for name, value in phase(1).items()}
  types |= {'steps': int, 'objective': str}
  return ConfigDict({name: placeholder(t) for name, t in types.items()})


def get_config() -> ConfigDict:
  """The default run: ResNet-56 on CIFAR-10, in three blocks."""
  return ConfigDict(
    {
      # Everything random in a run follows from this, >= 0.
      'seed': 0,
      # Examples per step, over all devices together.
      'batch_size': 128,
      # Parts into which each device divides its share of a batch, to need less
      # memory: their gradients' mean makes one optimiser step. Batch
      # statistics, and relations between examples, are of each part alone.
      # On CPU a program of n parts takes n times as long to compile.
      'micro_batches': 1,
      # Whether the backward pass computes again what lies inside of residual
      # units and between convolutions, instead of keeping it: less memory,
      # the same numbers, up to a third more work.
      'remat': False,
      # Examples per evaluation step; results do not depend on it.
      'eval_batch_size': 500,
      # What a stage and the thaw minimise: weights, methods and their
      # options, e.g. '0.1*ce + 0.9*kd(temperature=4)'. A method's bare
      # name stands for its published recipe.
      'objective': 'kd',
      # 'counterclockwise' (the method); controls of the same length:
      # 'clockwise', 'joint', 'joint_inherited', 'scratch'.
      'order': 'counterclockwise',
      # How many of the shallowest blocks the student takes over from the
      # teacher as they are, 1 <= inherit < blocks.
      'inherit': 1,
      # 'float32' or 'bfloat16' for activations; parameters, statistics
      # and losses are float32 either way.
      'compute_dtype': 'float32',
      # Batch statistics over all devices, or each device's own.
      'sync_batch_norm': True,
      # How a step is spread over devices: 'pmap' or 'shard_map', each device
      # with a copy of everything; or 'jit', which divides large arrays over
      # `mesh.model` devices, for networks that don't fit one. Its batch
      # statistics, and relations between examples, are of the global batch.
      'spmd': 'pmap',
      'mesh': {
        # Devices along which only examples are divided; None: as many as
        # there are. Times `model` it must be the number of devices.
        'data': placeholder(int),
        # For 'jit': over how many devices large arrays are divided.
        'model': 1,
      },
      # Training steps in one call of the device; None: 1 on CPU (loops
      # around convolutions are slow there), 100 elsewhere, fewer where their
      # images are streamed and large.
      'steps_per_call': placeholder(int),
      # Bit-identical results on GPUs too, slower: neither kernels whose sums
      # come in any order, nor kernels chosen by timing them.
      'deterministic': False,
      # Where compiled programs are kept for the next run, which then starts
      # sooner and gives the same numbers: a directory; 'off'; '':
      # $JAX_COMPILATION_CACHE_DIR, else $XDG_CACHE_HOME/cbkd_jax/xla, else
      # ~/.cache/cbkd_jax/xla. May be deleted at any time. Not a part of
      # what makes a run: it may differ when one is resumed.
      'compilation_cache': '',
      # A checkpoint inside a phase every so many steps.
      'checkpoint_every_steps': 500,
      # A line in metrics.jsonl every so many steps.
      'log_every_steps': 50,
      'cache': {
        # Compute what a stage can't change (the frozen prefix's output, what
        # the objective sees of the teacher) once, not in every step.
        'prefix': False,
        # Also in the thaw and in the controls: the teacher's outputs.
        'thaw': False,
        # Fixed augmentations of each image, of which each epoch draws one;
        # 0: the images as they are. Flips are random, never alternating;
        # mixup and CutMix must be off.
        'views': 0,
        # Feature maps are kept 'exact', in 'bfloat16' or in 'uint8'.
        'dtype': 'bfloat16',
        # Where: on every 'device', on the 'host', or 'auto', the first of
        # these where it fits. One that fits nowhere is done without.
        'place': 'auto',
        # Largest size in MiB; None: 80 % of what is free.
        'limit_mib': placeholder(float),
      },
      'data': {
        # 'digits' (embedded), 'tiny_imagenet', or any TFDS image
        # classification set. Or images of your own: 'folder' (DIR/CLASS/IMAGE
        # or DIR/SPLIT/CLASS/IMAGE), 'npz' (uint8 images and integer labels:
        # train_images, train_labels, ..., or x_train, y_train, ..., or
        # SPLIT.npz with images, labels), 'hf' (what `datasets` of Hugging Face
        # saved). They come in a random order, always the same, with each
        # class spread evenly: a slice has the classes in their proportions.
        'name': 'cifar10',
        # Directory of prepared TFDS sets; '': $TFDS_DATA_DIR, else
        # ~/tensorflow_datasets. Of your own images: where they are.
        'dir': '',
        # TFDS split expressions, slices allowed: 'train[:5000]'. Images that
        # are not divided yet are 'train': 'train[:80%]' and 'train[80%:]'.
        'train_split': 'train',
        'test_split': 'test',
        # For 'hf': the columns to take where there are several of a kind.
        'image_column': '',
        'label_column': '',
        # The last so many training examples are held out of training
        # and reported as validation accuracy.
        'validation_size': 0,
        # Images are averaged down to resize x resize pixels; 0: not.
        'resize': 0,
        # 'resident': the train and test splits are decoded once and lie
        # on every device. 'stream': they stay on disk and are read, by
        # Grain, as the steps need them; `mean` and `std` must be given.
        # Where nothing is cropped, both are the same run.
        'pipeline': 'resident',
        # For 'stream': processes that read; 0: threads of this process,
        # which is enough where decoding is most of the work, for it
        # doesn't hold Python's lock. Results don't depend on it.
        'workers': 0,
        # For 'stream': 'none', or 'random_resized': a random part of an
        # image, of 3:4 to 4:3 and no less than `crop_area` of its area,
        # scaled to `image_shape`; in evaluation the centre, 0.875 of the
        # shorter side. It replaces `resize` and `pad`, which must be 0.
        'crop': 'none',
        'crop_area': 0.08,
        # What the data must turn out to be (a plan needs no data); `python -m
        # cbkd_jax.inspect_data` prints it. Images of your own are given so
        # many channels: grey is repeated in 3, of colours 1 is their luma.
        'classes': 10,
        'image_shape': (32, 32, 3),
        # Training examples after holding out `validation_size`.
        'train_size': 50_000,
        # Augmentation, in the teacher's own training too: zero padding
        # before a random crop, in pixels, and random left-right flips.
        'pad': 4,
        'flip': True,
        # With `flip`: at random in a phase's first epoch, then every
        # image the other way round in each epoch.
        'alternating_flip': False,
        # Side of a square around a random pixel that is set to 0 (the
        # mean colour), in pixels; 0: off.
        'cutout': 0,
        # Images mixed with others of their batch, shares drawn from
        # Beta(alpha, alpha) once per step; 0: off. With both, a coin
        # decides in each step. Teacher and student see the same mixed
        # image. 'ce' counts both labels; other methods that need the
        # labels of single images are refused.
        'mixup': 0.0,
        'cutmix': 0.0,
        # Per channel, for pixels scaled to 0..1; (): measured on the
        # train split.
        'mean': (),
        'std': (),
      },
      'teacher': phase(
        epochs=200,
        # A model's name, or 'my_package.my_module:function'.
        model='resnet56',
        # '': train it in this run. Else another run's workdir, or an
        # orbax checkpoint of a teacher.
        checkpoint='',
        # What it minimises; no method that uses a teacher.
        objective='ce',
      ),
      'compression': {
        # '': the student's blocks are the teacher's, narrower. Else another
        # model's name: its blocks, between 1x1 convolutions from and to the
        # teacher's channels; `keep` is then relative to its own widths.
        # Needs init 'random' or 'pca', and maps of the teacher's sizes.
        'model': '',
        # Student channels / teacher channels, per block; 1 for the
        # inherited ones, never growing with depth.
        'keep': (1.0, 0.5, 0.5),
        # A budget instead, from which keep ratios follow; `keep` is then not
        # looked at. What the folded student may cost, as a fraction of the
        # teacher: 'params:0.1', 'flops:0.1' or 'bytes:0.1', met within 2 %;
        # or 'latency_ms:5', the median time of one image on the device that
        # the run begins on. '': none.
        'target': '',
        # With `target`: once there is a teacher, short trainings of each
        # block alone measure what narrowing it harms, and the budget is spent
        # where it harms least. Without it the deeper half of a network is
        # taken to bear more.
        'probe': False,
        # Keep ratios that are tried in every block; between them is
        # interpolated. Each is a program to compile.
        'probe_keep': (0.5, 0.25, 0.125),
        # Steps of these trainings, of `batch_size` examples.
        'probe_steps': 200,
        # Units (residual units, convolutions) per block; (): all.
        'depth': (),
        # A student block's start: 'random', 'slice' or 'pca'.
        'init': 'slice',
        # Channel numbers are rounded to multiples of this.
        'width_multiple_of': 1,
        # Permit keep ratios that grow with depth.
        'allow_any_order': False,
      },
      # Every stage before the thaw.
      'stage': phase(epochs=50),
      # Single stages' deviations: stage_overrides.stage_1.epochs=10.
      'stage_overrides': {
        f'stage_{i + 1}': overrides() for i in range(MAX_STAGES)
      },
      # The last phase, which trains everything; the controls 'joint',
      # 'joint_inherited' and 'scratch' use these settings for all steps.
      'thaw': phase(
        epochs=100,
        # An objective of the thaw's own; None: `objective`.
        objective=placeholder(str),
        # 'int8': kernels and inputs of convolutions and dense layers are
        # rounded to 8 bits, as an int8 export will round them, and the
        # weights learn to bear it (docs/export.md). '': they are not.
        quantize='',
      ),
    }
  )
