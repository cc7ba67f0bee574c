"""The page of any set of runs and sweeps: what each has left is read, compared where it can be, and drawn."""
