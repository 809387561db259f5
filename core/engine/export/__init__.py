"""What a bundle is made of: the weights with their modelling file, ONNX, manifest and model card."""
