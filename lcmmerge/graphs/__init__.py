"""ONNX graphs without weights of their own: traced, lowered, linked to a checkpoint's files, interpreted."""
