"""What a bundle is made of: the weights with their modelling file, ONNX, GGUF, ExecuTorch, manifest and model card."""
