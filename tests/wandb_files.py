"""Reads what W&B leaves offline: the transaction log, records of protocol buffers in LevelDB's log format."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32768


def records(path: Path) -> Iterator[Any]:
    """All records of a ``run-<id>.wandb`` file."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert data.startswith(b":W&B")
    position, whole = 7, b""
    while position + 7 <= len(data):
        if BLOCK - position % BLOCK < 7:
            position += BLOCK - position % BLOCK
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        if kind == 0:
            break
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(whole)
            whole = b""


def content(path: Path) -> dict[str, Any]:
    """What the records of a file say together: run, config, history rows, summary, exit code.

    W&B writes from a process of its own, which may be a little later than the run: its last record is waited for.
    """
    for _ in range(100):
        if (found := _content(path))["exit"] is not None:
            break
        time.sleep(0.1)
    return found


def _content(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"config": {}, "history": [], "summary": {}, "artifacts": {}, "exit": None}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found["run"] = record.run
            found["config"] |= _items(record.run.config.update)
        elif kind == "config":
            found["config"] |= _items(record.config.update)
        elif kind == "history":
            found["history"].append(_items(record.history.item))
            found["summary"] |= found["history"][-1]
        elif kind == "summary":
            found["summary"] |= _items(record.summary.update)
        elif kind == "artifact":
            files = {entry.path: Path(entry.local_path) for entry in record.artifact.manifest.contents}
            found["artifacts"][record.artifact.name] = (record.artifact.type, files)
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
    return found


def _items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
