"""How the embedded model ``lcmmerge/zoo/digits`` is made: ``python -m lcmmerge.zoo.build``."""
