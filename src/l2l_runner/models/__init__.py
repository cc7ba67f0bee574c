"""Modules that have no home in torchvision: what experiments of the literature train."""
