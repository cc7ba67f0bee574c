"""`make bench`: what one meta-training window costs, here and elsewhere, measured side by side."""
