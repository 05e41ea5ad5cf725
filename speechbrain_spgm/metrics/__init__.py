"""How good a separation is: SI-SDR, PIT and the other scores."""
