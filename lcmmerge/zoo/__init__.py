"""Small real models that ship with lcmmerge, and how they were made."""

from pathlib import Path

DIGITS = Path(__file__).parent / "digits"
