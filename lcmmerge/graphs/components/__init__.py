"""What of a pipeline becomes a graph, one file each: its module, its inputs and outputs."""

from lcmmerge.graphs.components.base import PipelinePart, Port, components_of

__all__ = ["PipelinePart", "Port", "components_of"]
