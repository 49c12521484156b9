"""metrics.jsonl, TensorBoard and the terminal."""

import io
import json
import time

import pytest
import rich.console

from cbkd_jax import monitoring
from cbkd_jax.monitoring import Monitor


def _console(**options):
  return rich.console.Console(file=io.StringIO(), width=80, **options)


def _lines(directory):
  return [
    json.loads(line)
    for line in (directory / 'metrics.jsonl').read_text().splitlines()
  ]


def test_a_record_is_one_line_with_its_phase_and_step(tmp_path):
  monitor = Monitor(tmp_path, _console())
  monitor.open(0, 0)
  monitor.write('stage_1', 3, 103, {'examples': 48, 'loss': 0.1})
  position = monitor.position()
  monitor.close()
  assert _lines(tmp_path) == [
    {'stage': 'stage_1', 'step': 3, 'examples': 48, 'loss': 0.1}
  ]
  assert position == (tmp_path / 'metrics.jsonl').stat().st_size


def test_a_resume_cuts_back_to_the_checkpoint(tmp_path):
  monitor = Monitor(tmp_path, _console())
  monitor.open(0, 0)
  monitor.write('teacher', 1, 1, {'loss': 1.0})
  position = monitor.position()
  monitor.write('teacher', 2, 2, {'loss': 2.0})
  monitor.close()
  monitor.open(position, 1)
  monitor.write('teacher', 2, 2, {'loss': 3.0})
  monitor.close()
  assert [line['loss'] for line in _lines(tmp_path)] == [1.0, 3.0]


def test_a_log_that_someone_shortened_is_not_filled_up(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"stage": "x"}\n')
  monitor = Monitor(tmp_path, _console())
  monitor.open(1000, 0)
  monitor.write('teacher', 1, 1, {'loss': 1.0})
  monitor.close()
  assert len(_lines(tmp_path)) == 2


def test_a_process_that_leaves_the_files_to_another_writes_none(tmp_path):
  monitor = Monitor(tmp_path, _console(), writes=False)
  monitor.open(0, 0)
  monitor.write('teacher', 1, 1, {'loss': 1.0})
  assert monitor.position() == 0
  monitor.open(7, 1)
  monitor.close()
  assert list(tmp_path.iterdir()) == []


def test_tensorboard_has_every_figure_on_the_axis_of_all_steps(tmp_path):
  monitor = Monitor(tmp_path, _console())
  monitor.open(0, 100)
  monitor.write('stage_1', 3, 103, {'examples': 48, 'loss': 0.5})
  monitor.close()
  (path,) = (tmp_path / 'tensorboard').iterdir()
  assert path.name.startswith('events.out.tfevents')
  scalars = _scalars(path.read_bytes())
  assert scalars == [('loss', 103, 0.5)]


def test_phases_of_one_second_have_a_file_each(tmp_path, monkeypatch):
  monkeypatch.setattr(time, 'time', lambda: 1_700_000_000.0)
  monitor = Monitor(tmp_path, _console())
  for step in 1, 2:
    monitor.open(0, step - 1)
    monitor.write('teacher', step, step, {'loss': 1.0})
    monitor.close()
  files = list((tmp_path / 'tensorboard').iterdir())
  assert len(files) == 2
  assert all(b'loss' in path.read_bytes() for path in files)


def test_tensorboard_keeps_what_was_written_at_the_step_of_a_resume(tmp_path):
  """It drops what has at least the step that the next file names."""
  monitor = Monitor(tmp_path, _console())
  monitor.open(0, 0)
  monitor.write('teacher', 7, 7, {'test_accuracy': 0.5})
  position = monitor.position()
  time.sleep(1.1)  # a file is named after its second
  monitor.open(position, 7)
  monitor.close()
  from tensorboardX.proto.event_pb2 import SessionLog

  (path,) = sorted((tmp_path / 'tensorboard').iterdir())[1:]
  (purged,) = [
    event.step
    for event in _events(path.read_bytes())
    if event.session_log.status == SessionLog.START
  ]
  assert purged == 8


def _events(data):
  from tensorboardX.proto.event_pb2 import Event

  at = 0
  while at < len(data):
    size = int.from_bytes(data[at : at + 8], 'little')
    yield Event.FromString(data[at + 12 : at + 12 + size])
    at += 12 + size + 4


def _scalars(data):
  """(tag, step, value) of the records of an event file."""
  return [
    (value.tag, event.step, value.simple_value)
    for event in _events(data)
    for value in event.summary.value
  ]


def test_plain_lines_now_and_then_and_at_the_end(tmp_path, monkeypatch):
  clock = iter([0.0, 1.0, 5.0, 11.0, 12.0])
  monkeypatch.setattr(monitoring.time, 'monotonic', lambda: clock_value[0])
  clock_value = [next(clock)]
  console = _console()
  monitor = Monitor(tmp_path, console)
  with monitor.progress('thaw', 40, batch_size=100) as bar:
    for step in 10, 20, 30, 40:
      clock_value[0] = next(clock)
      bar.update(step, {'loss': 0.25, 'accuracy': 0.5})
  assert console.file.getvalue().splitlines() == [
    # 20 steps of 100 in the 10 s after the first, and 10 steps to go.
    'thaw: 30/40  loss 0.2500  accuracy 0.500  200 images/s  5 s left',
    'thaw: 40/40  loss 0.2500  accuracy 0.500  273 images/s',
  ]


@pytest.mark.parametrize('terminal', [True, False])
def test_both_kinds_of_progress_show_the_figures(tmp_path, terminal):
  console = _console(force_terminal=terminal)
  monitor = Monitor(tmp_path, console)
  with monitor.progress('thaw', 2, batch_size=4) as bar:
    bar.update(2, {'loss': 0.25, 'accuracy': 0.5})
  text = console.file.getvalue()
  assert 'loss 0.2500  accuracy 0.500' in text
  assert 'thaw' in text
  assert '2/2' in text
