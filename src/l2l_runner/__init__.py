"""Meta-train learned optimizers, compare them fairly, keep what they learned."""

__version__ = "0.1.0"
