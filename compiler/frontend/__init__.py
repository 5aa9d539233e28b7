"""Lead from an ONNX file to Relax, TVM's graph IR, which took Relay's place."""
