"""A page in headless Chromium, driven through its DevTools over two pipes."""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

FLAGS = (
  '--headless',
  '--no-sandbox',  # CI is root in a container
  '--disable-gpu',
  '--disable-dev-shm-usage',
  '--disable-background-networking',
  '--disable-component-update',
  '--no-first-run',
  '--hide-scrollbars',
  '--remote-debugging-pipe',
)


def path() -> str | None:
  """Where Chromium is; None: nowhere."""
  return shutil.which('chromium') or shutil.which('chromium-browser')


class Browser:
  """One tab of a running Chromium.

  Attributes:
    requested: the addresses of all that pages asked for, themselves too.
    complaints: what pages reported: errors, warnings, exceptions.
  """

  def __init__(self, commands: IO[bytes], answers: IO[bytes]):
    self._commands, self._answers = commands, answers
    self._pending, self._number, self._session = b'', 0, None
    self.requested: list[str] = []
    self.complaints: list[str] = []
    target = self.call('Target.createTarget', url='about:blank')['targetId']
    self._session = self.call(
      'Target.attachToTarget', targetId=target, flatten=True
    )['sessionId']
    for domain in 'Page', 'Runtime', 'Log', 'Network':
      self.call(f'{domain}.enable')

  def call(self, method: str, **parameters: Any) -> dict[str, Any]:
    """A command of the DevTools protocol; returns its result."""
    self._number += 1
    message = {'id': self._number, 'method': method, 'params': parameters}
    if self._session:
      message['sessionId'] = self._session
    self._commands.write(json.dumps(message).encode() + b'\0')
    self._commands.flush()
    while True:
      answer = self._read()
      if answer.get('id') == self._number:
        assert 'error' not in answer, answer
        return answer['result']

  def open(
    self, page: Path, width: int, height: int = 900, dark: bool = False
  ) -> None:
    """Loads a page, laid out at a width in CSS pixels."""
    self.requested.clear()
    self.complaints.clear()
    self.call(
      'Emulation.setDeviceMetricsOverride',
      width=width,
      height=height,
      deviceScaleFactor=1,
      mobile=width < 600,
    )
    scheme = {
      'name': 'prefers-color-scheme',
      'value': 'dark' if dark else 'light',
    }
    self.call('Emulation.setEmulatedMedia', features=[scheme])
    self.call('Page.navigate', url=page.absolute().as_uri())
    while self._read().get('method') != 'Page.loadEventFired':
      pass

  def evaluate(self, script: str) -> Any:
    """A script's value, a plain one."""
    found = self.call('Runtime.evaluate', expression=script, returnByValue=True)
    assert 'exceptionDetails' not in found, found
    return found['result'].get('value')

  def _read(self) -> dict[str, Any]:
    while b'\0' not in self._pending:
      more = os.read(self._answers.fileno(), 1 << 16)
      assert more, 'Chromium has ended'
      self._pending += more
    text, _, self._pending = self._pending.partition(b'\0')
    message = json.loads(text)
    self._note(message.get('method'), message.get('params'))
    return message

  def _note(self, method: str | None, found: Any) -> None:
    if method == 'Network.requestWillBeSent':
      self.requested.append(found['request']['url'])
    elif method == 'Log.entryAdded':
      self.complaints.append(found['entry']['text'])
    elif method in ('Runtime.consoleAPICalled', 'Runtime.exceptionThrown'):
      self.complaints.append(json.dumps(found))


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
  """A Chromium of its own.

  Args:
    profile: a new directory for what it keeps.
  """
  its_commands, commands = os.pipe()
  answers, its_answers = os.pipe()
  # It takes commands from descriptor 3 and answers on 4.
  line = f'exec "$@" 3<&{its_commands} 4>&{its_answers}'
  arguments = [path(), *FLAGS, f'--user-data-dir={profile}', 'about:blank']
  with (
    os.fdopen(commands, 'wb') as sent,
    os.fdopen(answers, 'rb') as received,
    subprocess.Popen(
      ['bash', '-c', line, 'bash', *arguments],
      pass_fds=(its_commands, its_answers),
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    ) as process,
  ):
    os.close(its_commands)
    os.close(its_answers)
    try:
      yield Browser(sent, received)
    finally:
      process.kill()
