"""Networks for reconstruction and for classification."""
