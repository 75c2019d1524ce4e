"""Small real models that ship with lcmmerge, and how they were made."""
