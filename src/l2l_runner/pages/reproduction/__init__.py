"""The figures of "Learning to learn by gradient descent by gradient descent" (arXiv 1606.04474), run and compared.

`stages` says what is to be run, `running` runs it, `results` reads what came out, `numbers` holds the paper's numbers
and claims against it, `figures` draws and `page` writes it all down. A new figure has stages, panels and claims.
"""
