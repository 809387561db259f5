"""What a bundle is made of: the weights with their modelling file, ONNX, GGUF, manifest and model card."""
