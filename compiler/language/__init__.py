"""Read language models, GGUF files and Hugging Face folders, into ONNX decoders."""
