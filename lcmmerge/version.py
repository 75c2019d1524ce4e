"""The version, in one place: the distribution's, and what every output records."""

__version__ = "0.1.0"
