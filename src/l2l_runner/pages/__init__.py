"""Pages made from runs."""
