"""Describe what other runtimes are called; help lists them without loading any."""

# `bench.rivals` says what each is.
RIVAL_NAMES = ("onnxruntime", "openvino", "mnn", "ncnn")
# `bench.token_runtimes` says what each is.
TOKEN_RIVAL_NAMES = ("llama.cpp", "onnxruntime-genai", "openvino-genai")
