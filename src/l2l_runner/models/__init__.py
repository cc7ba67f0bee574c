"""Networks from the literature that torchvision does not have."""
