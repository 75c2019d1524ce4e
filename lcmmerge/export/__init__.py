"""From a merge to graphs: ONNX over the weight files of the model."""
