"""Small real models that ship with lcmmerge."""
