"""ONNX to Relax (TVM's graph IR, which took Relay's place)."""

from edgec.compiler.importer.walk import (
    ImportedModel,
    Refused,
    find_refusals,
    import_model,
    refusal_message,
)

__all__ = ["ImportedModel", "Refused", "find_refusals", "import_model", "refusal_message"]
