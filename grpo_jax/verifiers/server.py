"""The process that scores: `python -m grpo_jax.verifiers.server`, started by `RewardPool`.

It loads the scorers once, then forks children that do the scoring, so that replacing a child that
hung, crashed or ate its memory costs a fork, not an import. It has one thread and never imports
jax. The trainer sends one pickled batch and gets one JSON reply; a child gets a few rows at a time
and answers one JSON line a row, so the clock of a row starts when the row before it ended.
"""

import collections
import contextlib
import gc
import json
import math
import os
import pickle
import resource
import select
import signal
import socket
import struct
import sys
import time
import traceback

from grpo_jax.errors import UserError
from grpo_jax.verifiers import parts
from grpo_jax.verifiers.item import Item

HEADER = struct.Struct("<Q")
_ROWS_A_MESSAGE = 32
_LINE_LIMIT = 1 << 20
_SEND_LIMIT_S = 10.0


def read_exact(fd: int, count: int) -> bytes | None:
  """`count` bytes, or None at the end of the stream."""
  data = bytearray()
  while len(data) < count:
    piece = os.read(fd, min(count - len(data), 1 << 20))
    if not piece:
      return None
    data += piece
  return bytes(data)


def read_message(fd: int) -> bytes | None:
  header = read_exact(fd, HEADER.size)
  return None if header is None else read_exact(fd, HEADER.unpack(header)[0])


def write_message(fd: int, payload: bytes) -> None:
  view = memoryview(HEADER.pack(len(payload)) + payload)
  while view:
    view = view[os.write(fd, view) :]


# ---- child ---------------------------------------------------------------------------------------


def _limit_memory(memory_mb: int) -> None:
  """`memory_mb` of address space above what the process has now."""
  try:
    with open("/proc/self/statm") as f:
      used = int(f.read().split()[0]) * resource.getpagesize()
  except OSError:
    return  # no /proc: the system does not enforce RLIMIT_AS either
  _, hard = resource.getrlimit(resource.RLIMIT_AS)
  limit = used + memory_mb * 2**20
  if hard != resource.RLIM_INFINITY:
    limit = min(limit, hard)
  resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _limit_cpu(seconds: float) -> None:
  """A child that outlives a killed server in an endless loop must end by itself."""
  _, hard = resource.getrlimit(resource.RLIMIT_CPU)
  soft = math.ceil(time.process_time() + seconds)
  if hard != resource.RLIM_INFINITY:
    soft = min(soft, hard)
  resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _reply(row: int, specs, scorers, completion: str, item: Item, tokens) -> dict:
  try:
    return {"row": row, "parts": parts.score_one(specs, scorers, completion, item, tokens)}
  except MemoryError as e:
    return {"row": row, "failed": "memory", "error": f"MemoryError: {e}"[:300]}
  except BaseException as e:  # SystemExit and KeyboardInterrupt of a scorer are its failure too
    where = traceback.extract_tb(e.__traceback__)[-1]
    text = f"{type(e).__name__}: {str(e)[:200]} ({os.path.basename(where.filename)}:{where.lineno})"
    return {"row": row, "failed": "exception", "error": text}


def _child(sock: socket.socket, specs, scorers, timeout_s: float, memory_mb: int) -> None:
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  os.setsid()  # its own group: what a scorer starts is killed with it
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  _limit_memory(memory_mb)
  while True:
    message = read_message(sock.fileno())
    if message is None:
      return
    rows = pickle.loads(message)
    _limit_cpu((len(rows) + 1) * (timeout_s + 1))
    for row, completion, item, tokens in rows:
      reply = _reply(row, specs, scorers, completion, Item(*item), tokens)
      sock.sendall(json.dumps(reply).encode() + b"\n")
      if reply.get("failed") == "memory":
        return


# ---- server --------------------------------------------------------------------------------------


