"""The declarative form of everything below: a recipe file, its lock, and the steps that it takes."""
