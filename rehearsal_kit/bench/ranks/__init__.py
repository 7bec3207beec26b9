"""Steps of real ranks: exchange, plan of the draw, training steps, strategies."""
