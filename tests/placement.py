"""Which nodes of a graph ONNX Runtime's CUDA provider takes, by the log of a session; to be run over ``cudastubs``.

``python tests/placement.py GRAPH…``: a JSON object by graph. ``error``: why no session opened; ``copies`` between
devices; ``cpu`` and ``cuda``: [operator, node's name] of each.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from typing import Any

import onnxruntime

PROVIDERS = {"CPUExecutionProvider": "cpu", "CUDAExecutionProvider": "cuda"}
HEADING = re.compile(r"(?:Node\(s\)|All nodes) placed on \[(\w+)\]")
NODE = re.compile(r"VerifyEachNodeIsAssignedToAnEp\]\s+(\w\S*) \((.*)\)$")
COPIES = re.compile(r"(\d+) Memcpy nodes? (?:is|are) added")


def place(path: str) -> dict[str, Any]:
    """Without a plan for memory, which takes long."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 0
    options.log_verbosity_level = 1
    options.enable_mem_reuse = False
    options.add_session_config_entry("session.disable_prepacking", "1")
    found: dict[str, Any] = {"error": None, "copies": 0, "cpu": [], "cuda": []}
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        stderr = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            session = onnxruntime.InferenceSession(path, options, providers=[*PROVIDERS][::-1])
            if session.get_providers()[0] not in [*PROVIDERS][1:]:
                found["error"] = "the CUDA provider is not usable"
        except Exception as error:
            found["error"] = " ".join(str(error).split())[:300]
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        log.seek(0)
        provider = ""
        for line in log.read().splitlines():
            if heading := HEADING.search(line):
                provider = PROVIDERS[heading[1]]
            elif provider and (node := NODE.search(line)):
                found[provider].append([node[1], node[2]])
            elif copies := COPIES.search(line):
                found["copies"] += int(copies[1])
    return found


if __name__ == "__main__":
    json.dump({path: place(path) for path in sys.argv[1:]}, sys.stdout)
