"""The page of any set of runs and sweeps: `runs` finds them, `contents` reads, `figures` draws, `page` writes."""
