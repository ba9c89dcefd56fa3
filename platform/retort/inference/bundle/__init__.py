"""What a bundle speaks with: NumPy, ONNX Runtime and the text front-end. Nothing here may import torch."""
