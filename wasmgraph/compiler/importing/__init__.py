"""Stage 2: an ONNX model, bound and simplified, becomes a Relax module."""
