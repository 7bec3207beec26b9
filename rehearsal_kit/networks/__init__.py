"""Networks that turn a diffraction pattern into the sample."""
