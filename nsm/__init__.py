"""Neural Symbolic Model: hierarchies over graphs of semantic triples."""

__version__ = "0.1.0"
