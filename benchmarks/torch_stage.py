"""A stage in plain PyTorch, to compare the speed of ours with.

ResNet-56 on 32x32 images in three blocks; the stage trains a deepest block of
half the width and the head, behind the teacher's first two blocks. Three
variants:

  naive   teacher and hybrid in full, the hybrid's frozen blocks its own copies
          with `requires_grad=False`: autograd stops at the trained block
  shared  the frozen blocks run once per batch, for both
  plain   training of the teacher itself, on the labels

As a worker it answers each line of standard input, e.g. {"variant": "naive",
"batch_size": 128, "steps": 5}, with a line {"seconds": ..., "cpu_seconds": ...,
"loss": ...}, and waits for the next one. A variant is built and warmed up at
its first request. Optional keys: the fields of `Setting`.

  python benchmarks/torch_stage.py --worker

Nothing here needs JAX. Modules and parameters have the names that they have in
`cbkd_jax.models.resnet`, so that weights convert by rule (`load`).
"""

import argparse
import copy
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES, SIDE, EXAMPLES = 10, 32, 50_000
WIDTHS, UNITS = (16, 32, 64), 9
STUDENT_INPUT, STUDENT_WIDTH = 16, 32
PAD, MEAN, STD = 4, 0.5, 0.25
CE_WEIGHT, KD_WEIGHT, TEMPERATURE = 0.1, 0.9, 4.0
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 0.1, 5e-4, 1.0
THREADS, WARM_UP = 2, 3
VARIANTS = ('naive', 'shared', 'plain')