class Child:
  """A scoring process as the server sees it: its socket, the rows it owes, the deadline."""

  def __init__(self, server: "Server"):
    self.sock, other = socket.socketpair()
    self.rows: collections.deque[int] = collections.deque()
    self.buffer = bytearray()
    self.deadline = math.inf
    self.retired = False  # ran out of memory: not to be trusted with the next row
    self.pid = os.fork()
    if self.pid == 0:
      code = 1
      with contextlib.suppress(BaseException):
        self.sock.close()
        server.close_inherited()
        _child(other, server.specs, server.scorers, server.timeout_s, server.memory_mb)
        code = 0
      os._exit(code)
    other.close()

  def send(self, rows: list[tuple], timeout_s: float) -> bool:
    payload = pickle.dumps(rows)
    self.rows.extend(row[0] for row in rows)
    try:
      self.sock.settimeout(_SEND_LIMIT_S)
      self.sock.sendall(HEADER.pack(len(payload)) + payload)
    except OSError:
      return False
    self.deadline = time.monotonic() + timeout_s
    return True

  def kill(self) -> int:
    """Ends the process and all it started; returns its wait status."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
      os.killpg(self.pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
      os.kill(self.pid, signal.SIGKILL)
    self.sock.close()
    return os.waitpid(self.pid, 0)[1]


class Server:
  def __init__(self, hello: dict, protocol_fds: tuple[int, int]):
    self.specs = parts.parse(hello["parts"])
    self.workers = hello["workers"]
    self.timeout_s = hello["timeout_s"]
    self.memory_mb = hello["memory_mb"]
    self.protocol_fds = protocol_fds
    self.children: list[Child] = []
    self.scorers = parts.load(self.specs)
    for task in hello["tasks"]:
      self.prepare({"task": task})
    gc.collect()
    gc.freeze()  # children share these pages

  def close_inherited(self) -> None:
    for fd in self.protocol_fds:
      os.close(fd)
    for child in self.children:
      child.sock.close()

  def prepare(self, meta: dict) -> bool:
    """Lets scorers import what a problem needs before the fork; True if one did."""
    hooks = [s.prepare for s in self.scorers if hasattr(s, "prepare")]
    return sum(hook(meta) for hook in hooks) > 0

  def drop(self, child: Child) -> int:
    self.children.remove(child)
    return child.kill()

  def score(self, items: list[tuple], rows: list[tuple]) -> list[dict]:
    """rows: (completion, index into items, tokens). One reply a row, whatever the rows do."""
    if sum(self.prepare(item[4]) for item in items):
      for child in list(self.children):
        self.drop(child)  # forked before the import
    todo = collections.deque(range(len(rows)))
    replies: list[dict | None] = [None] * len(rows)
    share = max(1, min(_ROWS_A_MESSAGE, math.ceil(len(rows) / (2 * self.workers))))
    while todo or any(child.rows for child in self.children):
      while todo and (child := self._idle()) is not None:
        batch = [todo.popleft() for _ in range(min(share, len(todo)))]
        message = [(i, rows[i][0], items[rows[i][1]], rows[i][2]) for i in batch]
        if not child.send(message, self.timeout_s):
          self.drop(child)
          todo.extendleft(reversed(batch))
      self._wait(todo, replies)
    return [r if r is not None else {"failed": "crash", "error": "no reply"} for r in replies]

  def _idle(self) -> Child | None:
    for child in self.children:
      if not child.rows:
        return child
    if len(self.children) < self.workers:
      self.children.append(Child(self))
      return self.children[-1]
    return None

  def _wait(self, todo, replies) -> None:
    busy = {child.sock: child for child in self.children if child.rows}
    if not busy:
      return
    rest = min(child.deadline for child in busy.values()) - time.monotonic()
    ready, _, _ = select.select(list(busy), [], [], max(0.0, rest))
    for sock in ready:
      child = busy.pop(sock)
      alive = self._receive(child, replies)
      if child.retired:
        self.drop(child)
        todo.extendleft(reversed(child.rows))
      elif not alive:
        status = self.drop(child)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status)
        # SIGKILL that we did not send is the kernel's, out of memory.
        self._fail(
          child, todo, replies, "crash", f"reward process ended (status {killed or status})"
        )
    now = time.monotonic()
    for child in busy.values():
      if child.deadline <= now:
        self.drop(child)
        self._fail(child, todo, replies, "timeout", f"no score within {self.timeout_s} s")

  def _receive(self, child: Child, replies) -> bool:
    """Takes the lines that have come; False if the child is gone or talks nonsense."""
    try:
      data = child.sock.recv(1 << 16, socket.MSG_DONTWAIT)
    except BlockingIOError:
      return True
    except OSError:
      return False
    child.buffer += data
    *lines, rest = bytes(child.buffer).split(b"\n")
    child.buffer = bytearray(rest)
    for line in lines:
      try:
        reply = json.loads(line)
        if reply["row"] != child.rows[0] or not self._sound(reply):
          return False
      except (ValueError, KeyError, TypeError, IndexError):
        return False
      replies[child.rows.popleft()] = reply
      child.retired = reply.get("failed") == "memory"
      child.deadline = time.monotonic() + self.timeout_s
    return bool(data) and len(rest) < _LINE_LIMIT

  def _sound(self, reply: dict) -> bool:
    """A hostile answer may have written to the socket itself."""
    if "failed" in reply:
      return reply["failed"] in ("memory", "exception") and isinstance(reply.get("error"), str)
    given = [v if isinstance(v, list) else [v] for v in reply["parts"] if v is not None]
    numbers = [isinstance(x, int | float) and math.isfinite(x) for v in given for x in v]
    return len(reply["parts"]) == len(self.specs) and all(numbers)

  def _fail(self, child: Child, todo, replies, kind: str, text: str) -> None:
    """The row at work is blamed; the rows behind it go back to the front of the queue."""
    if not child.rows:
      return
    row = child.rows.popleft()
    replies[row] = {"row": row, "failed": kind, "error": text}
    todo.extendleft(reversed(child.rows))
    child.rows.clear()


def _take_stdio() -> tuple[int, int]:
  """Private copies of the pipes to the trainer; what scorers print goes to stderr."""
  fds = os.dup(0), os.dup(1)
  null = os.open(os.devnull, os.O_RDONLY)
  os.dup2(null, 0)
  os.close(null)
  os.dup2(2, 1)
  return fds


def main() -> None:
  import warnings

  warnings.simplefilter("ignore")
  fds = _take_stdio()
  hello = read_message(fds[0])
  if hello is None:
    return
  try:
    server = Server(pickle.loads(hello), fds)
  except BaseException as e:
    text = str(e) if isinstance(e, UserError) else f"reward.parts: {type(e).__name__}: {e}"
    write_message(fds[1], json.dumps({"error": text, "user": isinstance(e, UserError)}).encode())
    return
  write_message(fds[1], json.dumps({"ready": os.getpid()}).encode())
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that `finally` ends the children
  try:
    while (message := read_message(fds[0])) is not None:
      batch = pickle.loads(message)
      write_message(fds[1], json.dumps(server.score(batch["items"], batch["rows"])).encode())
  except BrokenPipeError:
    pass
  finally:
    for child in list(server.children):
      server.drop(child)


if __name__ == "__main__":
  sys.exit(main())
