"""Provide OpenVINO that tells nobody that it was imported.

Every import of it in edgec is by this module.

It reports its import, and each conversion, by the package openvino_telemetry, and does without
where it is not installed. It has no setting for that but a file in the user's home folder.
"""

import sys

_REPORTER = "openvino_telemetry"
_known = sys.modules.get(_REPORTER)
# None makes an import fail.
sys.modules[_REPORTER] = None  # type: ignore[assignment]
try:
    import openvino  # noqa: TID251
finally:
    del sys.modules[_REPORTER]
    if _known is not None:
        sys.modules[_REPORTER] = _known

__all__ = ["openvino"]
