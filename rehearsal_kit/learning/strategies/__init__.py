"""What to train on, and with which loss: one file per kind of strategy."""
