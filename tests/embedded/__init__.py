"""How the embedded model ``lcmmerge/zoo/digits`` is made: ``PYTHONPATH=tests python -m embedded``."""
