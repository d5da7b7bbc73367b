"""Sets that one command downloads: Fashion-MNIST, icons."""