Step = Callable[[Tensor, Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Setting:
  """What a careful user tries out, the results being the same.

  The defaults were the fastest on a CPU (torch 2.13). Contiguous memory took
  1.4 times the processor time, frozen norms left alone 1.1 times. Compiling
  took minutes and the steps then as long as before.

  Attributes:
    channels_last: the memory format of images and weights.
    fused: frozen BatchNorms multiplied into their convolutions.
    compiled: with `torch.compile`.
  """

  channels_last: bool = True
  fused: bool = True
  compiled: bool = False


def conv(inputs: int, width: int, kernel: int, stride: int = 1) -> nn.Conv2d:
  return nn.Conv2d(inputs, width, kernel, stride, kernel // 2, bias=False)


class Stem(nn.Module):
  """Convolution, normalisation, ReLU."""

  def __init__(self, width: int):
    super().__init__()
    self.conv = conv(3, width, 3)
    self.norm = nn.BatchNorm2d(width)

  def forward(self, x: Tensor) -> Tensor:
    return F.relu(self.norm(self.conv(x)), inplace=True)


class Unit(nn.Module):
  """The basic residual unit, with its last ReLU."""

  def __init__(self, inputs: int, width: int, stride: int):
    super().__init__()
    self.conv1 = conv(inputs, width, 3, stride)
    self.norm1 = nn.BatchNorm2d(width)
    self.conv2 = conv(width, width, 3)
    self.norm2 = nn.BatchNorm2d(width)
    self.projects = stride != 1 or inputs != width
    if self.projects:
      self.shortcut = conv(inputs, width, 1, stride)
      self.shortcut_norm = nn.BatchNorm2d(width)

  def forward(self, x: Tensor) -> Tensor:
    y = F.relu(self.norm1(self.conv1(x)), inplace=True)
    y = self.norm2(self.conv2(y))
    if self.projects:
      x = self.shortcut_norm(self.shortcut(x))
    y += x
    return F.relu(y, inplace=True)


class Block(nn.Module):
  """A group of units, the shallowest block's behind a stem."""

  def __init__(self, inputs: int, width: int, stride: int, stem: bool = False):
    super().__init__()
    if stem:
      self.stem = Stem(inputs)
    for n in range(UNITS):
      unit = Unit(width if n else inputs, width, 1 if n else stride)
      self.add_module(f'unit_{n}', unit)

  def forward(self, x: Tensor) -> Tensor:
    for module in self.children():
      x = module(x)
    return x


class Adapted(nn.Module):
  """A narrow block behind a 1x1 convolution from the teacher's width."""

  def __init__(self, inputs: int, reduced: int, inner: Block):
    super().__init__()
    self.reduce = nn.Conv2d(inputs, reduced, 1)
    self.inner = inner

  def forward(self, x: Tensor) -> Tensor:
    return self.inner(self.reduce(x))


class Head(nn.Module):
  """Global average pooling and a dense layer."""

  def __init__(self, inputs: int):
    super().__init__()
    self.classifier = nn.Linear(inputs, CLASSES)

  def forward(self, x: Tensor) -> Tensor:
    return self.classifier(x.mean((2, 3)))


def make_teacher() -> nn.Sequential:
  first, second, third = WIDTHS
  return nn.Sequential(
    Block(first, first, 1, stem=True),
    Block(first, second, 2),
    Block(second, third, 2),
    Head(third),
  )


def make_hybrid(teacher: nn.Sequential) -> nn.Sequential:
  """The teacher's first two blocks, copied and frozen, and the student's."""
  frozen = copy.deepcopy(teacher[:2]).requires_grad_(False)
  inner = Block(STUDENT_INPUT, STUDENT_WIDTH, 2)
  return nn.Sequential(
    *frozen, Adapted(WIDTHS[1], STUDENT_INPUT, inner), Head(STUDENT_WIDTH)
  )


def fuse(network: nn.Module) -> nn.Module:
  """A copy for eval mode, each BatchNorm multiplied into its convolution."""
  network = copy.deepcopy(network).eval()
  for module in network.modules():
    children = dict(module.named_children())
    for name, norm in children.items():
      if isinstance(norm, nn.BatchNorm2d):
        before = name.replace('shortcut_norm', 'shortcut')
        before = before.replace('norm', 'conv')
        fused = nn.utils.fuse_conv_bn_eval(children[before], norm)
        setattr(module, before, fused)
        setattr(module, name, nn.Identity())
  return network.requires_grad_(False)


def distillation_loss(
  logits: Tensor, teacher_logits: Tensor, labels: Tensor
) -> Tensor:
  """0.1 times cross-entropy and 0.9 times Hinton's loss at T = 4."""
  kd = F.kl_div(
    F.log_softmax(logits / TEMPERATURE, dim=1),
    F.log_softmax(teacher_logits / TEMPERATURE, dim=1),
    reduction='batchmean',
    log_target=True,
  )
  ce = F.cross_entropy(logits, labels)
  return CE_WEIGHT * ce + KD_WEIGHT * TEMPERATURE**2 * kd


def make_step(
  variant: str,
  teacher: nn.Sequential,
  hybrid: nn.Sequential,
  setting: Setting,
) -> Step:
  """`(normalised images, labels) -> loss`, one update of the trained part.

  Args:
    variant: one of `VARIANTS`.
    teacher: is trained by 'plain', else left as it is.
    hybrid: its block 2 and its head are trained, but by 'plain'.
    setting: how.

  Returns:
    The step.
  """
  if setting.channels_last:
    for network in teacher, hybrid:
      network.to(memory_format=torch.channels_last)
  frozen = fuse if setting.fused else nn.Module.eval
  if variant == 'plain':
    trained = teacher.train()

    def loss_fn(x: Tensor, labels: Tensor) -> Tensor:
      return F.cross_entropy(trained(x), labels)

  else:
    trained = hybrid[2:].train()
    prefix, rest = frozen(hybrid[:2]), None
    if variant == 'shared':
      rest = frozen(teacher[2:])
    else:
      whole = frozen(teacher)

    def loss_fn(x: Tensor, labels: Tensor) -> Tensor:
      with torch.no_grad():
        if rest is None:
          teacher_logits = whole(x)
        else:
          x = prefix(x)
          teacher_logits = rest(x)
      if rest is None:
        x = prefix(x)  # autograd records nothing: no weight wants a gradient
      return distillation_loss(trained(x), teacher_logits, labels)

  if setting.compiled:
    loss_fn = torch.compile(loss_fn)
  parameters = list(trained.parameters())
  optimizer = torch.optim.SGD(
    parameters,
    lr=LEARNING_RATE,
    momentum=0.9,
    nesterov=True,
    weight_decay=WEIGHT_DECAY,
    fused=True,
  )

  def step(x: Tensor, labels: Tensor) -> Tensor:
    optimizer.zero_grad(set_to_none=True)
    loss = loss_fn(x, labels)
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
    optimizer.step()
    return loss.detach()

  return step


def normalise(images: Tensor, channels_last: bool) -> Tensor:
  """float32 [n, 3, height, width] of uint8 [n, height, width, 3]."""
  x = images.permute(0, 3, 1, 2).to(torch.float32)
  x = x.mul_(1 / (255 * STD)).sub_(MEAN / STD)
  return x if channels_last else x.contiguous()


def augment(images: Tensor, pad: int = PAD) -> Tensor:
  """Random crops of black-padded images, half of them mirrored; uint8."""
  n, side = images.shape[:2]
  padded = F.pad(images, (0, 0, pad, pad, pad, pad))
  offsets = torch.randint(0, 2 * pad + 1, (2, n, 1))
  rows, columns = offsets + torch.arange(side)
  mirrored = torch.rand(n, 1) < 0.5
  columns = torch.where(mirrored, columns.flip(1), columns)
  # One gather does both.
  example = torch.arange(n)[:, None, None]
  return padded[example, rows[:, :, None], columns[:, None, :]]


def batches(
  images: Tensor, labels: Tensor, batch_size: int, channels_last: bool
) -> Iterator[tuple[Tensor, Tensor]]:
  """Augmented batches without end, one permutation after the other."""
  while True:
    for indices in torch.randperm(len(images)).split(batch_size):
      if len(indices) == batch_size:
        x = augment(images[indices])
        yield normalise(x, channels_last), labels[indices]


def load(network: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
  """Sets a network's state from arrays with our names, layouts and leaves."""
  leaves = {
    'kernel': 'weight',
    'scale': 'weight',
    'mean': 'running_mean',
    'var': 'running_var',
  }
  state = {}
  for name, value in arrays.items():
    path, leaf = name.rsplit('.', 1)
    if leaf == 'kernel':
      value = value.transpose((3, 2, 0, 1) if value.ndim == 4 else (1, 0))
    name = f'{path}.{leaves.get(leaf, leaf)}'
    state[name] = torch.from_numpy(np.ascontiguousarray(value))
  missing, unexpected = network.load_state_dict(state, strict=False)
  missing = [key for key in missing if 'num_batches_tracked' not in key]
  assert missing == unexpected == [], (missing, unexpected)


def subtree(arrays: Mapping[str, np.ndarray], name: str) -> dict:
  """The arrays whose names start with `name` and a dot, without these."""
  start = f'{name}.'
  return {
    key.removeprefix(start): value
    for key, value in arrays.items()
    if key.startswith(start)
  }


def networks(
  arrays: Mapping[str, np.ndarray] | None,
) -> tuple[nn.Sequential, nn.Sequential]:
  """Teacher and hybrid, their weights from a file of ours or drawn."""
  teacher = make_teacher()
  if arrays:
    load(teacher, subtree(arrays, 'teacher'))
  hybrid = make_hybrid(teacher)
  if arrays:
    load(hybrid, subtree(arrays, 'hybrid'))
  return teacher, hybrid


class Timed:
  """A variant at a batch size, built and warmed up."""

  def __init__(
    self,
    variant: str,
    batch_size: int,
    setting: Setting,
    data: tuple[Tensor, Tensor],
    arrays: Mapping[str, np.ndarray] | None,
  ):
    self._step = make_step(variant, *networks(arrays), setting)
    self._batches = batches(*data, batch_size, setting.channels_last)
    self(WARM_UP)

  def __call__(self, steps: int) -> dict[str, float]:
    began, cpu_began = time.perf_counter(), time.process_time()
    for _ in range(steps):
      loss = float(self._step(*next(self._batches)))
    return {
      'seconds': time.perf_counter() - began,
      'cpu_seconds': time.process_time() - cpu_began,
      'loss': loss,
    }


def check(arrays: Mapping[str, np.ndarray]) -> bool:
  """Compares with a file of `check_torch.py`; prints the differences.

  Logits may differ by 1e-4 and losses by 1e-5 of the value. Of a step, the
  change of every tensor is compared, by norm. The median tensor may be off by
  1e-3, the worst by 2e-2: rounding decides which side of 0 a ReLU's input near
  it falls, and one of them is a visible part of a small tensor's gradient.
  """
  good = True

  def report(what: str, difference: float, bound: float) -> None:
    nonlocal good
    good = good and difference <= bound  # so that NaN is not good
    print(f'{what:<46} {difference:.1e}  (at most {bound:.0e})')

  images = torch.from_numpy(arrays['images'])
  labels = torch.from_numpy(arrays['labels']).long()
  x = normalise(images, channels_last=False)
  for name, network in zip(('teacher', 'hybrid'), networks(arrays)):
    expected = torch.from_numpy(arrays[f'{name}_logits'])
    for kind, frozen in ('', nn.Module.eval), (', fused', fuse):
      with torch.no_grad():
        logits = frozen(network)(x)
      report(
        f'{name}{kind}: logits', float((logits - expected).abs().max()), 1e-4
      )
  for variant in VARIANTS:
    for values in itertools.product((False, True), (False, True), (False,)):
      setting = Setting(*values)
      if variant == 'plain' and setting.fused:
        continue  # nothing is frozen
      kinds = [key for key, on in dataclasses.asdict(setting).items() if on]
      name = ', '.join([variant, *kinds])
      teacher, hybrid = networks(arrays)
      stage = 'plain' if variant == 'plain' else 'stage_1'
      network = teacher if variant == 'plain' else hybrid
      before = copy.deepcopy(network.state_dict())
      loss = make_step(variant, teacher, hybrid, setting)(
        normalise(images, setting.channels_last), labels
      )
      expected = float(arrays[f'{stage}_loss'])
      report(f'{name}: loss', abs(float(loss) / expected - 1), 1e-5)
      differences = _differences(
        network, before, subtree(arrays, f'{stage}_after'), len(images)
      )
      report(f'{name}: median change', np.median(differences), 1e-3)
      report(f'{name}: worst change', np.max(differences), 2e-2)
  print('the same' if good else 'NOT the same')
  return good


def _differences(
  network: nn.Sequential,
  before: Mapping[str, Tensor],
  arrays: Mapping[str, np.ndarray],
  batch_size: int,
) -> list[float]:
  """Per tensor that ours moved, how far off it is, relative to the change."""
  expected = copy.deepcopy(network)
  load(expected, arrays)
  after, differences = network.state_dict(), []
  for name, ours in expected.state_dict().items():
    if 'num_batches_tracked' in name:
      continue
    old, theirs = before[name], after[name]
    if torch.equal(ours, old):
      assert torch.equal(theirs, old), f'{name} is frozen but has moved'
      continue
    if 'running_var' in name:
      # Torch keeps the unbiased variance of a batch, flax the biased one.
      n = batch_size * (SIDE >> int(name[0])) ** 2
      ours = 0.9 * old + (ours - 0.9 * old) * n / (n - 1)
    differences.append(float((theirs - ours).norm() / (ours - old).norm()))
  return differences


def work(arrays: Mapping[str, np.ndarray] | None) -> None:
  """Answers standard input's lines until it ends."""
  images = torch.randint(0, 256, (EXAMPLES, SIDE, SIDE, 3), dtype=torch.uint8)
  data = images, torch.randint(0, CLASSES, (EXAMPLES,))
  built = {}
  for line in sys.stdin:
    request = json.loads(line)
    steps = request.pop('steps')
    variant, batch_size = request.pop('variant'), request.pop('batch_size')
    key = variant, batch_size, Setting(**request)
    if key not in built:
      built[key] = Timed(*key, data, arrays)
    print(json.dumps(built[key](steps)), flush=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--worker', action='store_true', help='answer requests')
  parser.add_argument('--weights', help='.npz with initial weights of ours')
  parser.add_argument('--check', help='.npz of check_torch.py to compare with')
  args = parser.parse_args()
  torch.set_num_threads(THREADS)
  torch.manual_seed(0)
  arrays = None
  if path := args.weights or args.check:
    with np.load(path) as file:
      arrays = dict(file)
  if args.check:
    sys.exit(0 if check(arrays) else 1)
  if args.worker:
    work(arrays)


if __name__ == '__main__':
  main()
