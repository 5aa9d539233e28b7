"""Provide ONNX Runtime that tells nobody what it runs.

Every import of it in edgec is by this module.

From version 1.29 its packages for Linux send events about each session (names and hashes of
graphs among them) unless `ORT_DISABLE_TELEMETRY` is set before it is imported; switching events
off afterwards comes too late for those of the import. Programs that edgec starts, such as
converters, inherit the variable.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime  # noqa: TID251

# For somebody who imported it before edgec.
onnxruntime.disable_telemetry_events()

__all__ = ["onnxruntime"]
