"""From a command line to a run: Hydra, overrides, sweeps."""
