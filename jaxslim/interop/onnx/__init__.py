"""ONNX files from traced programs."""
