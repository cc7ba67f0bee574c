"""`make bench`: the cost of one meta-training window, ours and that of other libraries, measured side by side."""
