"""How optimizers are compared."""
