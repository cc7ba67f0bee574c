"""The figures of "Learning to learn by gradient descent by gradient descent" (arXiv 1606.04474), reproduced.

`stages` lists the runs, `running` runs them, `results` reads their comparisons, `numbers` holds the paper's numbers and
the claims, `figures` draws and `page` writes. A new figure needs stages, panels and claims.
"""
