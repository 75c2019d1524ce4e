"""Named tensors in files: lazy readers for every layout behind one TensorSource, and the streaming writer."""

from lcmmerge.tensors.dtypes import DTYPES, DType
from lcmmerge.tensors.info import TensorInfo
from lcmmerge.tensors.source import TensorSource, open_source

__all__ = ["DTYPES", "DType", "TensorInfo", "TensorSource", "open_source"]
