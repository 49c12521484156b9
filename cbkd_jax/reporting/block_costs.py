"""What each block of teacher and student costs: size, work, time, memory."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Costs:
  """Of one block in eval mode, without the head.

  Attributes:
    params: trainable parameters.
    flops: of the forward pass, per example, by XLA's count.
    milliseconds: of the forward pass of a batch, the block alone: the median.
    memory_bytes: of the forward pass of a batch: the block's parameters, its
      input and output, and what XLA allocates between them.
  """

  params: int
  flops: float
  milliseconds: float
  memory_bytes: float


@dataclasses.dataclass(frozen=True)
class BlockFigures:
  """A block before and after.

  Attributes:
    name: 'block 0', ..., 'head'.
    teacher: the teacher's.
    student: the student's, folded.
  """

  name: str
  teacher: Costs
  student: Costs
