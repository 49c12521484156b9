"""What gcsfs and TensorStore ask of Google Cloud Storage, in memory.

Reads, ranges, listings, whole uploads and deletions, with the generations and
preconditions that TensorStore's own writes depend on. Nothing is ever slow or
refused.
"""

import base64
import contextlib
import hashlib
import http.client
import http.server
import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator
from urllib.parse import parse_qs, quote, unquote, urlsplit

_OBJECT = re.compile(r'(?:/download)?/storage/v1/b/([^/]+)/o/(.+)')
_LISTING = re.compile(r'/storage/v1/b/([^/]+)/o')
_UPLOAD = re.compile(r'/upload/storage/v1/b/([^/]+)/o')
_BUCKET = re.compile(r'/storage/v1/b/([^/]+)')


class Server(http.server.ThreadingHTTPServer):
  """Buckets by name, each its objects by name: (generation, bytes)."""

  daemon_threads = True

  def __init__(self, bucket: str):
    super().__init__(('localhost', 0), _Handler)
    self.buckets: dict[str, dict[str, tuple[int, bytes]]] = {bucket: {}}
    self.lock = threading.Lock()
    self.generations = itertools.count(1000)
    # Called with the bucket and the name of what has just been uploaded.
    self.uploaded: Callable[[str, str], None] = lambda bucket, name: None

  def handle_error(self, *_):
    """Says nothing of a client that was killed."""

  @property
  def url(self) -> str:
    return f'http://localhost:{self.server_port}'

  def environment(self) -> dict[str, str]:
    """What sends gcsfs and TensorStore here instead of to Google."""
    return {
      'STORAGE_EMULATOR_HOST': self.url,
      'TENSORSTORE_GCS_HTTP_URL': self.url,
      'FSSPEC_GCS_TOKEN': 'anon',
      'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
      'NO_GCE_CHECK': 'true',
    }


@contextlib.contextmanager
def serve(bucket: str) -> Iterator[Server]:
  """A server with one empty bucket."""
  with Server(bucket) as server:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
      yield server
    finally:
      server.shutdown()
      thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  wbufsize = -1  # headers and body at once: apart they cost 40 ms of TCP

  def log_message(self, *_):
    """Says nothing."""

  def _handle(self):
    url = urlsplit(self.path)
    self.query = {k: v[0] for k, v in parse_qs(url.query).items()}
    body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
    for pattern, method, handle in (
      (_OBJECT, 'GET', self._get),
      (_OBJECT, 'DELETE', self._delete),
      (_LISTING, 'GET', self._list),
      (_UPLOAD, 'POST', self._upload),
      (_BUCKET, 'GET', self._bucket),
    ):
      match = pattern.fullmatch(url.path)
      if match and method == self.command:
        bucket, *name = match.groups()
        with self.server.lock:
          objects = self.server.buckets.get(bucket)
          if objects is None:
            return self._error(404)
          return handle(bucket, objects, body, *map(unquote, name))
    return self._error(501)

  do_GET = do_POST = do_DELETE = _handle

  def _get(self, bucket, objects, _, name):
    if name not in objects:
      return self._error(404)
    if failed := self._unmet(objects, name):
      return self._error(failed)
    generation, data = objects[name]
    if self.query.get('alt') != 'media' and 'download' not in self.path:
      return self._json(self._resource(bucket, name, generation, data))
    headers = {'x-goog-generation': generation}
    found = re.fullmatch(
      r'bytes=(\d*)-(\d*)', self.headers.get('Range') or 'bytes=0-'
    )
    start, end = found.groups()
    size = len(data)
    if not start:
      start, end = max(size - int(end), 0), size
    else:
      start, end = int(start), min(int(end) + 1, size) if end else size
    if 'Range' not in self.headers:
      return self._send(200, data, headers)
    if start >= size:
      return self._error(416)
    headers['Content-Range'] = f'bytes {start}-{end - 1}/{size}'
    return self._send(206, data[start:end], headers)

  def _delete(self, _, objects, __, name):
    if name not in objects:
      return self._error(404)
    if failed := self._unmet(objects, name):
      return self._error(failed)
    del objects[name]
    return self._send(204, b'', {})

  def _list(self, bucket, objects, _):
    prefix = self.query.get('prefix', '')
    delimiter = self.query.get('delimiter')
    items, prefixes = [], set()
    for name in sorted(objects):
      if not name.startswith(prefix):
        continue
      if not name >= self.query.get('startOffset', ''):
        continue
      if 'endOffset' in self.query and name >= self.query['endOffset']:
        continue
      head, found, _ = name[len(prefix) :].partition(delimiter or '\0')
      if found:
        prefixes.add(prefix + head + found)
      else:
        items.append(self._resource(bucket, name, *objects[name]))
    return self._json({'items': items, 'prefixes': sorted(prefixes)})

  def _upload(self, bucket, objects, body, *_):
    name, kind = self.query.get('name'), self.query['uploadType']
    if kind == 'resumable':
      # Its chunks go to an address of the server's choice.
      address = f'{self.server.url}/upload/storage/v1/b/{bucket}/o'
      address += f'?uploadType=chunk&name={quote(name, safe="")}'
      return self._send(200, b'{}', {'Location': address})
    if kind == 'chunk':
      total = self.headers['Content-Range'].rpartition('/')[2]
      if total != str(len(body)):
        return self._error(501)
    elif kind == 'multipart':
      boundary = self.headers['Content-Type'].partition('boundary=')[2]
      mark = b'--' + boundary.strip('"').encode()
      _, described, content, _ = body.split(mark)
      name = json.loads(described.partition(b'\n\n')[2])['name']
      body = content.partition(b'\n\n')[2].removesuffix(b'\n')
    elif kind != 'media':
      return self._error(501)
    if failed := self._unmet(objects, name):
      return self._error(failed)
    objects[name] = next(self.server.generations), body
    self.server.uploaded(bucket, name)
    return self._json(self._resource(bucket, name, *objects[name]))

  def _bucket(self, bucket, *_):
    return self._json({'kind': 'storage#bucket', 'name': bucket})

  def _unmet(self, objects, name):
    """The status of a precondition that is not met."""
    generation = objects.get(name, (0, b''))[0]
    wanted = self.query.get('ifGenerationMatch')
    if wanted is not None and int(wanted) != generation:
      return 412
    if self.query.get('ifGenerationNotMatch') == str(generation):
      return 304
    return None

  def _resource(self, bucket, name, generation, data):
    return {
      'kind': 'storage#object',
      'bucket': bucket,
      'name': name,
      'size': str(len(data)),
      'generation': str(generation),
      'metageneration': '1',
      'updated': '2025-01-01T00:00:00.000Z',
      'timeCreated': '2025-01-01T00:00:00.000Z',
      'md5Hash': base64.b64encode(hashlib.md5(data).digest()).decode(),
      'mediaLink': f'{self.server.url}/download/storage/v1/b/{bucket}/o/'
      f'{quote(name, safe="")}?alt=media',
    }

  def _json(self, value):
    data = json.dumps(value).encode()
    return self._send(200, data, {'Content-Type': 'application/json'})

  def _error(self, code):
    if code == 304:  # has no body
      return self._send(code, b'', {})
    value = {'error': {'code': code, 'message': http.client.responses[code]}}
    return self._send(code, json.dumps(value).encode(), {})

  def _send(self, code, data, headers):
    self.send_response(code)
    for name, value in headers.items():
      self.send_header(name, str(value))
    self.send_header('Content-Length', str(len(data)))
    self.end_headers()
    self.wfile.write(data)
